"""Write the table of backbones: layers that SparseIFT replaces in each."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from isoflop_table import ROOT, write_table

from sift_mm.cli.entry import Parser, entry_point
from sift_mm.engine.plan import MaskPlan
from sift_mm.layers import Composite, Wide

DOCS = ROOT / 'docs' / 'backbones.md'
FAMILIES = ('wide', 'parallel', 'factorized', 'doped')
# As the libraries' own configs have them.
NETWORKS: dict[str, dict[str, Any]] = {
    'MobileNetV2': dict(type='mmpretrain.MobileNetV2'),
    'ResNeXt-50': dict(type='mmpretrain.ResNeXt', depth=50),
    'Res2Net-50': dict(type='mmpretrain.Res2Net', depth=50),
    'RegNetX-400MF': dict(type='mmpretrain.RegNet', arch='regnetx_400mf'),
    'ConvNeXt-T': dict(type='mmpretrain.ConvNeXt', arch='tiny'),
    'Swin-T': dict(type='mmpretrain.SwinTransformer', arch='tiny'),
    'ViT-S': dict(type='mmpretrain.VisionTransformer', arch='deit-small'),
    'HRNet-W18': dict(type='mmpretrain.HRNet', arch='w18'),
    'VGG-11': dict(type='mmpretrain.VGG', depth=11),
    'PVTv2-B0': dict(
        type='mmdet.PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
    ),
    'CSPDarknet (YOLOX-s)': dict(
        type='mmdet.CSPDarknet', deepen_factor=0.33, widen_factor=0.5
    ),
    'CSPNeXt (RTMDet-tiny)': dict(
        type='mmdet.CSPNeXt',
        deepen_factor=0.167,
        widen_factor=0.375,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='SiLU'),
    ),
    'MiT-B0 (SegFormer)': dict(type='mmseg.MixVisionTransformer'),
    'MobileNetV3-S': dict(type='mmpretrain.MobileNetV3', arch='small'),
    'EfficientNet-B0': dict(type='mmpretrain.EfficientNet', arch='b0'),
    'ShuffleNetV2': dict(type='mmpretrain.ShuffleNetV2'),
    'DenseNet-121': dict(type='mmpretrain.DenseNet', arch='121'),
    'Inception V3': dict(type='mmpretrain.InceptionV3', aux_logits=False),
    'SE-ResNet-50': dict(type='mmpretrain.SEResNet', depth=50),
    'ConvNeXt V2-A': dict(
        type='mmpretrain.ConvNeXt',
        arch='atto',
        layer_scale_init_value=0.0,
        use_grn=True,
    ),
    'PoolFormer-S12': dict(type='mmpretrain.PoolFormer', arch='s12'),
    'MLP-Mixer-B': dict(type='mmpretrain.MlpMixer', arch='b'),
    'EVA-02-Ti': dict(
        type='mmpretrain.ViTEVA02', arch='t', img_size=224, patch_size=14
    ),
    'MobileViT-XXS': dict(type='mmpretrain.MobileViT', arch='xx_small'),
    'EdgeNeXt-XXS': dict(type='mmpretrain.EdgeNeXt', arch='xxsmall'),
    'DaViT-T': dict(type='mmpretrain.DaViT', arch='t'),
    'Darknet-53 (YOLOv3)': dict(type='mmdet.Darknet', depth=53),
    'ERFNet': dict(type='mmseg.ERFNet'),
    'STDC1': dict(
        type='mmseg.STDCNet',
        stdc_type='STDCNet1',
        in_channels=3,
        channels=(32, 64, 256, 512, 1024),
        bottleneck_type='cat',
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
    ),
    'Twins-PCPVT-S': dict(
        type='mmseg.PCPVT',
        embed_dims=[64, 128, 320, 512],
        num_heads=[1, 2, 5, 8],
        mlp_ratios=[8, 8, 4, 4],
        qkv_bias=True,
        depths=[3, 4, 6, 3],
        sr_ratios=[8, 4, 2, 1],
    ),
}
# Reasons, in words for a table.
REFUSALS = {
    'ConvNeXt V2-A': 'the response norm of its blocks mixes channels',
    'Res2Net-50': 'its blocks split each width into parts of a fixed size',
    'STDC1': "the output of each of its layers is part of its block's",
}


def cell(network: str, family: str) -> str:
    """Return the number of layers and the ratio, or the refusal."""
    backbone = NETWORKS[network]
    library = backbone['type'].partition('.')[0]
    import_module(f'{library}.models')
    models = import_module(f'{library}.registry').MODELS
    member: dict[str, Any] = dict(family=family, sparsity=0.75)
    try:
        model = models.build(dict(member, type='SparseIFT', backbone=backbone))
    except ValueError as error:
        return f'refused: {REFUSALS.get(network, error)}'
    layers = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, (Composite, Wide)) and '.low_rank' not in name
    ]
    plan = MaskPlan(model)
    return f'{len(layers)}, {plan.ratio:.4f}'


def row(network: str) -> str:
    """Return a row of the table."""
    cells = [network, *(cell(network, family) for family in FAMILIES)]
    return f'| {" | ".join(cells)} |'


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Write the table, row by row."""
    parser = Parser(description=__doc__)
    parser.add_argument('--out', type=Path, default=DOCS)
    args = parser.parse_args(argv)
    lines = []
    for network in NETWORKS:
        lines.append(row(network))
        print(lines[-1], flush=True)
    write_table(DOCS, args.out, lines)


if __name__ == '__main__':
    main()
