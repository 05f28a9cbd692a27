"""Time of Sparse Wide on sparse kernels over dense networks and peers.

Single layers of ResNet-18 and -50, whole networks at inference, and training
steps. Each row divides the time of the wide sparse layer or network by the
time of an alternative with the same FLOPs, or of the wide one executed
densely. Both take turns in one process; a figure is the median of the ratios
of all turns, with quartiles.

    python benchmarks/sparse_execution.py [layers networks training peers]
    python benchmarks/sparse_execution.py blocks

The part ``blocks`` divides the time with structure Block(2) by the time with
unstructured masks of the same density. The output names missing peers:
pip install -r requirements-peers.txt
"""

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from math import sqrt
from typing import Any

import torch
import torch.fx.experimental.optimization
from layer_products import (  # type: ignore[import-not-found]
    LAYERS,
    Row,
    block_mask,
    compare,
    random_mask,
    sparse_forward,
    sparse_products,
)
from masked_step import build_model  # type: ignore[import-not-found]
from runtimes import missing, runtimes  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.nn import functional as F

import sift_mm
from sift_mm.deploy import to_sparse
from sift_mm.kernels import keep_freed_memory


def layers(args: argparse.Namespace, sparsity: float) -> Iterator[Row]:
    """Compare the products of single layers with the dense original."""
    for c, k, size, kernel, stride in LAYERS:
        wide = (round(k / sqrt(1 - sparsity)), round(c / sqrt(1 - sparsity)))
        dense = torch.randn(k, c, kernel, kernel)
        shape = (*wide, kernel, kernel)
        mask = random_mask(shape, dense.numel())
        weight = torch.randn(shape) * mask
        pad = kernel // 2
        x = torch.randn(args.batch, wide[1], size, size)
        x_dense = torch.randn(args.batch, c, size, size)
        sparse = sparse_products(x, weight, mask, stride)
        forward_dense = partial(
            F.conv2d, x_dense, dense, None, stride, padding=pad
        )
        grad_dense = torch.randn_like(forward_dense())
        backward_dense = partial(
            torch.ops.aten.convolution_backward,
            *(grad_dense, x_dense, dense, None, [stride] * 2, [pad] * 2),
            *([1, 1], False, [0, 0], 1),
        )
        name = f'{c} to {k} at {size}, {kernel}x{kernel}/{stride}'
        products = {
            'forward': forward_dense,
            'input gradient': partial(backward_dense, [True, False, False]),
            'weight gradient': partial(backward_dense, [False, True, False]),
        }
        for product, other in products.items():
            yield from compare(
                f'{name} {product}',
                sparsity,
                sparse[product],
                {'dense original': other},
                args.rounds,
            )


def width(sparsity: float) -> int:
    """Return the channels of the first stage of the wide ResNet-18."""
    return round(64 / sqrt(1 - sparsity))


def rest(sparsity: float) -> float:
    """Return the sparsity of the stages that offsets the dense stem.

    The stem has 118 of ResNet-18's 1814 million multiplications and grows with
    the width; the stages have 1695.
    """
    growth = 1 / sqrt(1 - sparsity) - 1
    return 1 - (1 - sparsity) * (1 - growth * 118 / 1695)


def wide_network(
    sparsity: float, draw: Callable[..., Tensor] = random_mask
) -> nn.Module:
    """Build ResNet-18 Sparse Wide with drawn masks and equal FLOPs."""
    model = build_model(width(sparsity))
    for name, weight in model.named_parameters():
        if name.startswith('layer') and weight.ndim == 4:
            active = round((1 - rest(sparsity)) * weight.numel())
            weight.data *= draw(weight.shape, active)
    return model


def networks(args: argparse.Namespace, sparsity: float) -> Iterator[Row]:
    """Compare ResNet-18 at inference."""
    wide, dense = wide_network(sparsity).eval(), build_model(64).eval()
    sparse = to_sparse(wide)
    for batch in (args.batch, 1):
        x = torch.randn(batch, 3, args.size, args.size)
        others: dict[str, Callable[[], object]] = {
            'dense, eager': partial(dense, x),
            'dense, fused, channels_last': fused(dense, x),
        }
        others |= runtimes('dense', dense, x)
        if batch > 1 and not args.no_wide:
            others['wide, executed densely'] = partial(wide, x)
        with torch.inference_mode():
            yield from compare(
                f'ResNet-18, inference, batch {batch}',
                sparsity,
                partial(sparse, x),
                others,
                args.rounds if batch > 1 else 5 * args.rounds,
            )


def fused(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Return PyTorch's fastest forward pass without compilation."""
    model = torch.fx.experimental.optimization.fuse(model)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.to(memory_format=torch.channels_last)
    return partial(model, x.to(memory_format=torch.channels_last))


def step_of(
    model: nn.Module, x: Tensor, target: Tensor, **masks: Any
) -> Callable[[], object]:
    """Return a training step with SGD and momentum."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    training = (
        sift_mm.SparseTraining(model, optimizer, **masks) if masks else None
    )

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        (training or optimizer).step()

    return step


def wide_step(
    sparsity: float,
    execution: str,
    x: Tensor,
    target: Tensor,
    algorithm: Any = 'Static',
) -> Callable[[], object]:
    """Return a training step of the wide network with static masks."""
    return step_of(
        build_model(width(sparsity)),
        x,
        target,
        algorithm=algorithm,
        steps=1000,
        sparsity=rest(sparsity),
        include=['layer*conv*.weight', 'layer*downsample.0.weight'],
        execution=execution,
    )


def training(args: argparse.Namespace, sparsity: float) -> Iterator[Row]:
    """Compare a training step of ResNet-18 with static masks."""
    x = torch.randn(args.batch, 3, args.size, args.size)
    target = torch.randint(1000, (args.batch,))
    others = {'dense, eager': step_of(build_model(64), x, target)}
    if not args.no_wide:
        others['wide, executed densely'] = wide_step(
            sparsity, 'dense', x, target
        )
    yield from compare(
        f'ResNet-18, training step, batch {args.batch}',
        sparsity,
        wide_step(sparsity, 'sparse', x, target),
        others,
        args.rounds,
    )


def blocks(args: argparse.Namespace, sparsity: float) -> Iterator[Row]:
    """Compare Block(2) with unstructured masks of the same density."""
    over = 'unstructured'
    for c, k, size, kernel, stride in LAYERS:
        if (kernel, stride) != (3, 1):
            continue
        wide = (round(k / sqrt(1 - sparsity)), round(c / sqrt(1 - sparsity)))
        shape = (*wide, kernel, kernel)
        x = torch.randn(args.batch, shape[1], size, size)
        block, other = (
            sparse_products(x, torch.randn(shape) * mask, mask, stride)
            for mask in (
                draw(shape, c * k * kernel**2)
                for draw in (block_mask, random_mask)
            )
        )
        for product, run in block.items():
            what = f'{c} to {k} at {size}, 3x3/1 {product}, Block(2)'
            others = {over: other[product]}
            yield from compare(what, sparsity, run, others, args.rounds)
    x = torch.randn(args.batch, 3, args.size, args.size)
    with torch.inference_mode():
        block_net, other_net = (
            partial(to_sparse(wide_network(sparsity, draw).eval()), x)
            for draw in (block_mask, random_mask)
        )
        yield from compare(
            f'ResNet-18, inference, batch {args.batch}, Block(2)',
            sparsity,
            block_net,
            {over: other_net},
            args.rounds,
        )
    static = dict(type='Static', structure=dict(type='Block', filters=2))
    step = x, torch.randint(1000, (args.batch,))
    yield from compare(
        f'ResNet-18, training step, batch {args.batch}, Block(2)',
        sparsity,
        wide_step(sparsity, 'sparse', *step, static),
        {over: wide_step(sparsity, 'sparse', *step)},
        args.rounds,
    )


def peers(args: argparse.Namespace, sparsity: float) -> Iterator[Row]:
    """Compare sparse kernels on one layer with the dense original."""
    c, size = 256, 14
    wide = round(c / sqrt(1 - sparsity))
    dense = torch.randn(c, c, 3, 3)
    mask = random_mask((wide, wide, 3, 3), dense.numel())
    weight = torch.randn(mask.shape) * mask
    x = torch.randn(args.batch, wide, size, size)
    rows = weight.view(wide, -1).to_sparse_csr()

    def csr() -> Tensor:
        columns = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
        return rows @ columns

    runs: dict[str, Callable[[], object]] = {
        'torch.sparse CSR x im2col': csr,
        'wide, executed densely': partial(F.conv2d, x, weight, padding=1),
    }
    try:
        modules = importlib.import_module('sparseprop.modules')
        conv = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        conv.weight.data = weight
        runs['SparseProp'] = partial(modules.SparseConv2d.from_dense(conv), x)
    except ImportError as error:
        missing.add(f'SparseProp ({error})')
    runs['sift_mm'] = sparse_forward(x, weight, mask, 1)[0]
    other = partial(
        F.conv2d, torch.randn(args.batch, c, size, size), dense, padding=1
    )
    with torch.inference_mode():
        for name, run in runs.items():
            yield from compare(
                f'{c} at {size}, 3x3 forward, {name}',
                sparsity,
                run,
                {'dense original': other},
                min(args.rounds, 5),
            )


def plot(rows: list[Row], path: str) -> None:
    """Plot the time over the dense network's against the sparsity."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4))
    axis.axhline(1, color='black', linewidth=1, label='dense, eager')
    for what in dict.fromkeys(row.what for row in rows):
        line = [r for r in rows if r.what == what and r.over == 'dense, eager']
        low, high = zip(*(row.quartiles for row in line), strict=True)
        at = [row.sparsity for row in line]
        axis.plot(at, [row.ratio for row in line], marker='o', label=what)
        axis.fill_between(at, low, high, alpha=0.2)
    axis.set(xlabel='sparsity', ylabel='seconds over dense', ylim=(0, None))
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and print a table, or JSON."""
    known = (layers, networks, training, peers, blocks)
    parts = {f.__name__: f for f in known}
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('parts', nargs='*', help=', '.join(parts))
    parser.add_argument(
        '--sparsities', type=float, nargs='+', default=[0.5, 0.75, 0.9]
    )
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument(
        '--no-wide',
        action='store_true',
        help='leave out the wide network executed densely, which is slow',
    )
    parser.add_argument('--json', action='store_true')
    parser.add_argument(
        '--draw', metavar='PNG', help='figure of the whole networks'
    )
    args = parser.parse_args()
    unknown = set(args.parts) - set(parts)
    if unknown:
        parser.error(f'{unknown.pop()!r} is none of {", ".join(parts)}')
    keep_freed_memory()  # For dense and sparse networks alike.
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    for part in args.parts or parts:
        for sparsity in args.sparsities:
            for row in parts[part](args, sparsity):
                rows.append(row)
                if not args.json:
                    print(row, flush=True)
    if args.draw:
        plot(rows, args.draw)
    where = dict(
        torch=torch.__version__,
        threads=args.threads,
        batch=args.batch,
        cpu=torch.backends.cpu.get_cpu_capability(),
        missing=sorted(missing),
    )
    if args.json:
        print(json.dumps(where | dict(rows=[r._asdict() for r in rows])))
    else:
        print(where)


if __name__ == '__main__':
    main()
