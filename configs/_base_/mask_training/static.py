# A random mask with the authors' uniform distribution, never changed. The
# sparsity is the backbone's; custom_imports has to name sift_mm.
custom_hooks = [
    dict(type='SparseTrainingHook', algorithm='Static', distribution='Uniform')
]
