_base_ = './resnet18-w4-sift-wide-s75_rigl-1xb128-12e_fashion-mnist.py'

from sift_mm.config import classifier

model = classifier('wide_factorized', sparsity=0.75, base_channels=4)
