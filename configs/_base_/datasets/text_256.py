# Text in data/text, by tools/prepare_text.py --vocabulary 2048.
# 2000 batches of 16.
context = 256
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='InfiniteSampler', shuffle=False),
    dataset=dict(
        type='TokenWindows',
        data_root='data/text',
        split='train',
        context=context,
        windows=2000 * 16,
        vocabulary=2048,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='TokenWindows',
        data_root='data/text',
        split='val',
        context=context,
        vocabulary=2048,
    ),
)
test_dataloader = val_dataloader
