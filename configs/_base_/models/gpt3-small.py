# GPT-3 Small, 125 M parameters.
model = dict(
    type='GPT',
    vocabulary=50257,
    context=2048,
    layers=12,
    d_model=768,
    heads=12,
)
