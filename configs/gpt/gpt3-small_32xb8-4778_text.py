# The dense baseline: GPT-3 Small, the recipe of the paper.
_base_ = [
    '../_base_/models/gpt3-small.py',
    '../_base_/datasets/text_2048.py',
    '../_base_/schedules/gpt3_bs256-4778.py',
    '../_base_/gpt_runtime.py',
]
