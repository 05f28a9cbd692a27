# The dense baseline of depth 50.
_base_ = './resnet18_8xb32-amp-90e_in1k.py'

model = dict(backbone=dict(depth=50), head=dict(in_channels=2048))
