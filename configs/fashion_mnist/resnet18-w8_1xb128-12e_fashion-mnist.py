_base_ = './resnet18-w4_1xb128-12e_fashion-mnist.py'

model = dict(
    backbone=dict(stem_channels=8, base_channels=8),
    head=dict(in_channels=64),
)
