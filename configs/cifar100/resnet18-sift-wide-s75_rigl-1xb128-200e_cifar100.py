_base_ = [
    './resnet18_1xb128-200e_cifar100.py',
    '../_base_/mask_training/rigl.py',
]

from sift_mm.config import classifier

model = classifier('wide', sparsity=0.75)
