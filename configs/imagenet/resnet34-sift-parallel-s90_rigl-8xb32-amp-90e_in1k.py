_base_ = './resnet34-sift-wide-s75_rigl-8xb32-amp-90e_in1k.py'

from sift_mm.config import classifier

model = classifier('parallel', sparsity=0.9, flops='nominal')
