# Text in data/text, by tools/prepare_text.py --vocabulary 50257.
# 4778 batches of 256.
context = 2048
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    collate_fn=dict(type='default_collate'),
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=False),
    dataset=dict(
        type='TokenWindows',
        data_root='data/text',
        split='train',
        context=context,
        windows=4778 * 256,
        vocabulary=50257,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    collate_fn=dict(type='default_collate'),
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='TokenWindows',
        data_root='data/text',
        split='val',
        context=context,
        vocabulary=50257,
    ),
)
test_dataloader = val_dataloader
