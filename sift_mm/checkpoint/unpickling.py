"""Unpickle plain data: tensors, numbers, text, and logs of MMEngine.

NumPy's own ``dtype.__setstate__`` believes fields and flags of the file,
and a structured type then reads any address as a Python object. Stand-ins
take its place here. They accept numbers and text, and become NumPy's objects
after the pickle has been read.
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

#: NumPy's names of numbers and of text: kind and bytes, or characters.
PLAIN = re.compile(r'[biufc]\d{1,2}|[US]\d{1,6}')
#: Bytes without sharing, as multiples of the file's size.
SHARED = 16
#: Bytes that a tensor may have beyond its storage (constants by stride 0).
BROADCAST = 1 << 20


class StandIn:
    """Object of the pickle that becomes another one after it is read."""

    value: Any = None


class _DType(StandIn):
    """Type of a NumPy array of numbers or text."""

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
    """NumPy array of numbers or text."""

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
        flat.tolist()  # Raises where a number is no character.
    return flat


class _History(StandIn):
    """Log of MMEngine, without the functions that its pickle names.

    MMEngine's own ``__setstate__`` puts them in place of the statistics of
    all logs of the process.
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
    """Take the place of ``getattr``, for the functions that are left out."""
    if owner is not _History or name.startswith('_'):
        raise UnpicklingError('GLOBAL builtins.getattr was')


def _empty() -> bytes:
    """Return the bytes of an empty array."""
    return b''


def _encode(text: str, codec: str) -> bytes:
    """Return bytes that a pickle holds as text; other codecs may expand."""
    if codec != 'latin1':
        raise ValueError(f'it holds bytes encoded by {codec!r}')
    return text.encode('latin1')


#: Functions by names that a checkpoint of MMEngine has beside PyTorch's.
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
    """Let ``torch.load`` build :data:`KNOWN`, and types that users allowed.

    PyTorch looks up a name here first, and then among those of users.
    """
    known = {**_weights_only_unpickler._get_allowed_globals(), **KNOWN}
    # Of a number it takes that many bytes.
    known.pop('builtins.bytearray', None)
    with mock.patch.object(
        _weights_only_unpickler, '_get_allowed_globals', lambda: known
    ):
        yield


def resolve(loaded: Any, size: int) -> Any:
    """Put values in place of stand-ins, in containers of Python, in place.

    Args:
        loaded: Object that ``torch.load`` returned.
        size: Bytes of the file.

    Returns:
        The same object, or the value of a stand-in.

    Raises:
        ValueError: If it contains itself, or would take much more memory
            than the file where nothing is shared.
    """
    found, taken = _Resolver().visit(loaded)
    if taken > SHARED * size + BROADCAST:
        raise ValueError(
            f'a copy of it would take {taken:,} bytes, the file has {size:,}'
        )
    return found


class _Resolver:
    """Walk through containers that looks at each object once."""

    def __init__(self) -> None:
        #: By id: the object, which keeps it alive, and what visit returns.
        self.seen: dict[int, tuple[Any, Any, int]] = {}

    def visit(self, value: Any) -> tuple[Any, int]:
        """Return the object to put in place of one, and its size.

        The size is in bytes, about, and without sharing.
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
    """Put items in the place of those of a container."""
    if isinstance(container, tuple):
        return tuple(items)
    if isinstance(container, list):
        container[:] = items
    elif isinstance(container, dict):
        container.update(dict(zip(container, items, strict=True)))
    if isinstance(container, OrderedDict):
        # Another attribute would hide a method.
        for name in vars(container).keys() - {'_metadata'}:
            delattr(container, name)
    return container


def _bytes(value: Tensor) -> int:
    """Return the bytes of a tensor without sharing, checked by its storage."""
    count = value.numel() * value.element_size()
    if value.layout is torch.strided:
        stored = value.untyped_storage().nbytes()
        if count > max(stored, BROADCAST):
            raise ValueError(
                f'a tensor of {count:,} bytes has {stored:,} in the file'
            )
    return count
