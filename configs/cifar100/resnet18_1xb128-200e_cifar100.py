# The dense baseline: ResNet-18 with the 3x3 stem, the authors' recipe.
_base_ = [
    'mmpretrain::_base_/models/resnet18_cifar.py',
    'mmpretrain::_base_/datasets/cifar100_bs16.py',
    '../_base_/schedules/cifar100_bs128-200e.py',
    'mmpretrain::_base_/default_runtime.py',
]

custom_imports = dict(imports=['sift_mm'], allow_failed_imports=False)

model = dict(
    backbone=dict(type='SparseIFTResNet_CIFAR'), head=dict(num_classes=100)
)

train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=500)
test_dataloader = dict(batch_size=500)

default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=2))
