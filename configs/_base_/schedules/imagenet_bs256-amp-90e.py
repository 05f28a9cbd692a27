# 90 epochs in batches of 256, in mixed precision; half a cosine takes the
# learning rate to 0, a step with every epoch. Norms and biases do not decay.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(
        type='SGD', lr=0.256, momentum=0.875, weight_decay=3.0517578125e-05
    ),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = dict(
    type='CosineAnnealingLR', by_epoch=True, begin=0, end=90, T_max=90
)

train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=256)
