# The masks of the checkpoint that the backbone's init_cfg loads, kept as they
# are; transfer='train' goes on training them, by `algorithm`, and 'dense'
# drops them. The sparsity is the backbone's; custom_imports has to name
# sift_mm.
custom_hooks = [
    dict(type='SparseTrainingHook', algorithm='RigL', transfer='fixed')
]
