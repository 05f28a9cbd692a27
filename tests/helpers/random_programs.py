"""Random networks whose forward methods are random programs.

A failure prints the program. All tensors have one shape, so that any of them
can be added to any other and changed in place through any alias.
"""

import linecache
import random
import re
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.networks import tensors

CHANNELS, SIZE = 4, 6
_numbers = count()


class Doubled(nn.Conv2d):
    """Subclass of a layer, with a forward method of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Network(nn.Module):
    """Layers and attributes that a random program may use."""

    text: str

    def __init__(self, source: random.Random) -> None:
        super().__init__()
        for name in ('conv0', 'conv1', 'conv2', 'conv3'):
            kernel, dilation = source.choice((1, 3, 3, 3)), 1
            if kernel == 3 and source.random() < 0.2:
                dilation = 2
            kind = Doubled if source.random() < 0.05 else nn.Conv2d
            layer = kind(
                CHANNELS,
                CHANNELS,
                kernel,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                bias=source.random() < 0.4,
            )
            self.add_module(name, layer)
        for name in ('norm0', 'norm1', 'norm2'):
            norm: Any = nn.BatchNorm2d(CHANNELS)
            with torch.no_grad():
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)
            self.add_module(name, norm)
        self.relu0 = nn.ReLU(inplace=source.random() < 0.7)
        self.relu1 = nn.ReLU()
        self.idle = nn.Identity()
        self.gelu = nn.GELU()
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.linear = nn.Linear(SIZE, SIZE)
        # Parts of it may be those of the program too.
        parts = [self.conv3, self.norm2, self.relu0, self.conv2]
        self.chain = nn.Sequential(*parts[: source.randint(2, 4)])
        self.maybe = source.choice((None, self.chain, self.pool))
        self.flag = source.random() < 0.5
        self.number = source.choice((0.5, 1.0, 2.0))
        self.register_buffer('scale', torch.rand(CHANNELS, 1, 1))
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    weight = layer.weight
                    weight *= torch.rand_like(weight) < 0.4
                    weight.view(-1)[:2] = torch.tensor([0.0, 0.5])


class _Writer:
    """Writer of one program."""

    def __init__(self, source: random.Random, learns: bool) -> None:
        self.source, self.learns = source, learns
        self.names = ['x', 'y']
        self.lines: list[str] = []

    def name(self) -> str:
        """Return a variable that has a value."""
        return self.source.choice(self.names)

    def target(self) -> str:
        """Return a variable to assign, new or not; the inputs too."""
        if self.source.random() < 0.5 or len(self.names) > 6:
            return self.name()
        return f'v{len(self.names)}'

    def put(self, line: str, name: str = '') -> None:
        self.lines.append(line)
        if name and name not in self.names:
            self.names.append(name)

    def layer(self) -> str:
        kinds = ('conv0', 'conv1', 'conv2', 'conv3', 'linear')
        return f'self.{self.source.choice(kinds)}'

    def norm(self) -> str:
        return f'self.norm{self.source.randrange(3)}'

    def relu(self, value: str) -> str:
        return self.source.choice(
            (
                f'self.relu0({value})',
                f'self.relu1({value})',
                f'F.relu({value})',
                f'F.relu({value}, inplace=True)',
                f'torch.relu({value})',
                f'{value}.relu()',
            )
        )

    def between(self) -> None:
        """Write a statement between those of a block."""
        kind, name = self.source.random(), self.target()
        if kind < 0.5:
            return
        if kind < 0.65:
            self.put('if self.maybe is not None:')
            self.put(f'    {self.name()} = self.maybe({self.name()})')
        elif kind < 0.75:
            self.put('if self.flag:')
            self.put(f'    {self.name()} = {self.relu(self.name())}')
        elif kind < 0.85:
            self.put(f'{name} = self.idle({self.name()})', name)
        else:
            self.statement()

    def block(self) -> None:
        """Write a convolution with its norm, sum and ReLU, mostly in a row."""
        source = self.source
        v, w = self.target(), self.name()
        messy = source.random() < 0.3
        self.put(f'{v} = {self.layer()}({self.name()})', v)
        for step in ('norm', 'sum', 'relu'):
            if source.random() < 0.3:
                continue
            if messy:
                self.between()
            if source.random() < 0.2:
                v, old = self.target(), v
            else:
                old = v
            if step == 'norm':
                self.put(f'{v} = {self.norm()}({old})', v)
            elif step == 'relu':
                self.put(f'{v} = {self.relu(old)}', v)
            elif old == v and source.random() < 0.5:
                self.put(f'{v} += {w}')
            else:
                both = source.choice((f'{old} + {w}', f'{w} + {old}'))
                self.put(f'{v} = {both}', v)

    def nested(self) -> None:
        """Write a block as one expression."""
        v, w = self.target(), self.name()
        value = f'{self.layer()}({self.name()})'
        if self.source.random() < 0.7:
            value = f'{self.norm()}({value})'
        if self.source.random() < 0.5:
            value = self.source.choice((f'{value} + {w}', f'{w} + {value}'))
            value = f'({value})'
        self.put(f'{v} = {self.relu(value)}', v)

    def alias(self) -> None:
        v, w = self.target(), self.name()
        views = ('{w}', '{w}[:]', '{w}.view_as({w})', '{w}.transpose(2, 3)')
        views += ('{w}.detach()',) * (not self.learns)
        self.put(f'{v} = {self.source.choice(views).format(w=w)}', v)

    def change(self) -> None:
        """Change a tensor in place, and with it its aliases."""
        v, w = self.name(), self.name()
        lines = [
            f'{v}.add_({w})',
            f'{v}.mul_(0.5)',
            f'{v}.relu_()',
            f'F.relu({v}, inplace=True)',
            f'self.relu0({v})',
            f'{v}[:, :1] = 0.5',
            f'{v} *= self.number',
        ]
        lines += [f'torch.add({v}, {w}, out={v})'] * (not self.learns)
        self.put(self.source.choice(lines))

    def other(self) -> None:
        v, w, u = self.target(), self.name(), self.name()
        values = (
            f'self.pool({w})',
            f'self.gelu({w})',
            f'self.chain({w})',
            f'torch.cat([{w}[:, :2], {u}[:, 2:]], 1)',
            f'{w} * self.scale',
            f'{w} * self.number',
            f'{w} + {w}.shape[0]',
            f'{w} + {w}.mean((2, 3), keepdim=True)',
            f'{w} if self.flag else {u}',
        )
        self.put(f'{v} = {self.source.choice(values)}', v)

    def function(self) -> None:
        """Write a block inside an inner function."""
        v = self.target()
        self.put('def inner(t):')
        self.put(f'    t = {self.layer()}(t)')
        self.put(f'    t = {self.norm()}(t)')
        if self.source.random() < 0.5:
            self.put(f'    t += {self.name()}')
        self.put(f'    return {self.relu("t")}')
        self.put(f'{v} = inner({self.name()})', v)

    def statement(self) -> None:
        kinds = (self.block, self.nested, self.alias, self.change)
        kinds += (self.other, self.function)
        weights = (8, 4, 2, 0.5 if self.learns else 3, 3, 1)
        self.source.choices(kinds, weights)[0]()

    def text(self) -> str:
        for _ in range(self.source.randint(2, 5)):
            self.statement()
        one, other = self.name(), self.name()
        ends = (
            one,
            f'{one}, {other}',
            self.relu(one),
            f'dict(a={one}, b=[{other}])',
        )
        self.lines.append(f'return {self.source.choice(ends)}')
        body = '\n    '.join(self.lines)
        return f'def forward(self, x, y):\n    {body}\n'


def random_network(seed: int, learns: bool = False) -> Network:
    """Return a network with the layers of a random program of two inputs.

    Args:
        seed: Seed of the program, the layers and their numbers.
        learns: Make in-place changes rare: most of them make a backward pass
            impossible.
    """
    source = random.Random(seed)
    # Not torch.manual_seed, which notes a stack trace for CUDA at each call.
    torch.default_generator.manual_seed(seed)
    text = _Writer(source, learns).text()
    file = f'<program {next(_numbers)}>'
    linecache.cache[file] = len(text), None, text.splitlines(True), file
    scope: dict[str, Any] = dict(torch=torch, F=F)
    exec(compile(text, file, 'exec'), scope)
    kind: Any = type('Program', (Network,), dict(forward=scope['forward']))
    network = kind(source)
    network.text = text
    used = ['linear', *re.findall(r'self\.(\w+)', text)]
    for name, _ in list(network.named_children()):
        if name not in used:
            delattr(network, name)
    return network


def change_later(network: Any, seed: int) -> None:
    """Change an attribute, a hook or a layer that the program may use."""
    source = random.Random(seed)
    layers = dict(network.named_children())
    norms = [m for m in layers.values() if isinstance(m, nn.BatchNorm2d)]
    hook: Callable = source.choice((_halve, _change))
    changes: list[Callable] = [
        lambda: setattr(network, 'flag', not network.flag),
        lambda: setattr(network, 'number', 3.0),
        lambda: network.scale.fill_(0.25),
        lambda: setattr(network, 'scale', torch.ones(CHANNELS, 1, 1)),
    ]
    if layers:
        name = source.choice(list(layers))
        changes += [
            lambda: layers[name].register_forward_hook(hook),
            lambda: setattr(layers[name], 'forward', torch.neg),
            lambda: setattr(network, name, nn.Identity()),
        ]
    if norms:
        norm = source.choice(norms)
        changes.append(lambda: norm.running_mean.data.add_(0.5))
    source.choice(changes)()


def _halve(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 0.5


def _change(module: nn.Module, inputs: Any, output: Tensor) -> None:
    with torch.no_grad():
        inputs[0].mul_(0.5)


def inputs() -> tuple[Tensor, Tensor]:
    """Return two batches of images."""
    shape = (2, CHANNELS, SIZE, SIZE)
    return torch.randn(shape), torch.randn(shape)


def run_program(
    network: nn.Module, given: tuple[Tensor, ...]
) -> list[Tensor] | None:
    """Return the outputs, and the inputs as the program leaves them.

    None if PyTorch refuses, as a sum in place with a view across itself.
    """
    given = tuple(x.clone() for x in given)
    try:
        return [*tensors(network(*given)), *given]
    except RuntimeError:
        return None
