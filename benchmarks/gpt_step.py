"""Time of a Sparse Wide GPT over the dense one of equal FLOPs.

The tiny GPT of configs/gpt on 16 x 256 tokens, and one block of GPT-3 Small
on 2048 tokens, both with random masks at the matched density of their whole
network; and one block of transformers' GPT-2 small on 2 x 1024 tokens, whose
feed-forward pair alone is wider. Each row divides the CPU seconds of one
thread by those of the dense network; both take turns, and a figure is the
median of the ratios, with quartiles.

    python benchmarks/gpt_step.py [tiny block gpt2] [--rounds 7]
        [--sparsities 0.5 0.75]
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from layer_products import compare  # type: ignore[import-not-found]
from torch import Tensor, nn

import sift_mm
from sift_mm.config.building import build
from sift_mm.config.loading import read_config
from sift_mm.deploy import to_sparse
from sift_mm.engine.plan import MaskPlan
from sift_mm.kernels import keep_freed_memory
from sift_mm.models.gpt import LAYERS, Block

CONFIGS = {
    'tiny': 'configs/gpt/gpt-tiny_1xb16-2k_text.py',
    'block': 'configs/gpt/gpt3-small_32xb8-4778_text.py',
}
TOKENS = {'tiny': (16, 256), 'block': (1, 2048), 'gpt2': (2, 1024)}


def network(part: str, **member: Any) -> tuple[nn.Module, float]:
    """Build the network to measure, and return its masks' sparsity, too."""
    if part == 'gpt2':
        return gpt2_block(**member), member.get('sparsity', 0.0)
    cfg = read_config(CONFIGS[part])
    cfg.model.update(member)
    with torch.device('meta'):
        model: Any = build(cfg)
    sparsity = 0.0
    if member:
        sparsity = MaskPlan(model).solved_sparsity
    if part == 'block':
        heads = model.blocks[0].heads
        return Block(model.d_model, model.d_ff, heads, 0.0), sparsity
    model.to_empty(device='cpu')
    model.init_weights()
    return model, sparsity


def gpt2_block(**member: Any) -> nn.Module:
    """Build a block of transformers' GPT-2 small, dense or of a member."""
    import transformers  # type: ignore[import-not-found]

    model = transformers.GPT2Model(transformers.GPT2Config(n_layer=1))
    block = model.h[0]
    if member:
        sift_mm.transform(block, **member)
    return block


def calls(
    part: str, model: nn.Module
) -> tuple[Callable[[nn.Module], Any], Callable[[], Tensor]]:
    """Return a forward pass of the network or a copy, and its loss."""
    if part == 'block':
        x = torch.randn(
            *TOKENS[part], model.get_parameter('q.weight').shape[1]
        )
        return lambda net: net(x), lambda: model(x).square().mean()
    if part == 'gpt2':
        x = torch.randn(*TOKENS[part], 768)
        # A tuple before transformers 5.
        return lambda net: net(x), lambda: sum(
            out.square().mean() for out in [*model(x)]
        )
    x, targets = torch.randint(2048, (2, *TOKENS[part]))
    return lambda net: net(x), lambda: model(x, targets, 'loss')['loss']


def runs(
    part: str, execution: str = '', **member: Any
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return forward pass and training step with AdamW.

    Args:
        part (str): 'tiny' or 'block'.
        execution (str): That of the masks; '' trains without masks.
        **member (Any): Member of the family.
    """
    model, sparsity = network(part, **member)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    training: Any = optimizer
    if execution:
        names = None
        if part != 'gpt2':
            names = [f'*{name}.weight' for name in LAYERS]
        training = sift_mm.SparseTraining(
            model,
            optimizer,
            'Static',
            steps=10**6,
            sparsity=sparsity,
            include=names,
            execution=execution,
        )
    call, loss = calls(part, model)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        training.step()

    step()  # Products are timed.
    fixed = copy.deepcopy(model).eval()
    if execution == 'sparse':
        fixed = to_sparse(fixed, execution='sparse')
    elif execution == 'auto':
        fixed = to_sparse(fixed)
    forward = torch.inference_mode()(partial(call, fixed))
    return forward, step


def compare_with_dense(part: str, sparsity: float, rounds: int) -> None:
    """Compare forward passes and steps with the dense ones, and print."""
    member = dict(family='wide', sparsity=sparsity)
    dense = runs(part)
    for execution in ('sparse', 'auto', 'dense'):
        both = zip(runs(part, execution, **member), dense, strict=True)
        for what, (run, other) in zip(('forward', 'step'), both, strict=True):
            name = f'{part}, {what}, execution={execution}'
            others = {'dense': other}
            for row in compare(
                name, sparsity, run, others, rounds, cpu_seconds
            ):
                print(row, flush=True)


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of a function: other load counts less."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('parts', nargs='*', help='tiny, block, gpt2')
    parser.add_argument(
        '--sparsities', type=float, nargs='+', default=[0.5, 0.75]
    )
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    keep_freed_memory()  # For dense and sparse networks alike.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for part in args.parts or CONFIGS:
        for sparsity in args.sparsities:
            compare_with_dense(part, sparsity, args.rounds)


if __name__ == '__main__':
    main()
