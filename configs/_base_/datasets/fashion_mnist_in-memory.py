# Fashion-MNIST, augmented batch by batch: flips, and shifts by 2 pixels. The
# same augmentation image by image takes half as long as a training step.
_base_ = './fashion_mnist.py'

pipeline = [dict(type='PackInputs')]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='InMemoryDataset',
        flip=0.5,
        shift=2,
        dataset=dict(
            type='FashionMNIST',
            data_root='data/fashion_mnist',
            split='train',
            download=False,
            pipeline=pipeline,
        ),
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='InMemoryDataset',
        dataset=dict(
            type='FashionMNIST',
            data_root='data/fashion_mnist',
            split='test',
            test_mode=True,  # It goes by this, not by the split.
            download=False,
            pipeline=pipeline,
        ),
    ),
)
test_dataloader = val_dataloader
