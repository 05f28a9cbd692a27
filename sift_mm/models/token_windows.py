"""Windows of a text in tokens, and the metric of a language model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from torch import Tensor
from torch.utils.data import Dataset

from sift_mm.data.tokens import open_tokens
from sift_mm.errors import UserError
from sift_mm.models.gpt import IGNORED
from sift_mm.validation import Count, Seed, checked


@DATASETS.register_module()
class TokenWindows(Dataset):
    """Windows of ``context`` tokens, and the token behind each of them.

    Windows may reach over the end of a document, which a token marks.

    Args:
        data_root (str): Folder of ``tools/prepare_text.py``.
        split (str): 'train' or 'val', the file ``<split>.bin`` there.
        context (int): Tokens of a window.
        windows (int, optional): Number of random windows: the place of the
            i-th follows from seed and i alone. None takes the whole text from
            its beginning, each token once; places of the last window that
            have been seen do not count.
        seed (int): Seed of random windows.
        vocabulary (int, optional): Largest vocabulary that the model reads.

    Raises:
        ValueError: If the file is missing or damaged, shorter than a window,
            or of a larger vocabulary.
    """

    @checked
    def __init__(
        self,
        data_root: str,
        split: str = 'train',
        context: Count = 1024,
        windows: Count | None = None,
        seed: Seed = 0,
        vocabulary: Count | None = None,
    ) -> None:
        path = Path(data_root).expanduser() / f'{split}.bin'
        self.ids, header = open_tokens(path)
        self.context, self.windows, self.seed = context, windows, seed
        if len(self.ids) <= context:
            raise UserError(
                f'{path} has {len(self.ids)} tokens, and a window of '
                f'context={context} needs {context + 1}: add text, or set a '
                'smaller context.'
            )
        if vocabulary is not None and header.vocabulary > vocabulary:
            raise UserError(
                f'{path} has a vocabulary of {header.vocabulary} tokens, and '
                f'vocabulary={vocabulary}: set that of the file, or write it '
                'again by tools/prepare_text.py --vocabulary.'
            )
        self.metainfo = dict(bytes_per_token=header.bytes / header.tokens)

    def __len__(self) -> int:
        if self.windows is not None:
            return self.windows
        return math.ceil((len(self.ids) - 1) / self.context)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        last = len(self.ids) - 1 - self.context
        seen = 0
        if self.windows is not None:
            generator = np.random.default_rng((self.seed, index))
            start = int(generator.integers(last + 1))
        else:
            start = min(index * self.context, last)
            seen = index * self.context - start
        ids = self.ids[start : start + self.context + 1].astype(np.int64)
        window = torch.from_numpy(ids)
        targets = window[1:].clone()
        targets[:seen] = IGNORED
        return dict(inputs=window[:-1], targets=targets)


@METRICS.register_module()
class Perplexity(BaseMetric):
    """Perplexity by token, and bits by byte of text.

    Bits by byte do not depend on the vocabulary. End tokens of documents
    count as tokens of no bytes. ``nats`` is the mean loss of a token; the
    log would smooth a number called loss.
    """

    default_prefix = 'text'

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep the loss and the number of tokens of each window."""
        for sample in data_samples:
            self.results.append((sample['nats'], sample['tokens']))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return mean loss, perplexity and bits by byte of all windows."""
        total = math.fsum(nats for nats, _ in results)
        mean = total / sum(tokens for _, tokens in results)
        found = dict(nats=mean, perplexity=math.exp(min(mean, 700)))
        size = (self.dataset_meta or {}).get('bytes_per_token')
        if size:
            found['bits_per_byte'] = mean / math.log(2) / size
        return found
