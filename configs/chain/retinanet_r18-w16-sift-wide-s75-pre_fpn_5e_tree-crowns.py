# The masks come with the pretrained weights and stay; without them
# (model.backbone.init_cfg=None) they are drawn, and trained by RigL.
_base_ = './retinanet_r18-w16-pre_fpn_5e_tree-crowns.py'

from sift_mm.config import detector

model = detector(
    'wide',
    sparsity=0.75,
    checkpoint='work_dirs/resnet18-w16-sift-wide-s75_rigl-1xb128-1e_'
    'fashion-mnist/epoch_1.pth',
    base_channels=16,
)
custom_hooks = [dict(type='SparseTrainingHook', algorithm='RigL', interval=10)]
