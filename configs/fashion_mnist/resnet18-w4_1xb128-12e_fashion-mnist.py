# The dense baseline of docs/results.md.
_base_ = [
    '../_base_/models/resnet18-w4_fashion_mnist.py',
    '../_base_/datasets/fashion_mnist_in-memory.py',
    '../_base_/schedules/fashion_mnist_bs128-12e.py',
    'mmpretrain::_base_/default_runtime.py',
]

custom_imports = dict(imports=['sift_mm'], allow_failed_imports=False)
