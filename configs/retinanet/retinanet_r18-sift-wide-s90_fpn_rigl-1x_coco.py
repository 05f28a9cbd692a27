_base_ = [
    './retinanet_r18_fpn_1x_coco.py', '../_base_/mask_training/rigl.py'
]

from sift_mm.isoflop import wide_width

sparsity = 0.9
width = wide_width(64, sparsity)

model = dict(
    backbone=dict(family='wide', sparsity=sparsity),
    neck=dict(in_channels=[width, 2 * width, 4 * width, 8 * width]))

optim_wrapper = dict(type='SparseOptimWrapper')
