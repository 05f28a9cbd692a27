"""ADE20K as MMSegmentation reads it, with 150 classes."""

from sift_mm.datasets.table import DataSet, register

register(
    DataSet(
        name='ade20k',
        title='ADE20K',
        task='Semantic Segmentation',
        types=('ADE20KDataset',),
        folder='data/ade/ADEChallengeData2016',
        images=20_210,
        path='images/training',
    )
)
