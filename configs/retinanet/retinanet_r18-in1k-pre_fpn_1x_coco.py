# MMDetection's RetinaNet R-18 1x on COCO 2017, from the dense ResNet-18 of
# configs/imagenet: stem and first stage frozen, norms in evaluation.
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

custom_imports = dict(imports=['sift_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type='SparseIFTResNet',
        init_cfg=dict(
            checkpoint='work_dirs/resnet18_8xb32-amp-90e_in1k/epoch_90.pth',
            prefix='backbone.',
        ),
    )
)
