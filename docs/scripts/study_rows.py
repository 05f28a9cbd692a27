"""Networks of the study."""

from dataclasses import dataclass, replace
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
