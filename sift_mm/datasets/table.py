"""The table of data sets: all that the tools know about each, in one place."""

from collections.abc import Callable
from dataclasses import dataclass

from sift_mm.errors import Mistake


@dataclass(frozen=True)
class DataSet:
    """What is known about a data set.

    Attributes:
        name (str): What tools/prepare_data.py calls it.
        title (str): What people call it.
        task (str): In the words of the libraries' metafiles.
        types (tuple[str, ...]): The libraries' classes that read it, without
            scope.
        folder (str): Where the libraries' configs look for it.
        images (int): Number of images for training.
        path (str): Part of the paths in a config that reads all of these.
        without_annotations (int, optional): How many of them
            ``filter_empty_gt`` leaves out; None if that is not known.
        size (tuple[int, int], optional): Height and width in pixels, if all
            images have the same.
        fetches_itself (bool): Whether the library downloads what is missing,
            unless the config says ``download=False``.
        contents (str): What its folder holds, where a config without an
            annotation file does not say it well.
        prepare (Callable, optional): Takes the folder, completes the data set
            in it and checks it; returns what it holds, in a few words. Raises
            :class:`~sift_mm.datasets.files.DataError`.
        download (str): Size of what ``prepare(folder, download=True)``
            downloads; empty if there is no such choice.
    """

    name: str
    title: str
    task: str
    types: tuple[str, ...]
    folder: str
    images: int
    path: str = 'train'
    without_annotations: int | None = None
    size: tuple[int, int] | None = None
    fetches_itself: bool = False
    contents: str = ''
    prepare: Callable[..., str] | None = None
    download: str = ''


DATA_SETS: dict[str, DataSet] = {}


def register(data_set: DataSet) -> None:
    """Adds a data set to the table.

    Raises:
        Mistake: If another one has its name, or is read by its class.
    """
    for other in DATA_SETS.values():
        taken = {other.name, *other.types} & {data_set.name, *data_set.types}
        if taken and other.title != data_set.title:
            raise Mistake(
                f'The data set {data_set.title} cannot have {min(taken)}, '
                f'which is that of {other.title}: choose another one.'
            )
    DATA_SETS[data_set.name] = data_set


def find_data_set(kind: str) -> DataSet | None:
    """Finds the data set that a library's class, without scope, reads."""
    return next((d for d in DATA_SETS.values() if kind in d.types), None)
