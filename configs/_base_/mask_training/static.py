# A random mask with the authors' uniform distribution, never changed. The
# sparsity is the backbone's. The run's optim_wrapper has to be a
# SparseOptimWrapper or SparseAmpOptimWrapper, and custom_imports has to name
# sift_mm.
custom_hooks = [
    dict(type='SparseTrainingHook', algorithm='Static', distribution='Uniform')
]
