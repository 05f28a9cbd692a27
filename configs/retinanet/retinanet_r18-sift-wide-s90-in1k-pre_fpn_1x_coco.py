_base_ = './retinanet_r18-sift-wide-s75-in1k-pre_fpn_1x_coco.py'

from sift_mm.config import detector

model = detector(
    'wide',
    sparsity=0.9,
    checkpoint='work_dirs/resnet18-sift-wide-s90_rigl-8xb32-amp-90e_in1k/'
    'epoch_90.pth',
)
