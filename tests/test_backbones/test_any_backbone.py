"""SparseIFT around the libraries' backbones: FLOPs, interface, weights."""

import copy
import pickle
import re

import pytest
import torch
from backbones_table import FAMILIES, row
from mmdet.registry import MODELS as DET
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmpretrain.registry import MODELS
from mmseg.registry import MODELS as SEG
from torch.utils._pytree import tree_leaves

from helpers.runs import ROOT
from sift_mm.engine.plan import MaskPlan
from sift_mm.flops import count_flops, on_meta
from sift_mm.layers import Composite, Wide


def vit(width, layers, heads):
    return dict(
        embed_dims=width,
        num_layers=layers,
        num_heads=heads,
        feedforward_channels=4 * width,
    )


# Each as small as it gets.
STAGES = dict(depths=[1, 1, 2, 1])
PYRAMID = dict(embed_dims=16, num_layers=[1, 1, 1, 1])
RESNEXT = dict(depth=50, groups=4, width_per_group=4, base_channels=16)
CONVNEXT = dict(STAGES, channels=[16, 32, 64, 128])
SWIN = dict(STAGES, embed_dims=24, num_heads=[1, 2, 4, 8])
REGNET = dict(w0=16, wa=16.0, wm=2.0, group_w=8, depth=6, bot_mul=1.0)
CSP = dict(widen_factor=0.25, deepen_factor=0.33)
NETWORKS = {
    'mobilenet': (MODELS, 'MobileNetV2', dict(widen_factor=0.5)),
    'resnext': (MODELS, 'ResNeXt', RESNEXT),
    'regnet': (MODELS, 'RegNet', dict(arch=REGNET)),
    'convnext': (MODELS, 'ConvNeXt', dict(arch=CONVNEXT)),
    'swin': (MODELS, 'SwinTransformer', dict(arch=SWIN)),
    'vit': (MODELS, 'VisionTransformer', dict(arch=vit(48, 3, 3))),
    'vgg': (MODELS, 'VGG', dict(depth=11)),
    'pvt': (DET, 'PyramidVisionTransformerV2', PYRAMID),
    'darknet': (DET, 'CSPDarknet', CSP),
    'mit': (SEG, 'MixVisionTransformer', PYRAMID),
}
DARKNET = dict(type='CSPDarknet', **NETWORKS['darknet'][2])


def cfg(name='darknet', family='wide', **options):
    _, kind, arguments = NETWORKS[name]
    backbone = dict(type=kind, **copy.deepcopy(arguments))
    base = dict(type='SparseIFT', backbone=backbone, family=family)
    return dict(base, sparsity=0.75) | options


def sparse(name='darknet', family='wide', **options):
    return NETWORKS[name][0].build(cfg(name, family, **options))


def shapes(model, image):
    return [x.shape for x in tree_leaves(model(image)) if x is not None]


@pytest.mark.parametrize(
    'name, family',
    [
        (name, family)
        for name in NETWORKS
        for family in FAMILIES
        # Members that replace layer by layer run on one network.
        if family == 'wide' or name == 'vit'
    ],
)
def test_equal_flops_and_the_same_interface(name, family):
    model = sparse(name, family)
    plan = MaskPlan(model)
    assert abs(plan.ratio - 1) < 1e-3
    assert plan.parameters and plan.solved_sparsity == pytest.approx(
        0.75, abs=0.05
    )
    twin = model.dense_twin()
    assert type(twin) in type(model).__mro__
    assert type(twin) is not type(model)
    image = torch.empty(2, 3, 224, 224, device='meta')
    ours, theirs = (on_meta(one, norms=False) for one in (model, twin))
    with torch.no_grad():
        assert shapes(ours, image) == shapes(theirs, image)
    if hasattr(twin, 'out_channels'):
        assert model.out_channels == twin.out_channels
    # All that was not replaced has its name.
    replaced = tuple(
        n for n, m in model.named_modules() if isinstance(m, (Composite, Wide))
    )
    names = {n for n in twin.state_dict() if not n.startswith(replaced)}
    assert names <= model.state_dict().keys()


@pytest.mark.parametrize('kind, places', [('DCN', 18), ('DCNv2', 27)])
def test_deformable_convolutions_stay(kind, places):
    options = dict(type='ResNeXt', depth=50, groups=4, base_channels=16)
    plain = DET.build(options)
    backbone = dict(
        options,
        dcn=dict(type=kind, deform_groups=1),
        stage_with_dcn=(False, False, False, True),
    )
    model = DET.build(dict(cfg(), backbone=backbone))
    image = (224, 224)
    # In each block of the last stage, the plain convolution and one from its
    # 128 channels to two coordinates, or a weight too, for each of 9 places.
    more = 3 * 2 * 9 * 128 * places * 7 * 7
    dense = count_flops(model.dense_twin(), image).total
    assert dense == count_flops(plain, image).total + more
    plan = MaskPlan(model)
    assert abs(plan.ratio - 1) < 1e-3
    stages = {name.split('.')[0] for name in plan.parameters}
    assert stages == {'layer1', 'layer2', 'layer3'}


def test_a_rule_of_the_whole_model_leaves_replaced_layers_alone():
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            init_cfg=dict(type='TruncNormal', layer='Linear', std=0.5),
            backbone=cfg('vit'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=48),
        )
    )
    model.init_weights()
    for name, layer in model.backbone.named_modules():
        if isinstance(layer, Wide):
            # The variance under masks is that of the layer that was.
            spread = layer.weight.detach().std()
            assert float(spread) == pytest.approx(layer.std, rel=0.1)
            assert layer.std < 0.3, name


def test_layers_that_stay_are_drawn_by_the_librarys_rule():
    torch.manual_seed(0)
    model = sparse('darknet')
    twin = model.dense_twin()
    for one in (model, twin):
        one.init_weights()
    for name, weight in twin.named_parameters():
        if weight.dim() > 1 and weight.shape == getattr(
            model.get_parameter(name), 'shape', None
        ):
            spread = model.get_parameter(name).detach().std()
            assert float(spread) == pytest.approx(
                float(weight.detach().std()), rel=0.3
            ), name


def test_a_checkpoint_is_loaded_and_its_keys_are_checked(tmp_path):
    source = sparse('darknet')
    path = tmp_path / 'darknet.pth'
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save({'state_dict': state}, path)
    init = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    model = sparse('darknet', init_cfg=init)
    model.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    other = sparse('darknet', 'parallel', init_cfg=init)
    with pytest.raises(ValueError, match='missing.*layers.0.*unknown'):
        other.init_weights()
    missing = next(k for k in state if k.endswith('bn.weight'))
    del state[missing]
    torch.save({'state_dict': state}, path)
    with pytest.raises(
        ValueError, match=re.escape(missing.removeprefix('backbone.'))
    ):
        sparse('darknet', init_cfg=init).init_weights()


def test_a_checkpoint_that_a_segmentor_hands_on(tmp_path):
    source = sparse('vit')
    path = str(tmp_path / 'vit.pth')
    torch.save(source.state_dict(), path)
    head = dict(type='FCNHead', in_channels=48, channels=8, num_classes=2)
    model = SEG.build(
        dict(
            type='EncoderDecoder',
            pretrained=path,
            backbone=ConfigDict(cfg('vit'), _scope_='mmpretrain'),
            decode_head=head,
        )
    )
    model.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[key]), key
    with pytest.raises(ValueError, match='init_cfg=.* leave one out'):
        sparse('vit', pretrained=path, init_cfg=dict(type='Pretrained'))
    plain = sparse('vit', None, sparsity=None, pretrained=path)
    assert plain.init_cfg == dict(type='Pretrained', checkpoint=path)


def test_copies_are_of_the_same_class():
    model = sparse('darknet')
    counts = MaskPlan(model).counts
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        assert MaskPlan(other).counts == counts


def test_building_does_not_log_every_weight(capsys):
    sparse('vit')
    assert 'init_weights' not in ''.join(capsys.readouterr())


def test_without_a_family_it_is_the_librarys_own():
    model = DET.build(dict(type='SparseIFT', backbone=DARKNET))
    assert type(model) is type(DET.build(DARKNET))


PRETRAINED = dict(init_cfg=dict(type='Pretrained', checkpoint='a.pth'))


def test_weights_of_the_dense_network_are_refused():
    with pytest.raises(ValueError, match='weights of a dense'):
        sparse(backbone=DARKNET | PRETRAINED)


def test_where_nothing_can_be_replaced_it_says_why():
    small = dict(base_channels=16, stem_channels=16, base_width=4)
    backbone = dict(type='Res2Net', depth=50, **small)
    with pytest.raises(
        ValueError, match=r'nothing to replace in Res2Net: .* another family'
    ):
        MODELS.build(cfg(backbone=backbone))


@pytest.mark.parametrize('meant', ['hook', 'unmasked', None])
def test_a_run_without_masks_stops_unless_it_is_meant(meant):
    model = sparse('darknet', unmasked=meant == 'unmasked')
    model.train()
    model.masks_attached = meant == 'hook'
    image = torch.rand(1, 3, 64, 64)
    model(image)  # Outside of a run anything goes.
    MessageHub.get_current_instance().update_info('max_iters', 10)
    if meant:
        model(image)
        return
    with pytest.raises(RuntimeError, match='unmasked=True'):
        model(image)
    with torch.no_grad():
        model(image)


def test_the_table_is_what_its_command_writes():
    assert (
        row('CSPNeXt (RTMDet-tiny)')
        in (ROOT / 'docs/backbones.md').read_text()
    )


@pytest.mark.parametrize(
    'backbone, shape, channels',
    [
        # Of one channel, and of a size that no other is.
        (dict(type='LeNet5', num_classes=10), (32, 32), 1),
        # Of a size that the config says, and keeps to itself.
        (
            dict(
                type='SwinTransformerV2',
                arch=dict(SWIN, extra_norm_every_n_blocks=0),
                img_size=128,
                window_size=4,
            ),
            (128, 128),
            3,
        ),
    ],
)
def test_flops_are_matched_on_the_image_that_a_network_reads(
    backbone, shape, channels
):
    model = MODELS.build(cfg(backbone=backbone))
    assert (model.match_shape, model.image_channels) == (shape, channels)
    assert MaskPlan(model).ratio == pytest.approx(1, abs=1e-3)


def test_a_network_that_reads_more_than_an_image_is_named():
    backbone = dict(type='MaskFeatViT', arch=vit(16, 1, 1))
    model = MODELS.build(cfg(family='parallel', backbone=backbone))
    with pytest.raises(
        ValueError, match="of MaskFeatViT cannot.*argument: 'mask'"
    ):
        _ = MaskPlan(model).solved_sparsity


def test_a_block_that_another_looks_into_keeps_what_that_reads():
    # The block of a Conformer gives its inside to the transformer beside it.
    arch = dict(embed_dims=32, channel_ratio=1, num_heads=2, depths=4)
    backbone = dict(type='Conformer', arch=arch)
    model = MODELS.build(cfg(backbone=backbone))
    block = model.conv_trans_2.cnn_block
    # It gives what conv2 gives; the other block adds to what conv1 gives.
    assert isinstance(block.conv1, Wide) and isinstance(block.conv2, Wide)
    assert block.conv1.out_channels > block.conv2.out_channels == 32
    assert not isinstance(block.conv3, Wide)
    assert not isinstance(model.conv_trans_2.fusion_block.conv1, Wide)
    assert MaskPlan(model).ratio == pytest.approx(1, abs=1e-3)
