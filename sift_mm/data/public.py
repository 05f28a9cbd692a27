"""Public data sets that the configs here and those of the libraries read."""

from sift_mm.data.table import DataSet, register

for data_set in (
    DataSet(
        name='ade20k',
        title='ADE20K',
        task='Semantic Segmentation',
        types=('ADE20KDataset',),
        folder='data/ade/ADEChallengeData2016',
        images=20_210,
        path='images/training',
        remedy='unpack http://data.csail.mit.edu/places/ADEchallenge/'
        'ADEChallengeData2016.zip into data/ade',
    ),
    DataSet(
        name='cityscapes',
        title='Cityscapes',
        task='Semantic Segmentation',
        types=('CityscapesDataset',),
        folder='data/cityscapes',
        images=2_975,
        path='leftImg8bit/train',
        contents=(
            'leftImg8bit/ and gtFine/ of Cityscapes (the latter with '
            '*_gtFine_labelTrainIds.png)'
        ),
        remedy='unpack gtFine_trainvaltest.zip and leftImg8bit_trainvaltest'
        '.zip of https://www.cityscapes-dataset.com there, then run '
        '`CITYSCAPES_DATASET=data/cityscapes csCreateTrainIdLabelImgs` of '
        'cityscapesscripts',
    ),
    DataSet(
        name='coco',
        title='COCO',
        task='Object Detection',
        types=('CocoDataset',),
        folder='data/coco',
        images=118_287,
        path='instances_train2017',
        without_annotations=1_021,
        remedy='run `mim download mmdet --dataset coco2017`, or unpack '
        'train2017.zip, val2017.zip and annotations_trainval2017.zip of '
        'https://cocodataset.org there',
    ),
    DataSet(
        name='fashion_mnist',
        title='Fashion-MNIST',
        task='Image Classification',
        types=('FashionMNIST',),
        folder='data/fashion_mnist',
        images=60_000,
        size=(28, 28),
        fetches_itself=True,
        remedy='run `python -m demo.fashion_mnist`',
    ),
    DataSet(
        name='imagenet',
        title='ImageNet-1k',
        task='Image Classification',
        types=('ImageNet',),
        folder='data/imagenet',
        images=1_281_167,
        remedy='put the two ILSVRC2012_img archives and the devkit of '
        "https://image-net.org there, then run `ImageNet('data/imagenet', "
        'split)` of torchvision.datasets in Python, for both splits',
    ),
    DataSet(
        name='text',
        title='Text',
        task='Language Modeling',
        types=('TokenWindows',),
        folder='data/text',
        images=None,
        contents='train.bin and val.bin of tools/prepare_text.py',
        remedy='run `python tools/prepare_text.py FILES... --out FOLDER`',
    ),
):
    register(data_set)
for name, title, images, side in (
    ('cifar10', 'CIFAR-10', 50_000, 32),
    ('cifar100', 'CIFAR-100', 50_000, 32),
    ('mnist', 'MNIST', 60_000, 28),
):
    register(
        DataSet(
            name=name,
            title=title,
            task='Image Classification',
            types=(name.upper(),),
            folder=f'data/{name}',
            images=images,
            size=(side, side),
            fetches_itself=True,
            remedy=f"run `torchvision.datasets.{name.upper()}('data/{name}', "
            'download=True)` in Python',
        )
    )
