# DeepLabV3+ on the Cityscapes-format set that
# demo/fashion_scenes.py composes, from the chain's
# classifier.
_base_ = [
    'mmseg::_base_/models/deeplabv3plus_r50-d8.py',
    'mmseg::_base_/datasets/cityscapes.py',
    'mmseg::_base_/default_runtime.py',
]

custom_imports = dict(imports=['sift_mm'], allow_failed_imports=False)

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(128, 256)),
    pretrained=None,
    backbone=dict(
        type='SparseIFTResNet',
        depth=18,
        base_channels=16,
        stem_channels=16,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        norm_cfg=norm_cfg,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/chain/dense/seed0/classifier/epoch_1.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(
        in_channels=128,
        channels=48,
        dilations=(1, 2, 4),
        c1_in_channels=16,
        c1_channels=16,
        num_classes=10,
        norm_cfg=norm_cfg,
        # Two thirds of the pixels are trees, the second class.
        loss_decode=dict(class_weight=[1, 0.2, 1, 1, 1, 1, 1, 1, 1, 1]),
    ),
    auxiliary_head=dict(
        in_channels=64, channels=32, num_classes=10, norm_cfg=norm_cfg
    ),
)

# The ten of Cityscapes' classes whose parts the items and trees play.
metainfo = dict(
    classes=(
        'traffic sign',
        'vegetation',
        'person',
        'rider',
        'car',
        'truck',
        'bus',
        'train',
        'motorcycle',
        'bicycle',
    ),
    palette=[
        [220, 220, 0],
        [107, 142, 35],
        [220, 20, 60],
        [255, 0, 0],
        [0, 0, 142],
        [0, 0, 70],
        [0, 60, 100],
        [0, 80, 100],
        [0, 0, 230],
        [119, 11, 32],
    ],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 128), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root='data/fashion_scenes',
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    dataset=dict(
        data_root='data/fashion_scenes',
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=15),
    dict(
        type='CosineAnnealingLR', by_epoch=False, begin=15, end=200, T_max=185
    ),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=200, val_interval=200)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=50, max_keep_ckpts=2
    ),
)
