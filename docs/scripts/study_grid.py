"""Runs of the study: questions, networks and seeds."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from sift_mm.cli.experiments import Experiment
from sift_mm.cli.sweep_networks import Network
from sift_mm.flops.isoflop import wide_width

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/fashion_mnist/resnet18-w{}_1xb128-12e_fashion-mnist.py'
SPARSITIES = (0.5, 0.75, 0.9)
WIDTH = 4
AP = 'coco/bbox_mAP_50'
BITS = 'text/bits_per_byte'
HOOK = 'custom_hooks.0'
LR = 'optim_wrapper.optimizer.lr'
NOMINAL = 'model.backbone.flops=nominal'
LONG = 'train_cfg.max_epochs=48'
# Inner modules of the authors' CIFAR networks.
INNER = {'parallel': 'norm', 'factorized': 'norm_act', 'doped': 'none'}


@dataclass(frozen=True)
class Row:
    """One network of the study.

    Attributes:
        name (str): Name in tables and of its folder, such as
            'w4/wide-s75-rigl'.
        network (Network): Config and options.
        metric (str): Metric to compare.
        start (Row, optional): Network whose last checkpoint this one starts
            from, seed by seed.
        start_option (str): Setting that loads it, '{}' being its folder.
        seeded (tuple[str, ...]): Keys of the config that get the seed, too.
    """

    name: str
    network: Network
    metric: str = 'accuracy/top1'
    start: 'Row | None' = None
    start_option: str = 'load_from={}/epoch_12.pth'
    seeded: tuple[str, ...] = ()

    @property
    def lower_is_better(self) -> bool:
        """Truth of "a smaller metric is better"."""
        return self.metric == BITS

    def experiment(self, root: Path, seed: int) -> Experiment:
        """Return the run with a seed."""
        found = self.network.experiment(root, seed)
        options = found.cfg_options
        options += tuple(f'{key}={seed}' for key in self.seeded)
        if self.start is not None:
            folder = root / f'{self.start.name}/seed{seed}'
            options += (self.start_option.format(folder),)
        name = f'{self.name}/seed{seed}'
        return replace(found, name=name, cfg_options=options)


def dense(width: int = WIDTH, *settings: str) -> Row:
    """Return a dense network whose first stage has ``width`` channels."""
    config, changes = ROOT / CONFIG.format(width), settings
    if not config.exists():
        config = ROOT / CONFIG.format(WIDTH)
        changes += tuple(
            f'model.{key}={value}'
            for key, value in (
                ('backbone.stem_channels', width),
                ('backbone.base_channels', width),
                ('head.in_channels', 8 * width),
            )
        )
    variant = Network('', cfg_options=settings).variant
    name = '-'.join(filter(None, (f'w{width}/dense', variant)))
    return Row(name, Network(str(config), cfg_options=changes))


def member(
    family: str,
    sparsity: float,
    algorithm: str = 'RigL',
    inner: str | None = None,
    *settings: str,
    width: int = WIDTH,
) -> Row:
    """Return a member of the family at the FLOPs of the dense network."""
    template = CONFIG.format(f'{width}-sift-wide-s75_rigl').replace(
        '_rigl_1xb', '_rigl-1xb'
    )
    network = Network(
        str(ROOT / template),
        family,
        sparsity,
        algorithm,
        inner or INNER.get(family),
        settings,
    )
    return Row(f'w{width}/{network.name}', network)


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


def wide(
    sparsity: float = 0.75, algorithm: str = 'RigL', *settings: str
) -> Row:
    """Return Sparse Wide at the study's width."""
    return member('wide', sparsity, algorithm, None, *settings)


def structured(
    sparsity: float, algorithm: str, name: str, **arguments: int
) -> Row:
    """Return Sparse Wide whose masks have a structure."""
    key = f'{HOOK}.algorithm.structure'
    settings = [f'{key}.type={name}']
    settings += [f'{key}.{k}={value}' for k, value in arguments.items()]
    if name == 'NM':  # One density, so that FLOPs cannot be matched.
        settings.append(NOMINAL)
    return wide(sparsity, algorithm, *settings)


def chain(sparse: str, pretrained: bool) -> Row:
    """Return a RetinaNet on tree crowns, dense ('') or of a member."""
    folder = ROOT / 'configs/chain'
    name = f'chain/retinanet{sparse}{"-pre" if pretrained else ""}'
    config = folder / f'retinanet_r18-w16{sparse}-pre_fpn_5e_tree-crowns.py'
    network = Network(str(config))
    if not pretrained:
        scratch = ('model.backbone.init_cfg=None',)
        return Row(name, replace(network, cfg_options=scratch), AP)
    rule = '_rigl-' if sparse else '_'
    config = folder / f'resnet18-w16{sparse}{rule}1xb128-1e_fashion-mnist.py'
    start = Row(f'chain/resnet18{sparse}', Network(str(config)))
    option = 'model.backbone.init_cfg.checkpoint={}/epoch_1.pth'
    return Row(name, network, AP, start, option)


def gpt(sparsity: float = 0, algorithm: str | None = None) -> Row:
    """Return the tiny GPT on text, dense (0) or Sparse Wide."""
    member = f'-sift-wide-s{100 * sparsity:.0f}_rigl-' if sparsity else '_'
    config = str(ROOT / f'configs/gpt/gpt-tiny{member}1xb16-2k_text.py')
    network = Network(config)
    if sparsity:
        network = Network(config, 'wide', sparsity, algorithm)
    # Other windows of the text for each seed.
    seeded = ('train_dataloader.dataset.seed',)
    return Row(f'gpt/{network.name}', network, BITS, seeded=seeded)


def pruned(sparsity: float, init: str) -> Row:
    """Return the trained wide dense network, pruned at once and tuned."""
    row = wide(
        sparsity,
        'Static',
        f'{HOOK}.init={init}',
        'train_cfg.max_epochs=2',
        f'{LR}=0.01',
    )
    return replace(row, start=dense(wide_width(WIDTH, sparsity)))


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
