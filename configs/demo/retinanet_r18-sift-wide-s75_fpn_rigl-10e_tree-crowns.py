# The demo's Sparse Wide network. Training is short, so masks are updated
# every 10 steps.
_base_ = ['./retinanet_r18_fpn_10e_tree-crowns.py']

from sift_mm.config import detector

model = detector('wide', sparsity=0.75, base_channels=24)
custom_hooks = [dict(type='SparseTrainingHook', algorithm='RigL', interval=10)]
