_base_ = './gpt-tiny_1xb16-2k_text.py'

model = dict(family='wide', sparsity=0.75)
custom_hooks = [
    dict(
        type='SparseTrainingHook',
        algorithm='RigL',
        drop_fraction=0.3,
        interval=50,
        end=0.75,
    )
]
