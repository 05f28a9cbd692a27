# The dense baseline, trained longer: five passes over all training images, for
# which docs/results.md has fewer of the members.
_base_ = './resnet18-w8_1xb128-1e_fashion-mnist.py'

train_dataloader = dict(dataset=dict(indices=None))
# Five passes over 60,000 images in batches of 128: 2345 steps.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=100,
        end=2345,
        T_max=2245,
    ),
]
train_cfg = dict(max_epochs=5)
