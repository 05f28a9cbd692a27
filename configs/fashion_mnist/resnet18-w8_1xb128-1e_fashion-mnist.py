# The dense baseline: one pass over two thirds of the training images, so that
# the table of docs/results.md takes hours of a CPU, not days.
_base_ = [
    '../_base_/models/resnet18-w8_fashion_mnist.py',
    '../_base_/datasets/fashion_mnist.py',
    '../_base_/schedules/fashion_mnist_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
]

custom_imports = dict(imports=['sift_mm'], allow_failed_imports=False)

train_dataloader = dict(dataset=dict(indices=40000))
