# The demo's RetinaNet, narrower and trained for half as long, from the
# chain's classifier.
_base_ = '../demo/retinanet_r18_fpn_10e_tree-crowns.py'

model = dict(
    backbone=dict(
        base_channels=16,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18-w16_1xb128-1e_fashion-mnist/'
            'epoch_1.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[16, 32, 64, 128]),
)

train_cfg = dict(max_epochs=5, val_interval=5)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=5,
        T_max=5,
        convert_to_iter_based=True,
    ),
]
