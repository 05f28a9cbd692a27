# The dense baseline: ResNet-18 as it is, the authors' recipe.
_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/imagenet_bs256-amp-90e.py',
    'mmpretrain::_base_/default_runtime.py',
]

custom_imports = dict(imports=['sift_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(type='SparseIFTResNet'),
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)),
)

default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2))
