_base_ = './resnet18-w8_1xb128-5e_fashion-mnist.py'

from sift_mm.config import classifier

model = classifier('wide', sparsity=0.75, base_channels=8)
# 35 updates of the masks; the authors' interval is 100.
custom_hooks = [dict(type='SparseTrainingHook', algorithm='RigL', interval=50)]
