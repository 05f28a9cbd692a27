# 8.2 M tokens in batches of 16 x 256.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    ),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=100,
        end=2000,
        T_max=1900,
        eta_min_ratio=0.1,
    ),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2000, val_interval=500)
auto_scale_lr = dict(base_batch_size=16)
