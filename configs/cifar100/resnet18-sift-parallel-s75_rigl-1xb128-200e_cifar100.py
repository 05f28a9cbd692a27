_base_ = './resnet18-sift-wide-s75_rigl-1xb128-200e_cifar100.py'

from sift_mm.config import classifier

model = classifier('parallel', sparsity=0.75, flops='nominal')
