# SET (grow at random) with the authors' settings: random first mask, uniform
# distribution, drop fraction 0.3 with cosine decay, an update every 100
# optimizer steps, the last at 75 % of them. The sparsity is the backbone's;
# custom_imports has to name sift_mm.
custom_hooks = [
    dict(
        type='SparseTrainingHook',
        algorithm='SET',
        distribution='Uniform',
        drop_fraction=0.3,
        interval=100,
        end=0.75,
    )
]
