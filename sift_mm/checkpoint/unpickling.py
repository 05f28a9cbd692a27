"""Unpickling of plain data: tensors, numbers, text and logs of MMEngine.

NumPy's ``dtype.__setstate__`` trusts fields and flags of the file, and a
structured type then reads any address as a Python object. Stand-ins replace
it. They accept numbers and text, and become NumPy objects after the pickle is
read.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, _weights_only_unpickler

#: NumPy's type codes of numbers and text: kind and size.
PLAIN = re.compile(r'[biufc]\d{1,2}|[US]\d{1,6}')
#: Largest size without sharing, as a multiple of the file's size.
SHARED = 16
#: Largest size of a tensor with stride 0, such as a constant, in bytes.
BROADCAST = 1 << 20


class StandIn:
    """Object in a pickle, replaced by its value after reading."""

    value: Any = None


class _DType(StandIn):
    """Stand-in for the type of a NumPy array of numbers or text."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not PLAIN.fullmatch(code):
            raise ValueError(
                f"it holds NumPy's type {code!r}, and only numbers and text "
                'are read'
            )
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *structure = state[:5]
        if structure != [None] * 3:
            raise ValueError('it holds a structured NumPy type')
        self.value = self.value.newbyteorder(order)


class _Array(StandIn):
    """Stand-in for a NumPy array of numbers or text."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        flat = _numbers(dtype, data)
        order: Any = 'F' if is_fortran else 'C'
        self.value = flat.reshape(shape, order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    """Return a NumPy number or text."""
    (value,) = _numbers(dtype, data) if data else np.zeros(1, dtype.value)
    return value


def _numbers(dtype: Any, data: Any) -> np.ndarray:
    if type(dtype) is not _DType:
        raise ValueError('it holds a NumPy array without a type')
    if isinstance(data, str):  # Pickles of Python 2.
        data = data.encode('latin1')
    flat = np.frombuffer(data, dtype.value).copy()
    if flat.dtype.kind == 'U':
        flat.tolist()  # Raises if a number is no character.
    return flat


class _History(StandIn):
    """Stand-in for a log of MMEngine, without the functions in its pickle.

    MMEngine's ``__setstate__`` would replace the statistics of all logs of the
    process by those functions.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        from mmengine.logging import HistoryBuffer

        values, counts = (
            state[key].value for key in ('_log_history', '_count_history')
        )
        if values.dtype.kind not in 'biuf' or counts.dtype.kind not in 'biuf':
            raise ValueError('a log in it holds no numbers')
        self.value = HistoryBuffer(values, counts, int(state['max_length']))


def _statistic(owner: Any, name: str) -> None:
    """Replace ``getattr``, which names the excluded functions of a log."""
    if owner is not _History or name.startswith('_'):
        raise UnpicklingError('GLOBAL builtins.getattr was')


def _empty() -> bytes:
    """Return the bytes of an empty array."""
    return b''


def _encode(text: str, codec: str) -> bytes:
    """Return the bytes of latin1 text; other codecs could expand it."""
    if codec != 'latin1':
        raise ValueError(f'it holds bytes encoded by {codec!r}')
    return text.encode('latin1')


#: Functions by their names in MMEngine's checkpoints, beside PyTorch's.
KNOWN = {
    '_codecs.encode': _encode,
    'builtins.bytes': _empty,
    'builtins.getattr': _statistic,
    'builtins.slice': slice,
    'numpy.dtype': _DType,
    'numpy.ndarray': _Array,
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
} | {
    f'{core}.multiarray.{name}': function
    for core in ('numpy.core', 'numpy._core')
    for function, name in ((_Array, '_reconstruct'), (_scalar, 'scalar'))
}


@contextmanager
def plain_globals() -> Iterator[None]:
    """Allow ``torch.load`` to build :data:`KNOWN` and the user's types.

    PyTorch looks up :data:`KNOWN` before the user's types.
    """
    known = {**_weights_only_unpickler._get_allowed_globals(), **KNOWN}
    # bytearray(n) would allocate n bytes.
    known.pop('builtins.bytearray', None)
    with mock.patch.object(
        _weights_only_unpickler, '_get_allowed_globals', lambda: known
    ):
        yield


def resolve(loaded: Any, size: int) -> Any:
    """Replace stand-ins by their values, in Python containers, in place.

    Args:
        loaded: Result of ``torch.load``.
        size: Size of the file in bytes.

    Returns:
        The same object, or the value of a stand-in.

    Raises:
        ValueError: If the object contains itself, or a copy without sharing
            would be much larger than the file.
    """
    found, taken = _Resolver().visit(loaded)
    if taken > SHARED * size + BROADCAST:
        raise ValueError(
            f'a copy of it would take {taken:,} bytes, the file has {size:,}'
        )
    return found


class _Resolver:
    """Visitor of nested containers that visits each object once."""

    def __init__(self) -> None:
        #: By id: the object, to keep it alive, and the result of visit.
        self.seen: dict[int, tuple[Any, Any, int]] = {}

    def visit(self, value: Any) -> tuple[Any, int]:
        """Return the replacement of a value, and its size.

        The size is in bytes, approximate, and without sharing.
        """
        if id(value) in self.seen:
            _, found, size = self.seen[id(value)]
            if size < 0:
                raise ValueError('it contains itself')
            return found, size
        found, size, kind = value, 1, type(value)
        if kind in (tuple, list, set, dict, OrderedDict):
            self.seen[id(value)] = value, value, -1
            items = value.values() if isinstance(value, dict) else value
            visited = [self.visit(item) for item in items]
            size += sum(part for _, part in visited)
            found = _refill(value, [item for item, _ in visited])
        elif isinstance(value, StandIn):
            found = value.value
            size = getattr(found, 'nbytes', 1)
        elif isinstance(value, Tensor):
            size = _bytes(value)
        elif kind in (str, bytes):
            size = len(value)
        self.seen[id(value)] = value, found, size
        return found, size


def _refill(container: Any, items: list[Any]) -> Any:
    """Replace the items of a container, in place if possible."""
    if isinstance(container, tuple):
        return tuple(items)
    if isinstance(container, list):
        container[:] = items
    elif isinstance(container, dict):
        container.update(dict(zip(container, items, strict=True)))
    if isinstance(container, OrderedDict):
        # Other attributes could hide a method.
        for name in vars(container).keys() - {'_metadata'}:
            delattr(container, name)
    return container


def _bytes(value: Tensor) -> int:
    """Return the size of a tensor in bytes; check it against the storage."""
    count = value.numel() * value.element_size()
    if value.layout is torch.strided:
        stored = value.untyped_storage().nbytes()
        if count > max(stored, BROADCAST):
            raise ValueError(
                f'a tensor of {count:,} bytes has {stored:,} in the file'
            )
    return count
