_base_ = [
    './resnet34_8xb32-amp-90e_in1k.py',
    '../_base_/mask_training/rigl.py',
]

from sift_mm.config import classifier

model = classifier('wide', sparsity=0.75)
