_base_ = ['./retinanet_r18_fpn_1x_coco.py', '../_base_/mask_training/rigl.py']

from sift_mm.config import detector

model = detector('wide', sparsity=0.75)
