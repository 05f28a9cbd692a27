# MMSegmentation's DeepLabV3+ with the ordinary stem of ResNet-18, from the
# dense ResNet-18 of configs/imagenet.
_base_ = (
    'mmseg::deeplabv3plus/'
    'deeplabv3plus_r18b-d8_4xb2-80k_cityscapes-512x1024.py'
)

custom_imports = dict(imports=['sift_mm'], allow_failed_imports=False)

model = dict(
    pretrained=None,
    backbone=dict(
        type='SparseIFTResNet',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/resnet18_8xb32-amp-90e_in1k/epoch_90.pth',
            prefix='backbone.',
        ),
    ),
)
