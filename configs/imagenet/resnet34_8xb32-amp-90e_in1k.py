# The dense baseline of depth 34.
_base_ = './resnet18_8xb32-amp-90e_in1k.py'

model = dict(backbone=dict(depth=34))
