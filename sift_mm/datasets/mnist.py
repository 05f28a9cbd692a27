"""MNIST, which MMPreTrain fetches itself."""

from sift_mm.datasets.table import DataSet, register

register(
    DataSet(
        name='mnist',
        title='MNIST',
        task='Image Classification',
        types=('MNIST',),
        folder='data/mnist',
        images=60_000,
        size=(28, 28),
        fetches_itself=True,
    )
)
