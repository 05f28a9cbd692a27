# 2.5 G tokens in batches of 256 x 2048; warm-up over 375 M of them.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW', lr=6e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    ),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=715
    ),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=715,
        end=4778,
        T_max=4063,
        eta_min_ratio=0.1,
    ),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4778, val_interval=500)
auto_scale_lr = dict(base_batch_size=256)
