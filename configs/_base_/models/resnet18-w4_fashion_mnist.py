# ResNet-18 with the 3x3 stem, a sixteenth as wide as usual (first stage of 4
# channels) and with stride 2 in the first stage too, for a CPU.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='SparseIFTResNet_CIFAR',
        depth=18,
        in_channels=1,
        stem_channels=4,
        base_channels=4,
        strides=(2, 2, 2, 2),
        match_shape=(28, 28),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=32,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
    ),
)
