"""Data set in memory that augments whole batches.

A pipeline that works image by image can take longer than the training of a
small network.
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from pydantic import Field
from torch import Tensor

from sift_mm.errors import UserError
from sift_mm.validation import Node, Share, checked

Pixels = Annotated[
    int,
    Field(strict=True, ge=0, description='a number of pixels, at least 0'),
]


def flip_some(images: Tensor, flip: float) -> Tensor:
    """Flip each image left to right with a probability.

    Args:
        images (Tensor): Shape (n, channels, height, width).
        flip (float): Probability.
    """
    flipped = torch.rand(len(images), 1, 1, 1) < flip
    return torch.where(flipped, images.flip(-1), images)


def shift_each(images: Tensor, shift: int) -> Tensor:
    """Shift each image at random, and pad it with zeros.

    Args:
        images (Tensor): Shape (n, channels, height, width).
        shift (int): Largest shift in pixels, in each of four directions.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, [shift] * 4)
    # All shifts of all images, as a view.
    shifted = padded.unfold(2, height, 1).unfold(3, width, 1)
    y, x = torch.randint(2 * shift + 1, (2, len(images)))
    return shifted[torch.arange(len(images)), :, y, x]


def copied(value: Any) -> Any:
    """Return a data sample that takes predictions without keeping them.

    ``copy.copy`` takes ten times as long, and would share the set of fields.
    """
    if not isinstance(value, BaseDataElement):
        return value
    new = object.__new__(type(value))
    vars(new).update(vars(value), _data_fields=set(value._data_fields))
    return new


@DATASETS.register_module()
class InMemoryDataset:
    """Wrapper that reads a data set once, and augments batch by batch.

    The samples of the wrapped data set are dicts whose 'inputs' are images of
    one size, as those of MMPreTrain's ``PackInputs``. Its own pipeline runs
    once for each image, so that it must draw nothing at random.

    Args:
        dataset (dict): Config of the data set.
        flip (float): Probability of a horizontal flip. Default: 0.
        shift (int): Largest random shift in pixels. Default: 0.

    Raises:
        UserError: If the images differ in size.
    """

    @checked
    def __init__(
        self, dataset: Node, flip: Share = 0.0, shift: Pixels = 0
    ) -> None:
        self.dataset = DATASETS.build(dataset)
        self.metainfo = self.dataset.metainfo
        self.flip = flip
        self.shift = shift
        samples = [self.dataset[i] for i in range(len(self.dataset))]
        shapes = {tuple(sample['inputs'].shape) for sample in samples}
        if len(shapes) != 1:
            raise UserError(
                'InMemoryDataset needs images of one size; got '
                f'{sorted(shapes)[:2]}: resize them in the pipeline.'
            )
        self.images = torch.stack([s.pop('inputs') for s in samples])
        self.rest = samples

    def __len__(self) -> int:
        return len(self.rest)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return the augmented samples of a batch."""
        images = self.images[indices]
        if self.flip:
            images = flip_some(images, self.flip)
        if self.shift:
            images = shift_each(images, self.shift)
        return [
            {'inputs': image}
            | {key: copied(v) for key, v in self.rest[index].items()}
            for image, index in zip(images, indices, strict=True)
        ]
