# 200 epochs in batches of 128; the learning rate falls to a fifth three times.
# All weights decay, those of norms too. The authors' scheduler steps behind an
# epoch with the index of that epoch: the epochs of index 0 to 60 have 0.1.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
)
param_scheduler = dict(
    type='MultiStepLR', by_epoch=True, milestones=[61, 121, 161], gamma=0.2
)

train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)
