# The demo's Sparse Wide network. Training is short, so masks are updated
# every 10 steps.
_base_ = ['./retinanet_r18_fpn_10e_tree-crowns.py']

from sift_mm.isoflop import wide_width

sparsity = 0.75
width = wide_width(24, sparsity)

model = dict(
    backbone=dict(family='wide', sparsity=sparsity),
    neck=dict(in_channels=[width, 2 * width, 4 * width, 8 * width]))

optim_wrapper = dict(type='SparseOptimWrapper')
custom_hooks = [
    dict(type='SparseTrainingHook', algorithm='RigL', interval=10)
]
