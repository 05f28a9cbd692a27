"""Table of data sets: the facts that the tools need."""

from dataclasses import dataclass

from sift_mm.errors import UserError


@dataclass(frozen=True)
class DataSet:
    """Facts about a data set.

    Attributes:
        name (str): Key in the table.
        title (str): Name in metafiles and messages.
        task (str): Task in the words of the libraries' metafiles.
        types (tuple[str, ...]): Dataset classes of the libraries that read
            it, without scope.
        folder (str): Folder in which the libraries' configs look for it.
        images (int, optional): Number of training images; None if it is the
            user's own data.
        path (str): Part of the paths in a config that reads all of them.
        without_annotations (int, optional): Number of images that
            ``filter_empty_gt`` removes; None if unknown.
        size (tuple[int, int], optional): Height and width in pixels, if all
            images have the same.
        fetches_itself (bool): The library downloads missing files, unless
            the config says ``download=False``.
        contents (str): Contents of the folder, for configs without an
            annotation file.
        remedy (str): Instruction that gets the data, for messages; a part
            of a sentence that begins with a verb.
    """

    name: str
    title: str
    task: str
    types: tuple[str, ...]
    folder: str
    images: int | None
    path: str = 'train'
    without_annotations: int | None = None
    size: tuple[int, int] | None = None
    fetches_itself: bool = False
    contents: str = ''
    remedy: str = ''


DATA_SETS: dict[str, DataSet] = {}


def register(data_set: DataSet) -> None:
    """Add a data set to the table.

    Raises:
        UserError: If another data set has its name or one of its classes.
    """
    for other in DATA_SETS.values():
        taken = {other.name, *other.types} & {data_set.name, *data_set.types}
        if taken and other.title != data_set.title:
            raise UserError(
                f'The data set {data_set.title} cannot have {min(taken)}, '
                f'which is that of {other.title}: choose another one.'
            )
    DATA_SETS[data_set.name] = data_set


def find_data_set(kind: str) -> DataSet | None:
    """Return the data set that a dataset class, without scope, reads."""
    return next((d for d in DATA_SETS.values() if kind in d.types), None)
