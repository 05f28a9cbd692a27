# Pretraining of the chain: a ResNet-18 with the stem of a detector's, a
# quarter as wide, on Fashion-MNIST of 64 x 64 pixels.
_base_ = [
    '../_base_/datasets/fashion_mnist.py',
    '../_base_/schedules/fashion_mnist_bs128.py',
    'mmpretrain::_base_/default_runtime.py',
]

custom_imports = dict(imports=['sift_mm'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='SparseIFTResNet',
        depth=18,
        stem_channels=16,
        base_channels=16,
        match_shape=(64, 64),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
    ),
)

# Three values turn one grey channel into three equal ones, which is what a
# detector's stem reads.
data_preprocessor = dict(mean=[72.94] * 3, std=[90.02] * 3)

train_pipeline = [
    dict(type='Resize', scale=64),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='Resize', scale=64), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(indices=40000, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
