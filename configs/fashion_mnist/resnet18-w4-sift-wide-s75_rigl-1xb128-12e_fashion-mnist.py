_base_ = [
    './resnet18-w4_1xb128-12e_fashion-mnist.py',
    '../_base_/mask_training/rigl.py',
]

from sift_mm.config import classifier

model = classifier('wide', sparsity=0.75, base_channels=4)
