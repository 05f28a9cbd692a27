_base_ = (
    './deeplabv3plus_r18b-sift-wide-s75-in1k-pre-d8_'
    '4xb2-80k_cityscapes-512x1024.py'
)

from sift_mm.config import segmentor

model = segmentor(
    'wide',
    sparsity=0.9,
    checkpoint='work_dirs/resnet18-sift-wide-s90_rigl-8xb32-amp-90e_in1k/'
    'epoch_90.pth',
)
