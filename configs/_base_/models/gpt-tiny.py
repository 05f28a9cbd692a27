# A GPT for a CPU, 1.1 M parameters.
model = dict(
    type='GPT',
    vocabulary=2048,
    context=256,
    layers=4,
    d_model=128,
    heads=4,
)
