"""Windows of a text in tokens, and the metric of a language model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS
from torch import Tensor
from torch.utils.data import Dataset

from sift_mm.data.tokens import open_tokens
from sift_mm.errors import UserError
from sift_mm.models.gpt import GPT, IGNORED
from sift_mm.models.tokenizer import check_tokenizer
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
        self.vocabulary = header.vocabulary
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
        size, tokens = header.bytes, header.tokens
        if windows is None and header.first is not None:
            size, tokens = size - header.first, tokens - 1
        self.metainfo: dict[str, Any] = dict(bytes_per_token=size / tokens)
        if header.tokenizer:
            self.metainfo['tokenizer'] = header.tokenizer

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


@HOOKS.register_module()
class TokenCheckHook(Hook):
    """Hook that refuses data of other tokens than the network's."""

    def before_run(self, runner: Any) -> None:
        """Compare vocabulary and context of data and network."""
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        if not isinstance(model, GPT):
            return
        known = model.embedding.num_embeddings
        for name, data in _data_sets(runner).items():
            if data.vocabulary > known:
                raise UserError(
                    f'The data have a vocabulary of {data.vocabulary} tokens, '
                    f'and the network one of {known}: set model.vocabulary.'
                )
            matched = model.family and model.flops != 'nominal'
            least = model.context if name == 'train' and matched else 1
            if not least <= data.context <= model.context:
                raise UserError(
                    f'Windows of {name} data have {data.context} tokens, and '
                    f'model.context is {model.context}'
                    f'{", where FLOPs are matched" if least > 1 else ""}: '
                    'set both to one number.'
                )

    def after_load_checkpoint(
        self, runner: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Compare the tokenizers of data and checkpoint."""
        for data in _data_sets(runner).values():
            check_tokenizer(checkpoint, data.metainfo.get('tokenizer', ''))


def _data_sets(runner: Any) -> dict[str, TokenWindows]:
    """Return the windows of tokens that a run reads, by the loop's name."""
    found = {}
    for name in ('train', 'val', 'test'):
        loop = getattr(runner, f'_{name}_loop', None)
        data = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        if isinstance(data, TokenWindows):
            found[name] = data
    return found
