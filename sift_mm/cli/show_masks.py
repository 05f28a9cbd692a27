"""Print the masks of a checkpoint, by layer and in total."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sift_mm.cli.arguments import add_json_option
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.cli.reports.text import mask_cells, print_report, table
from sift_mm.sparsity.mask_table import mask_table
from sift_mm.sparsity.structures import describe_structure


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Print as the command line says."""
    parser = Parser(description='Show the masks of a checkpoint, by layer')
    add = parser.add_argument
    add('checkpoint', help='full, compact or published checkpoint')
    add(
        '--spectral',
        action='store_true',
        help='add the Ramanujan gap, its mean over regular subgraphs (IMDB), '
        'the weighted spectral gap and its mean (IMSG); seconds for a layer '
        'of millions of weights',
    )
    add_json_option(parser)
    args = parser.parse_args(argv)
    found = mask_table(args.checkpoint, args.spectral)
    print_report({'checkpoint': args.checkpoint} | found, to_text, args.json)


def to_text(report: dict[str, Any]) -> str:
    """Return the table of a report, with a line on the mask training."""
    rows, total = report['layers'], report['total']
    lines = [
        *((row, ' x '.join(map(str, row['shape']))) for row in rows),
        (total | {'name': 'all'}, f'{len(rows)} layers'),
    ]
    cells = [
        (row['name'], shape, *mask_cells(row).values()) for row, shape in lines
    ]
    header = ('layer', 'shape', *mask_cells(total))
    text = f'{_training(report)}\n\n{table(header, cells, left=2)}'
    if total['itop'] is None:
        text += '\nITOP and DoC are missing: the file has no history of masks.'
    if 'imdb' in total:
        text += '\nSpectral quantities of all are means over layers.'
    return text


def _training(report: Mapping[str, Any]) -> str:
    """Describe algorithm and structure in a line."""
    if report['algorithm'] is None:
        return report['checkpoint']
    text = f'{report["checkpoint"]}: {_rule(report)}'
    if groups := Counter(map(_rule, report['groups'].values())):
        others = '; '.join(f'{rule} ({n})' for rule, n in groups.items())
        text += f' (in groups: {others})'
    return f'{text}, after {report["steps"]:,} steps'


def _rule(options: Mapping[str, Any]) -> str:
    text = options['algorithm']
    if (structure := options['structure']) is not None:
        text += f', structure={describe_structure(structure)}'
    return text


if __name__ == '__main__':
    main()
