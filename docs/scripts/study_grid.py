"""Runs of the study: questions, networks and seeds."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from study_rows import (
    HOOK,
    INNER,
    LONG,
    LR,
    NOMINAL,
    SPARSITIES,
    WIDTH,
    Row,
    chain,
    dense,
    gpt,
    member,
    pruned,
    structured,
    wide,
)

from sift_mm.flops.isoflop import wide_width


@dataclass(frozen=True)
class Question:
    """Question of the paper or its reviewers.

    Attributes:
        key (str): Name on the command line.
        title (str): Heading of its section.
        rows (tuple[Row, ...]): Networks, the one to compare with first.
        seeds (int): Runs of each network.
        pairs (tuple[tuple[Row, Row], ...]): Further networks to compare, the
            second being taken from the first.
    """

    key: str
    title: str
    rows: tuple[Row, ...]
    seeds: int = 3
    pairs: tuple[tuple[Row, Row], ...] = ()


# Masks without structure, and those with one to compare with them.
STRUCTURES = {
    wide(sparsity, algorithm): [
        structured(sparsity, algorithm, 'Block', filters=2),
        structured(sparsity, algorithm, 'Block', filters=4),
        structured(sparsity, algorithm, 'ConstantFanIn'),
    ]
    for sparsity in (0.75, 0.9)
    for algorithm in ('RigL', 'Static')
} | {
    wide(sparsity, algorithm, NOMINAL): [
        structured(sparsity, algorithm, 'NM', n=n, m=4)
    ]
    for sparsity, n in ((0.5, 2), (0.75, 1))
    for algorithm in ('RigL', 'Static')
}
QUESTIONS = (
    Question(
        'rate',
        'Learning rate of the dense network',
        (dense(), dense(WIDTH, f'{LR}=0.05'), dense(WIDTH, f'{LR}=0.2')),
    ),
    Question(
        'main',
        'Does Sparse Wide gain at equal FLOPs?',
        (dense(), wide(0.75), wide(0.9)),
        seeds=5,
    ),
    Question(
        'passes',
        'Passes until the dense network gains less than 0.1',
        (
            dense(),
            dense(WIDTH, 'train_cfg.max_epochs=24'),
            dense(WIDTH, LONG),
        ),
    ),
    Question(
        'long',
        'Does Sparse Wide gain when trained for 48 passes?',
        (dense(WIDTH, LONG), wide(0.75, 'RigL', LONG)),
    ),
    Question(
        'algorithms',
        'Is RigL better than SET, and SET better than a static mask?',
        (
            dense(),
            *(
                wide(sparsity, algorithm)
                for sparsity in SPARSITIES
                for algorithm in ('Static', 'SET', 'RigL')
            ),
        ),
        pairs=tuple(
            (wide(sparsity, one), wide(sparsity, other))
            for sparsity in SPARSITIES
            for one, other in (('RigL', 'SET'), ('SET', 'Static'))
        ),
    ),
    Question(
        'upper',
        'Is a wider dense network the upper bound?',
        (dense(), *(dense(wide_width(WIDTH, s)) for s in SPARSITIES)),
        pairs=tuple(
            (wide(s), dense(wide_width(WIDTH, s))) for s in SPARSITIES
        ),
    ),
    Question(
        'members',
        'Is sparser better, for every member?',
        (
            dense(),
            *(
                member(family, sparsity)
                for family in ('wide', *INNER)
                for sparsity in SPARSITIES
            ),
        ),
        pairs=tuple(
            (member(family, sparser), member(family, sparsity))
            for family in ('wide', *INNER)
            for sparsity, sparser in pairwise(SPARSITIES)
        ),
    ),
    Question(
        'inner',
        'Do norms and activations inside a layer help (Table 7)?',
        (
            dense(),
            *(
                member(family, sparsity, 'RigL', inner)
                for family in INNER
                for sparsity in SPARSITIES
                for inner in ('none', 'norm', 'norm_act')
            ),
        ),
        pairs=tuple(
            (
                member(family, sparsity, 'RigL', inner),
                member(family, sparsity, 'RigL', 'none'),
            )
            for family in INNER
            for sparsity in SPARSITIES
            for inner in ('norm', 'norm_act')
        ),
    ),
    Question(
        'pruning',
        'The same FLOPs by pruning the wide network',
        (
            dense(),
            *(
                wide(sparsity, algorithm)
                for sparsity in SPARSITIES
                for algorithm in ('RigL', 'GMP', 'GraNet')
            ),
            *(
                wide(sparsity, 'Static', f'{HOOK}.init=SNIP')
                for sparsity in SPARSITIES
            ),
            *(
                pruned(sparsity, init)
                for sparsity in SPARSITIES
                for init in ('TopK', 'Random')
            ),
        ),
        pairs=tuple(
            (wide(sparsity), other)
            for sparsity in SPARSITIES
            for other in (
                wide(sparsity, 'GMP'),
                wide(sparsity, 'GraNet'),
                pruned(sparsity, 'TopK'),
            )
        ),
    ),
    Question(
        'structures',
        'Do structures of the masks cost accuracy?',
        (
            dense(),
            *(
                row
                for plain, rows in STRUCTURES.items()
                for row in (plain, *rows)
            ),
        ),
        pairs=tuple(
            (row, plain) for plain, rows in STRUCTURES.items() for row in rows
        ),
    ),
    Question(
        'choices',
        'Choices of mask training, at Sparse Wide 0.75',
        (
            wide(),
            wide(0.75, 'RigL', NOMINAL),
            wide(0.75, 'RigL', f'{HOOK}.distribution=ERK'),
            *(
                wide(0.75, 'RigL', f'{HOOK}.{option}')
                for option in (
                    'drop_fraction=0.1',
                    'drop_fraction=0.5',
                    'interval=50',
                    'interval=200',
                )
            ),
        ),
    ),
    Question(
        'width8',
        'The same on twice the width',
        (
            dense(8),
            *(member('wide', s, width=8) for s in SPARSITIES),
        ),
        seeds=5,
    ),
    Question(
        'transfer',
        'Does the gain transfer to detection?',
        tuple(
            chain(sparse, pretrained)
            for pretrained in (True, False)
            for sparse in ('', '-sift-wide-s75')
        ),
    ),
    Question(
        'gpt',
        'Does Sparse Wide gain on text?',
        (gpt(), gpt(0.75, 'RigL'), gpt(0.5, 'RigL')),
        seeds=5,
    ),
    Question(
        'gpt-rules',
        'Is RigL better than SET, and SET better than a static mask, on text?',
        (
            gpt(),
            *(
                gpt(sparsity, algorithm)
                for sparsity in (0.75, 0.5)
                for algorithm in ('RigL', 'SET', 'Static')
            ),
        ),
        pairs=tuple(
            (gpt(sparsity, one), gpt(sparsity, other))
            for sparsity in (0.75, 0.5)
            for one, other in (('RigL', 'SET'), ('SET', 'Static'))
        ),
    ),
)
BY_KEY = {question.key: question for question in QUESTIONS}
#: Questions in order of worth, each with the number of seeds to reach.
ORDER = (
    *(('rate', 1), ('main', 3), ('passes', 1), ('main', 5), ('long', 1)),
    *(('algorithms', 1), ('structures', 1), ('upper', 1), ('rate', 3)),
    ('members', 1),
    *(
        ('transfer', 3),
        ('passes', 3),
        ('algorithms', 3),
        ('upper', 3),
        ('members', 3),
    ),
    *((q.key, q.seeds) for q in QUESTIONS),
)


def plan(keys: tuple[str, ...] = ()) -> Iterator[tuple[Row, int]]:
    """Yield each network and seed of questions once, by worth.

    Args:
        keys (tuple[str, ...]): Questions; none for all.
    """
    seen = set()
    for key, seeds in ORDER:
        for seed in range(seeds):
            for row in BY_KEY[key].rows:
                if (not keys or key in keys) and (row, seed) not in seen:
                    seen.add((row, seed))
                    yield row, seed
