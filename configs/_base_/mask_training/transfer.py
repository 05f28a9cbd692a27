# The masks of the checkpoint that the backbone's init_cfg loads, kept as they
# are; transfer='train' goes on training them, by `algorithm`, and 'dense'
# drops them. The sparsity is the backbone's. The run's optim_wrapper has to
# be a SparseOptimWrapper or SparseAmpOptimWrapper, and custom_imports has to
# name sift_mm.
custom_hooks = [
    dict(type='SparseTrainingHook', algorithm='RigL', transfer='fixed')
]
