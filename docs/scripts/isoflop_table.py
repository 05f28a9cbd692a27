"""Write the iso-FLOP table: every member against the dense network."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from mmpretrain.registry import MODELS

from sift_mm.cli.entry import Parser, entry_point
from sift_mm.engine.plan import MaskPlan, backbone_flops
from sift_mm.flops import count_flops
from sift_mm.flops.isoflop import expansion
from sift_mm.layers import Composite, Factorized, Parallel, families
from sift_mm.layers.plain import size_of

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = {
    'ResNet-18': dict(type='SparseIFTResNet', depth=18),
    'ResNet-34': dict(type='SparseIFTResNet', depth=34),
    'ResNet-50': dict(type='SparseIFTResNet', depth=50),
    'ResNet-18 CIFAR': dict(type='SparseIFTResNet_CIFAR', depth=18),
}
SPARSITIES = (0.5, 0.75, 0.9)
DOCS = ROOT / 'docs' / 'isoflop.md'


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Write the table, row by row."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    text = 'file to write; by default docs/isoflop.md, if the table is whole'
    add('--out', type=Path, help=text)
    add('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    add('--sparsities', nargs='+', type=float, default=SPARSITIES)
    args = parser.parse_args(argv)
    lines = []
    for network, family, sparsity in product(
        args.networks, families(), args.sparsities
    ):
        cells = row(NETWORKS[network], family, sparsity)
        line = ' | '.join([network, family, f'{sparsity:g}', *cells])
        lines.append(f'| {line} |')
        print(lines[-1], flush=True)
    whole = len(lines) == len(NETWORKS) * len(SPARSITIES) * len(families())
    out = args.out or (DOCS if whole else None)
    if out is not None:
        write_table(DOCS, out, lines)


def write_table(page: Path, out: Path, rows: Sequence[str]) -> None:
    """Write a page of the docs anew, with new rows in its table."""
    head, mark, _ = page.read_text().partition('--- |\n')
    out.write_text('\n'.join([head + mark.strip(), *rows, '']))


def row(
    network: dict[str, Any], family: str, sparsity: float
) -> Iterator[str]:
    """Yield the cells of one row, from the size on."""
    member = dict(network, family=family, sparsity=sparsity)
    nominal = MODELS.build(dict(member, flops='nominal'))
    plan = MaskPlan(nominal)
    match = MaskPlan(MODELS.build(dict(member, flops='match')))
    yield words_for(nominal)
    ratio, low, high = layers_ratio(nominal, plan.densities)
    yield f'{ratio:.4f}'
    yield f'{low:.4f} to {high:.4f}'
    yield f'{match.solved_sparsity:.4f}' if match.parameters else 'ranks'
    yield f'{plan.ratio:.5f}'
    yield f'{match.ratio:.5f}'


def words_for(model: Any) -> str:
    """Return the width, branches or ranks of a backbone as text."""
    layers = [m for m in model.modules() if isinstance(m, Composite)]
    width = f'width {model.base_channels}'
    if not layers:
        return width
    if isinstance(layers[0], Parallel):
        return f'{len(layers[0].layers)} branches'
    ranks = [
        size_of(m.u)[1] for m in model.modules() if isinstance(m, Factorized)
    ]
    text = f'ranks {min(ranks)} to {max(ranks)}'
    return f'{width}, {text}' if model.member.kind.widens else text


def layers_ratio(
    model: Any, densities: dict[str, float]
) -> tuple[float, float, float]:
    """Return the FLOP ratio of the replaced layers, and its bounds.

    The bounds follow from rounding: widths go down, ranks up ('doped': down),
    masks to whole weights.
    """
    own, _ = backbone_flops(model)
    channels = next(model.parameters()).shape[1]
    dense = count_flops(model.dense_twin(), model.match_shape, channels)
    names = [
        n
        for n, m in model.named_modules()
        if isinstance(m, Composite) and not n.endswith('.low_rank')
    ] or [n.removesuffix('.weight') for n in densities]
    total = sum(dense.by_module[name] for name in names)
    sparse = sum(own.sparse(densities, name) for name in names)
    # Half a weight a mask, at each position of the layer.
    slack = sum(
        own.of(n) / 2 / model.get_parameter(n).numel() / total
        for n in densities
        if n.startswith(tuple(names))
    )
    # One more rank of each factorised layer.
    rank = sum(
        own.sparse(densities, n) / size_of(m.u)[1] / total
        for n, m in model.named_modules()
        if isinstance(m, Factorized)
    )
    exact = model.dense_base_channels * expansion(model.sparsity) ** 0.5
    low = {'wide': ((exact - 1) / exact) ** 2, 'doped': 1 - rank}
    high = 1 if model.family == 'doped' else 1 + rank
    return (sparse / total, low.get(model.family, 1) - slack, high + slack)


if __name__ == '__main__':
    main()
