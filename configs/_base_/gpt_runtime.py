# Runs of a GPT, counted in iterations. Text: tools/prepare_text.py.
default_scope = 'mmengine'
custom_imports = dict(imports=['sift_mm'], allow_failed_imports=False)

val_cfg = dict()
test_cfg = dict()
val_evaluator = dict(type='Perplexity')
test_evaluator = val_evaluator

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    tokens=dict(type='TokenCheckHook'),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
