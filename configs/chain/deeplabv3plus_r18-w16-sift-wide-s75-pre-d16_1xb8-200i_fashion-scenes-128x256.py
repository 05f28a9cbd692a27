# The masks come with the pretrained weights and stay; without them
# (model.backbone.init_cfg=None) they are drawn, and trained by RigL.
_base_ = './deeplabv3plus_r18-w16-pre-d16_1xb8-200i_fashion-scenes-128x256.py'

from sift_mm.config import segmentor

model = segmentor(
    'wide',
    sparsity=0.75,
    checkpoint='work_dirs/chain/wide/seed0/classifier/epoch_1.pth',
    base_channels=16,
)
custom_hooks = [dict(type='SparseTrainingHook', algorithm='RigL', interval=10)]
