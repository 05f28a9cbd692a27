"""Start of a run: checks of its data, errors without a log before them."""

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import mmengine
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from sift_mm.config.explain import explained
from sift_mm.errors import UserError
from sift_mm.names import shortened

# Names of heads that tell the classes of the data apart. Proposals have one
# class, and auxiliary heads of edges two.
HEAD = re.compile(r'(^|\.)(bbox_head|mask_head|decode_head|head)(\.\d+)?$')


class HeldOutput:
    """Stream that holds text back until :meth:`release`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._kept: list[str] | None = []

    def write(self, text: str) -> int:
        """Write a text, or hold it back."""
        if self._kept is None:
            return self._stream.write(text)
        self._kept.append(text)
        return len(text)

    def release(self) -> None:
        """Write the text held back, and write through from now on."""
        kept, self._kept = self._kept, None
        self._stream.write(''.join(kept or ()))
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class StartHook(Hook):
    """Hook that ends the start of a run, and checks its data.

    Args:
        output (HeldOutput): Standard output of the start.
    """

    # Runs last, so that errors of all hooks belong to the start.
    priority = 'LOWEST'

    def __init__(self, output: HeldOutput) -> None:
        self.output = output
        self.started = False

    def before_train(self, runner: Runner) -> None:
        """Check the data, and warn if no iteration is left."""
        check_loader(runner.train_dataloader, 'train_dataloader.dataset')
        if runner.val_loop is not None:
            check_loader(runner.val_dataloader, 'val_dataloader.dataset')
        for line in wrong_heads(runner.model, runner.train_dataloader.dataset):
            runner.logger.warning(line)
        if runner.max_iters < 1:
            raise UserError(
                'train_dataloader: an epoch has no batch; set drop_last=False '
                'or a smaller batch_size.'
            )
        if runner.iter >= runner.max_iters:
            runner.logger.warning(
                f'Nothing is left to do: the run ends after {runner.max_iters}'
                f' iterations, and {runner._load_from} has done {runner.iter}.'
                ' To train further, raise max_epochs or max_iters of '
                'train_cfg.'
            )

    def before_test(self, runner: Runner) -> None:
        """Check the data."""
        check_loader(runner.test_dataloader, 'test_dataloader.dataset')

    def end_start(self, *_: Any, **__: Any) -> None:
        """Release the log; later errors are not errors of the config."""
        if not self.started:
            self.started = True
            self.output.release()

    before_train_epoch = before_val_epoch = before_test_epoch = end_start
    after_train = end_start


@contextmanager
def starting(cfg: Config) -> Iterator[StartHook]:
    """Hold back the log of a run until the start is complete.

    MMEngine's description of the machine would hide errors of the config.

    Yields:
        StartHook: Hook to register with the runner.

    Raises:
        UserError: If the config or the data cause an error.
    """
    before = sys.stdout
    hook = StartHook(HeldOutput(before))
    sys.stdout = hook.output
    try:
        yield hook
        hook.end_start()
    except Exception as error:
        if hook.started:
            raise
        with explained(cfg.filename or 'the config', cfg):
            _explain_data(error)
            raise
    finally:
        sys.stdout = before


def _explain_data(error: Exception) -> None:
    """Refuse the empty data set that caused an error.

    MMEngine fails on an empty data set before a hook can check it.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        dataset = frame.f_locals.get('self')
        if getattr(dataset, 'data_list', None) == []:
            if hasattr(dataset, 'cat_ids') or 'concatenate' in str(error):
                check_dataset(dataset, 'dataset')


def check_loader(loader: Any, key: str) -> None:
    """Refuse a loader with a data set without samples or instances."""
    for dataset in _leaves(loader.dataset):
        if hasattr(dataset, 'get_data_info'):
            check_dataset(dataset, key)


def check_dataset(dataset: Any, key: str) -> None:
    """Refuse a data set without samples, or without instances of its classes.

    Args:
        dataset (BaseDataset): MMEngine data set.
        key (str): Key of the data set in the config.

    Raises:
        UserError: If it has no sample or no instance.
    """
    place = f'{key} ({type(dataset).__name__})'
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    file = getattr(dataset, 'ann_file', '') or dataset.data_root
    named = shortened(classes, 10)
    advice = f'(classes: {named}); set metainfo=dict(classes=...)'
    if classes and getattr(dataset, 'cat_ids', None) == []:
        found = [c['name'] for c in mmengine.load(file)['categories']]
        raise UserError(
            f'{place}: no class of the config is a category of {file} '
            f'{advice} to names of the file: {shortened(found, 10)}.'
        )
    if not (len(dataset) if dataset._fully_initialized else dataset.data_list):
        raise UserError(
            f'{place}: {file} has no sample {advice}, filter_cfg or the '
            'paths to match the files.'
        )
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    # The search ends at the first instance, usually at once.
    if all(info.get('instances', True) == [] for info in infos):
        raise UserError(
            f'{place}: no sample of {file} has an instance of a class '
            f'{advice} to names of the file.'
        )


def wrong_heads(model: nn.Module, dataset: Any) -> Iterator[str]:
    """Yield a sentence on each head with another number of classes.

    It is no error: heads of MMDetection that read names of classes have room
    for more. Labels that a head lacks are background to some losses.
    """
    meta = getattr(dataset, 'metainfo', None) or {}
    # Heads of boxes know the things of panoptic data, not its stuff.
    classes = meta.get('thing_classes') or meta.get('classes') or ()
    for name, module in model.named_modules():
        known = getattr(module, 'num_classes', len(classes))
        if HEAD.search(name) and classes and known != len(classes):
            key = f'model.{name.removeprefix("module.")}'
            yield (
                f'{key} has num_classes={known}, and the training data has '
                f'{len(classes)} classes ({shortened(classes, 10)}): set '
                f'num_classes={len(classes)}, unless this is meant.'
            )


def _leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside all wrappers."""
    inner = getattr(dataset, 'datasets', None)
    if inner is None and getattr(dataset, 'dataset', None) is not None:
        inner = [dataset.dataset]
    if inner is None:
        yield dataset
    else:
        for one in inner:
            yield from _leaves(one)
