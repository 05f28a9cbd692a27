# The dense baseline of the tiny networks.
_base_ = [
    '../_base_/models/gpt-tiny.py',
    '../_base_/datasets/text_256.py',
    '../_base_/schedules/gpt-tiny_bs16-2k.py',
    '../_base_/gpt_runtime.py',
]
