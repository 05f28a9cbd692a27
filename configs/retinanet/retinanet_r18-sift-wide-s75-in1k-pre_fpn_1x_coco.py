# The masks come with the pretrained weights and stay as they are.
_base_ = [
    './retinanet_r18-in1k-pre_fpn_1x_coco.py',
    '../_base_/mask_training/transfer.py',
]

from sift_mm.config import detector

model = detector(
    'wide',
    sparsity=0.75,
    checkpoint='work_dirs/resnet18-sift-wide-s75_rigl-8xb32-amp-90e_in1k/'
    'epoch_90.pth',
)
