_base_ = './gpt3-small_32xb8-4778_text.py'

model = dict(family='wide', sparsity=0.5)
custom_hooks = [
    dict(
        type='SparseTrainingHook',
        algorithm='RigL',
        drop_fraction=0.3,
        interval=100,
        end=0.75,
    )
]
