_base_ = './resnet18-w16_1xb128-1e_fashion-mnist.py'

from sift_mm.config import classifier

model = classifier('wide', sparsity=0.75, base_channels=16)
custom_hooks = [dict(type='SparseTrainingHook', algorithm='RigL', interval=10)]
