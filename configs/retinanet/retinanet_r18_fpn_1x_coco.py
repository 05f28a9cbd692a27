# The dense baseline: MMDetection's RetinaNet R-18 1x on COCO 2017, trained
# from scratch as its Sparse-IFT siblings are: no stage is frozen and norms
# learn. The configs named in1k-pre start from pretrained backbones.
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'

custom_imports = dict(imports=['sift_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type='SparseIFTResNet',
        family=None,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    )
)
