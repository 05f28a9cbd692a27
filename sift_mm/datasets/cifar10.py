"""CIFAR-10, which MMPreTrain fetches itself."""

from sift_mm.datasets.table import DataSet, register

register(
    DataSet(
        name='cifar10',
        title='CIFAR-10',
        task='Image Classification',
        types=('CIFAR10',),
        folder='data/cifar10',
        images=50_000,
        size=(32, 32),
        fetches_itself=True,
    )
)
