"""Report of the study: tables, differences with intervals, figures, text."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import isinf, isnan
from pathlib import Path

from study_grid import QUESTIONS, Question, plan
from study_rows import (
    BITS,
    INNER,
    SPARSITIES,
    WIDTH,
    Row,
    dense,
    member,
    wide,
)
from study_tools import plot_panels, rank_correlation

from sift_mm.cli.reports.markdown import Marks, markdown_table
from sift_mm.cli.reports.statistics import (
    Estimate,
    Summary,
    paired_difference,
    summarize,
)

#: Columns of the results that may explain the accuracy, and their names.
TOPOLOGY = {
    'itop': 'ITOP rate',
    'ramanujan_gap': 'Ramanujan gap',
    'imdb': 'its mean over regular subgraphs (IMDB)',
    'weighted_gap': 'weighted spectral gap',
    'imsg': 'its mean over regular subgraphs (IMSG)',
}
#: Results by row name and seed.
Results = Mapping[str, Mapping[int, Mapping[str, str]]]


def values(results: Results, row: Row) -> dict[int, float]:
    """Return the metric of each finished seed of a network, in percent."""
    scale = 100 if row.metric.startswith('coco/') else 1
    found = results.get(row.name, {})
    return {seed: scale * float(run['value']) for seed, run in found.items()}


def digits_of(row: Row) -> int:
    """Return the decimals of a network's metric in tables."""
    return 4 if row.metric == BITS else 2


def interval(estimate: Estimate, digits: int = 2) -> str:
    """Return the interval of a value in words."""
    if isinf(estimate.low):
        return 'one seed'
    return f'{estimate.low:+.{digits}f} to {estimate.high:+.{digits}f}'


def verdict(gain: Estimate | None, row: Row) -> str:
    """Return the conclusion from a network's difference from another."""
    if gain is None:
        return 'not run yet'
    if not gain.is_clear:
        return 'not clear'
    return 'worse' if row.lower_is_better == (gain.low > 0) else 'better'


def compare(results: Results, one: Row, other: Row) -> Estimate | None:
    """Return the difference of two networks; None if not run."""
    return paired_difference(values(results, one), values(results, other))


def gain_cells(results: Results, one: Row, other: Row) -> dict[str, str]:
    """Return the cells of the difference of two networks."""
    gain, digits = compare(results, one, other), digits_of(one)
    if gain is None:  # No seed is common to both.
        return dict.fromkeys(('difference', '95 % interval', 'it is'), '-')
    return {
        'difference': f'{gain.value:+.{digits}f}',
        '95 % interval': interval(gain, digits),
        'it is': verdict(gain, one),
    }


def describe(results: Results, row: Row, base: Row) -> dict[str, str]:
    """Return a table's line: costs, accuracy and difference from a base."""
    found = [*values(results, row).values()]
    costs = next(iter(results[row.name].values()))
    gain = gain_cells(results, row, base)
    if row == base:
        gain = dict.fromkeys(gain, '-')
    return {
        'network': row.name,
        'MFLOPs': f'{float(costs["flops"]) / 1e6:.3f}',
        'active': f'{float(costs["active_parameters"]) / 1e3:.1f} k',
        row.metric.rpartition('/')[2]: summarize(found).to_text(
            digits_of(row)
        ),
        'runs': str(len(found)),
        **gain,
    }


def conclude(results: Results, question: Question) -> str:
    """Return the sentence on a question, as far as the data answer it."""
    base, *others = question.rows
    pairs = [*((row, base) for row in others), *question.pairs]
    counts = Counter(verdict(compare(results, *p), p[0]) for p in pairs)
    parts = [
        f'{counts[name]} {name}'
        for name in ('better', 'worse', 'not clear', 'not run yet')
        if counts[name]
    ]
    note = ''
    if base.lower_is_better:
        note = ' Lower is better: a gain is a difference below zero.'
    return f'Of {len(pairs)} differences: {", ".join(parts)}.{note}'


def is_answered(results: Results, question: Question) -> bool:
    """Return whether any network beside a question's first was run."""
    return any(values(results, row) for row in question.rows[1:])


def section(results: Results, question: Question) -> str:
    """Return a question's section: sentence, table, further pairs."""
    base = question.rows[0]
    lines = [
        describe(results, row, base)
        for row in question.rows
        if values(results, row)
    ]
    parts = [
        f'## {question.title}',
        conclude(results, question),
        markdown_table(lines),
    ]
    pairs = [
        {'network': one.name, 'less': other.name}
        | gain_cells(results, one, other)
        for one, other in question.pairs
        if compare(results, one, other)
    ]
    if pairs:
        parts.append(markdown_table(pairs))
    return '\n\n'.join(parts)


def waiting(results: Results) -> str:
    """Return the section on questions without a run."""
    lines = [
        {'question': question.title, 'networks': str(len(question.rows))}
        for question in QUESTIONS
        if not is_answered(results, question)
    ]
    if not lines:
        return ''
    return f'## Not run yet\n\n{markdown_table(lines)}'


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
    members = {f: [member(f, s) for s in SPARSITIES] for f in ('wide', *INNER)}
    rules = {
        rule: [wide(s, rule) for s in SPARSITIES]
        for rule in ('Static', 'SET', 'RigL')
    }
    panels = [
        (
            title,
            {
                name: points
                for name, rows in networks.items()
                if (points := [*known_points(results, rows)])
            },
        )
        for title, networks in (
            ('Members, RigL', members),
            ('Sparse Wide', rules),
        )
    ]
    base = [*values(results, dense()).values()]
    bands = {'dense': summarize(base)} if base else {}
    plot_panels(path, 'test accuracy, %', bands, panels)


def known_points(
    results: Results, rows: Sequence[Row]
) -> Iterator[tuple[float, Summary]]:
    """Yield sparsity and accuracy of the networks that were run."""
    for sparsity, row in zip(SPARSITIES, rows, strict=True):
        if found := values(results, row):
            yield sparsity, summarize([*found.values()])


def write_report(results: Results, page: Path, figure: Path) -> None:
    """Write tables and sentences between the marks of a page, and the figure.

    Raises:
        UserError: If the page lacks the marks.
    """
    marks = Marks(page, 'study')
    plot(results, figure)
    number = sum(map(len, results.values()))
    parts = (
        f'{number} runs of {len([*plan()])} are finished.',
        f'![Accuracy against sparsity]({figure.relative_to(page.parent)})',
        *(
            section(results, question)
            for question in QUESTIONS
            if is_answered(results, question)
        ),
        topology(results),
        waiting(results),
    )
    marks.fill('\n\n'.join(filter(None, parts)))


def group(runs: Sequence[Mapping[str, str]]) -> Results:
    """Return runs by row name and seed."""
    found: dict[str, dict[int, Mapping[str, str]]] = {}
    for run in runs:
        found.setdefault(run['row'], {})[int(run['seed'])] = run
    return found
