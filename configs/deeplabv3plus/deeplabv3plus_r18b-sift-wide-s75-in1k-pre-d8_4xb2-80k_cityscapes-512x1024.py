# The masks come with the pretrained weights and stay as they are.
_base_ = [
    './deeplabv3plus_r18b-in1k-pre-d8_4xb2-80k_cityscapes-512x1024.py',
    '../_base_/mask_training/transfer.py',
]

from sift_mm.config import segmentor

model = segmentor(
    'wide',
    sparsity=0.75,
    checkpoint='work_dirs/resnet18-sift-wide-s75_rigl-8xb32-amp-90e_in1k/'
    'epoch_90.pth',
)
