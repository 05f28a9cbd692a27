# RetinaNet with a Sparse Wide ResNet-18 at sparsity 0.75, RigL, COCO 2017 1x.
_base_ = './retinanet/retinanet_r18-sift-wide-s75_fpn_rigl-1x_coco.py'
