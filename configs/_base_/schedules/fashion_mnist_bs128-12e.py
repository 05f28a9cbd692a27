# Twelve passes over 60,000 images in batches of 128: 5628 steps. The cosine
# ends with the training, also where max_epochs is another.
_base_ = './fashion_mnist_bs128.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=200),
]
train_cfg = dict(max_epochs=12)
