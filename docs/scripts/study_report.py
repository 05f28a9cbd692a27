"""Report of the study: tables, differences with intervals, figures, text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isinf, isnan
from pathlib import Path

from study_grid import (
    INNER,
    QUESTIONS,
    SPARSITIES,
    WIDTH,
    Question,
    Row,
    dense,
    member,
    plan,
    wide,
)

from sift_mm.cli.reports.statistics import (
    Estimate,
    paired_difference,
    rank_correlation,
    summarize,
)
from sift_mm.cli.sweep_report import markdown_table
from sift_mm.errors import UserError

BEGIN, END = '<!-- study: begin -->', '<!-- study: end -->'
#: Columns of the results that may explain the accuracy, and their names.
TOPOLOGY = {
    'itop': 'ITOP rate',
    'ramanujan_gap': 'Ramanujan gap',
    'imdb': 'its mean over regular subgraphs (IMDB)',
    'weighted_gap': 'weighted spectral gap',
    'imsg': 'its mean over regular subgraphs (IMSG)',
}
# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7')
#: Results by row name and seed.
Results = Mapping[str, Mapping[int, Mapping[str, str]]]


def values(results: Results, row: Row) -> dict[int, float]:
    """Return the metric of each finished seed of a network, in percent."""
    scale = 100 if row.metric.startswith('coco/') else 1
    found = results.get(row.name, {})
    return {seed: scale * float(run['value']) for seed, run in found.items()}


def interval(estimate: Estimate, digits: int = 2) -> str:
    """Return the interval of a value in words."""
    if isinf(estimate.low):
        return 'one seed'
    return f'{estimate.low:+.{digits}f} to {estimate.high:+.{digits}f}'


def verdict(gain: Estimate | None) -> str:
    """Return the conclusion from a difference."""
    if gain is None:
        return 'not run yet'
    if not gain.is_clear:
        return 'not clear'
    return 'higher' if gain.low > 0 else 'lower'


def compare(results: Results, one: Row, other: Row) -> Estimate | None:
    """Return the difference of two networks; None if not run."""
    return paired_difference(values(results, one), values(results, other))


def gain_cells(gain: Estimate | None) -> dict[str, str]:
    """Return the cells of a difference."""
    return {
        'difference': f'{gain.value:+.2f}' if gain else '-',
        '95 % interval': interval(gain) if gain else '-',
        'it is': verdict(gain),
    }


def describe(results: Results, row: Row, base: Row) -> dict[str, str]:
    """Return a table's line: costs, accuracy and difference from a base."""
    found = [*values(results, row).values()]
    metric = row.metric.rpartition('/')[2]
    cells = dict.fromkeys(('MFLOPs', 'active', metric), '-')
    if found:
        costs = next(iter(results[row.name].values()))
        summary = summarize(found)
        spread = f' ± {summary.deviation:.2f}' if summary.n > 1 else ''
        cells = {
            'MFLOPs': f'{float(costs["flops"]) / 1e6:.3f}',
            'active': f'{float(costs["active_parameters"]) / 1e3:.1f} k',
            metric: f'{summary.mean:.2f}{spread}',
        }
    gain = gain_cells(compare(results, row, base))
    if row == base and found:
        gain = dict.fromkeys(gain, '-')
    return {'network': row.name, **cells, 'runs': str(len(found)), **gain}


def conclude(results: Results, question: Question) -> str:
    """Return the sentence on a question, as far as the data answer it."""
    base, *others = question.rows
    pairs = [*((row, base) for row in others), *question.pairs]
    counts = Counter(verdict(compare(results, *pair)) for pair in pairs)
    parts = [
        f'{counts[name]} {text}'
        for name, text in (
            ('higher', 'above zero'),
            ('lower', 'below zero'),
            ('not clear', 'not clear'),
            ('not run yet', 'not run yet'),
        )
        if counts[name]
    ]
    return f'Of {len(pairs)} differences: {", ".join(parts)}.'


def section(results: Results, question: Question) -> str:
    """Return a question's section: sentence, table, further pairs."""
    base = question.rows[0]
    lines = [describe(results, row, base) for row in question.rows]
    parts = [
        f'## {question.title}',
        conclude(results, question),
        markdown_table(lines),
    ]
    if question.pairs:
        pairs = [
            {'network': one.name, 'less': other.name}
            | gain_cells(compare(results, one, other))
            for one, other in question.pairs
        ]
        parts.append(markdown_table(pairs))
    return '\n\n'.join(parts)


def topology(results: Results) -> str:
    """Return the section on quantities of the masks against accuracy."""
    runs = [
        run
        for name, seeds in results.items()
        if name.startswith(f'w{WIDTH}/')
        for run in seeds.values()
    ]
    lines = []
    for column, name in TOPOLOGY.items():
        known = [run for run in runs if run[column]]
        found = rank_correlation(
            [float(run[column]) for run in known],
            [float(run['value']) for run in known],
        )
        is_known = not isnan(found.value)
        lines.append(
            {
                'quantity': name,
                'rank correlation': f'{found.value:+.2f}' if is_known else '-',
                '95 % interval': interval(found) if is_known else '-',
                'runs': str(found.n),
            }
        )
    return '\n\n'.join(
        (
            '## Does the topology of the masks explain the accuracy?',
            "Spearman's correlation with the accuracy over all runs of width "
            f'{WIDTH} with masks.\nIt mixes members, sparsities and '
            'algorithms; a correlation is no cause.',
            markdown_table(lines),
        )
    )


def plot(results: Results, path: Path) -> None:
    """Plot accuracy against sparsity: members, and rules of Sparse Wide."""
    import matplotlib

    matplotlib.use('svg')
    import matplotlib.pyplot as plt

    plt.rcParams['svg.hashsalt'] = 'sift_mm'  # The same file each time.
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    members = {f: [member(f, s) for s in SPARSITIES] for f in ('wide', *INNER)}
    rules = {
        rule: [wide(s, rule) for s in SPARSITIES]
        for rule in ('Static', 'SET', 'RigL')
    }
    panels = {'Members, RigL': members, 'Sparse Wide': rules}
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        base = [*values(results, dense()).values()]
        if base:
            found = summarize(base)
            low, high = (found.mean + s * found.deviation for s in (-1, 1))
            axis.axhline(found.mean, color='0.4', label='dense')
            axis.axhspan(low, high, color='0.4', alpha=0.15, lw=0)
        for i, (name, rows) in enumerate(lines.items()):
            shown = [
                (s + 0.008 * i, summarize([*v.values()]))
                for s, row in zip(SPARSITIES, rows, strict=True)
                if (v := values(results, row))
            ]
            if shown:
                axis.errorbar(
                    [x for x, _ in shown],
                    [y.mean for _, y in shown],
                    [y.deviation for _, y in shown],
                    color=COLOURS[i],
                    marker='osD^'[i],
                    capsize=3,
                    label=name,
                )
        axis.set(title=title, xlabel='sparsity', xticks=SPARSITIES)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(
                loc='upper center',
                bbox_to_anchor=(0.5, -0.2),
                ncols=5,
                fontsize='small',
                frameon=False,
            )
    axes[0].set_ylabel('test accuracy, %')
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={'Date': None})
    plt.close(figure)


def write_report(results: Results, page: Path, figure: Path) -> None:
    """Write tables and sentences between the marks of a page, and the figure.

    Raises:
        UserError: If the page lacks the marks.
    """
    head, opened, rest = page.read_text().partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not (opened and closed):
        raise UserError(f'{page} lacks the lines "{BEGIN}" and "{END}".')
    plot(results, figure)
    number = sum(map(len, results.values()))
    parts = (
        f'{number} runs of {len([*plan()])} are finished.',
        f'![Accuracy against sparsity]({figure.relative_to(page.parent)})',
        *(section(results, question) for question in QUESTIONS),
        topology(results),
    )
    text = '\n\n'.join(parts)
    page.write_text(f'{head}{BEGIN}\n{text}\n{END}{tail}')


def group(runs: Sequence[Mapping[str, str]]) -> Results:
    """Return runs by row name and seed."""
    found: dict[str, dict[int, Mapping[str, str]]] = {}
    for run in runs:
        found.setdefault(run['row'], {})[int(run['seed'])] = run
    return found
