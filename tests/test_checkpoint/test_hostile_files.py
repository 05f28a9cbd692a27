"""Checkpoints that were made to deceive end in a sentence, and take nothing.

Each is read in this process: a hidden pointer would end it.
"""

import codecs
import io
import resource
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from helpers.toy_runs import assert_same
from sift_mm import load_compact
from sift_mm.checkpoint.compact import COMPACT_KEY, compact, expand
from sift_mm.checkpoint.reading import read
from sift_mm.checkpoint.state import with_digest
from sift_mm.errors import UserError

WEIGHTS = {'a.weight': torch.arange(6.0).view(2, 3)}
OLD = dict(_use_new_zipfile_serialization=False)
F8 = np.dtype('f8')
RECONSTRUCT = np.array(0.0).__reduce__()[0]
SCALAR = np.float64(0).__reduce__()[0]


class Pickled:
    """An object whose pickle is a call and a state, as given."""

    def __init__(self, function, arguments, *state):
        self.reduced = function, arguments, *state

    def __reduce__(self):
        return self.reduced


def dtype(code, *state):
    return Pickled(np.dtype, (code, False, True), state)


def array(kind, shape, data):
    start = (np.ndarray, (0,), b'b')
    return Pickled(RECONSTRUCT, start, (1, shape, kind, False, data))


def saved(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def with_meta(value):
    return {'meta': value, 'state_dict': WEIGHTS}


def nested(depth):
    """Return a list nested so deep that it expands to 2^depth lists."""
    found = []
    for _ in range(depth):
        found = [found, found]
    return found


def itself():
    found = []
    found.append((found,))
    return found


# A structure of one pointer that says, in flags of 0, that it has none.
POINTER = {'p': (dtype('O8', 3, '|', None, None, None, -1, -1, 63), 0)}
FIELD = {'p': (np.dtype('i4'), 0)}
LARGE = torch.ones(300_000)
HOSTILE = {
    'pointer': with_meta(
        array(
            dtype('V8', 3, '|', None, ('p',), POINTER, 8, 1, 0),
            (1,),
            struct.pack('<Q', 0x4141414141414141),
        )
    ),
    'pointer in a number': with_meta(
        Pickled(
            SCALAR,
            (dtype('V8', 3, '|', None, ('p',), POINTER, 8, 1, 0), b'A' * 8),
        )
    ),
    'structure in a number': with_meta(
        array(
            dtype('f8', 3, '<', None, ('p',), FIELD, 8, 1, 63), (1,), b'8' * 8
        )
    ),
    'subarray': with_meta(
        array(
            dtype('i4', 3, '<', (F8, (9,)), None, None, 8, 1, 0), (1,), b'1234'
        )
    ),
    'objects': with_meta(np.array([{}, 1], dtype=object)),
    'fields': with_meta(np.zeros(3, [('a', 'i4')])),
    'dates': with_meta(np.zeros(3, 'M8[s]')),
    'no type': with_meta(array('O', (1,), b'A' * 8)),
    'shape above its bytes': with_meta(array(F8, (1 << 40,), b'A' * 8)),
    'negative shape': with_meta(array(F8, (-1, -1), b'A' * 8)),
    'no character': with_meta(array(np.dtype('U1'), (1,), b'\xff' * 4)),
    'log of text': {
        'state_dict': WEIGHTS,
        'message_hub': HistoryBuffer(['a'], [1]),
    },
    'repeated number': {'state_dict': {'a': torch.ones(1).expand(1 << 30)}},
    'repeated tensor': {
        'state_dict': {str(i): LARGE.view(-1) for i in range(40)}
    },
    'no data': {'state_dict': {'a': torch.ones(1 << 30, device='meta')}},
    'repeated byte': with_meta(Pickled(bytearray, (1 << 31,))),
    'bytes that expand': with_meta(Pickled(codecs.encode, (b'1' * 99, 'hex'))),
    'lists of lists': with_meta(nested(60)),
    'itself': with_meta(itself()),
    'no name': {'state_dict': {**WEIGHTS, 3: torch.ones(1)}},
    'bad digest': {
        'state_dict': WEIGHTS,
        'sparse_training': {
            **with_digest({'version': 1, 'masks': {}}),
            'masks': {'a.weight': torch.ones(2, 3).bool()},
        },
    },
}


@pytest.fixture
def refused(tmp_path):
    """Check that each reader refuses some bytes in a sentence, for nothing."""

    def check(content, words=''):
        path = tmp_path / 'bad.pth'
        path.write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for reader in (read, load_compact):
            with pytest.raises(UserError, match=f'{path}:? .*{words}') as stop:
                reader(path)
            assert '\n' not in str(stop.value)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after - before < 256 << 10  # KiB

    return check


@pytest.mark.parametrize('options', [{}, OLD])
@pytest.mark.parametrize('name', HOSTILE)
def test_what_is_no_plain_data_is_refused(name, options, refused):
    refused(saved(HOSTILE[name], **options))


def test_a_file_changes_nothing_of_the_process(tmp_path, monkeypatch):
    log = HistoryBuffer([1.0, 2.0], [1, 1])
    statistics = dict(HistoryBuffer._statistics_methods)
    weights = OrderedDict(WEIGHTS)
    weights.keys = torch.Size
    with monkeypatch.context() as patch:
        patch.setitem(HistoryBuffer._statistics_methods, 'mean', torch.Size)
        content = saved(
            {
                'state_dict': weights,
                'meta': {'config': 'import os'},
                'log': Pickled(
                    getattr, (HistoryBuffer, 'register_statistics')
                ),
                'message_hub': log,
            }
        )
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    found = read(path)
    assert_same(found['state_dict'], WEIGHTS)
    assert found['log'] is None and found['meta'] == {}
    assert found['message_hub'].mean() == 1.5
    assert HistoryBuffer._statistics_methods == statistics


def test_a_pickle_deeper_than_python_is_refused(refused):
    content = saved({'state_dict': WEIGHTS, 'deep': 'x' * 9})
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        pickled = file.read('archive/data.pkl')
    deep = b']' * 10**5 + b'a' * (10**5 - 1)
    text = b'X\x09\0\0\0' + b'x' * 9
    refused(
        rewritten(content, {'archive/data.pkl': pickled.replace(text, deep)})
    )


def rewritten(content, members=(), *, more=(), compression=zipfile.ZIP_STORED):
    """Rewrite the archive with other members and more at its end."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(stream, 'w', compression) as new,
    ):
        for name in old.namelist():
            new.writestr(name, dict(members).get(name, old.read(name)))
        for name in more:
            new.writestr(name, b'12345678')
    return stream.getvalue()


def lengthened(content):
    """Write a tensor of a billion numbers for a storage of 24 bytes."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        pickled = file.read('archive/data.pkl')
    many = b'J' + (10**9).to_bytes(4, 'little')
    assert pickled.count(b'K\x06t') == 1
    pickled = pickled.replace(b'K\x06t', many + b't')
    return rewritten(content, {'archive/data.pkl': pickled})


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_an_archive_that_torch_does_not_write_is_refused(refused):
    content = saved({'state_dict': WEIGHTS})
    zeros = {'archive/data/0': bytes(1 << 24)}
    refused(rewritten(content, more=['archive/data/0']), 'twice')
    refused(rewritten(content, more=['ARCHIVE/data/0']), 'twice')
    refused(
        rewritten(content, zeros, compression=zipfile.ZIP_DEFLATED),
        'is compressed',
    )
    refused(content + b'PK', 'directory|no checkpoint')
    refused(content[:-2] + b'\2\0PK', 'not at its end')
    refused(lengthened(content), 'no checkpoint')
    # Another directory, for readers that believe its place in the end record.
    end = bytearray(content[-98:])
    assert end[-42:-38] == b'PK\6\7'
    end[48] ^= 4
    refused(content[:-98] + end, 'no checkpoint')
    end[48] ^= 4
    end[-34] ^= 4  # The place of the record.
    refused(content[:-98] + end, 'no checkpoint')


def packed_checkpoint():
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(3, 5, generator=generator) < 0.5 for name in 'ab'
    }
    state = {
        n: torch.randn(3, 5, generator=generator) * masks[n] for n in masks
    }
    training = {'version': 1, 'masks': masks}
    return compact(
        {'meta': {}, 'state_dict': state, 'sparse_training': training}
    )


def spoil_shape(*shape):
    return lambda packed: packed['layers']['a'].update(shape=list(shape))


SPOILED = {
    'negative': spoil_shape(-3, -5),
    'transposed': spoil_shape(5, 3),
    'no integer': spoil_shape(3.0, 5),
    'overflow': spoil_shape(1 << 32, 1 << 32, 15),
    'too large': spoil_shape(1 << 40),
    'of another layer': lambda packed: packed['layers'].update(
        a=packed['layers']['b']
    ),
    'repeated bits': lambda packed: packed['layers']['a'].update(
        shape=[1 << 27],
        bits=torch.zeros(1, dtype=torch.uint8).expand(1 << 24),
    ),
    'bits beyond the shape': lambda packed: packed['layers']['a'][
        'bits'
    ].bitwise_or_(1),
    'values of another layer': lambda packed: packed['layers']['a'].update(
        values=packed['layers']['a']['values'].neg()
    ),
    'no values': lambda packed: packed['layers']['a'].pop('values'),
    'version': lambda packed: packed.update(version='1'),
    'of no weight': lambda packed: packed['layers'].update(
        c=packed['layers'].pop('a')
    ),
}
# Those that the digest alone tells.
BY_DIGEST = {'transposed', 'values of another layer'}


@pytest.mark.parametrize('name', SPOILED)
def test_a_spoiled_compact_file_is_refused(name, refused):
    checkpoint = packed_checkpoint()
    SPOILED[name](checkpoint[COMPACT_KEY])
    with pytest.raises(UserError, match='small.pth is damaged'):
        expand(checkpoint, 'small.pth')
    refused(saved(checkpoint))
    # With a digest of its own, by what is in it.
    packed = with_digest(checkpoint[COMPACT_KEY])
    if name not in BY_DIGEST:
        refused(saved({**checkpoint, COMPACT_KEY: packed}))


@pytest.mark.parametrize(
    'spoil',
    [
        lambda checkpoint: checkpoint['state_dict'].update(a=torch.ones(3, 5)),
        lambda checkpoint: checkpoint['sparse_training'].update(masks={}),
        lambda checkpoint: checkpoint['state_dict'].pop('a'),
        lambda checkpoint: checkpoint.pop('sparse_training'),
    ],
)
def test_a_compact_file_with_two_or_no_weights_is_refused(spoil, refused):
    checkpoint = packed_checkpoint()
    spoil(checkpoint)
    refused(saved(checkpoint))


def test_masks_with_the_digest_of_others_are_refused(refused):
    checkpoint = packed_checkpoint()
    training = checkpoint['sparse_training']
    masks = {'a': torch.ones(3, 5).bool(), 'b': torch.ones(3, 5).bool()}
    digest = with_digest({**training, 'masks': masks})['digest']
    refused(
        saved(
            {**checkpoint, 'sparse_training': {**training, 'digest': digest}}
        ),
        'not what was saved',
    )


@pytest.mark.parametrize('seed', range(3))
def test_plain_numbers_and_text_come_back(seed, tmp_path):
    print(f'seed {seed}')
    draw = np.random.default_rng(seed)
    kinds = 'bool i1 u2 i4 u8 f2 f4 f8 c8 c16 longdouble U3 S2'.split()
    meta = {
        f'{kind}{order}{shape}': draw.integers(0, 2, shape)
        .astype(np.dtype(kind).newbyteorder(order))
        .copy(order='F' if len(shape) > 1 else 'C')
        for kind in kinds
        for order in '<>'
        for shape in ((), (0,), (3,), (2, 3))
    }
    meta |= {f'n{kind}': np.zeros(1, kind)[0] for kind in kinds}
    meta['log'] = [HistoryBuffer([1.0, 3.0], [1, 1], 7)]
    for options in ({}, OLD):
        path = tmp_path / 'a.pth'
        path.write_bytes(saved({'meta': meta, **WEIGHTS}, **options))
        found = read(path)['meta']
        (log,) = found.pop('log')
        assert log.mean() == 2 and log.max_length == 7
        for key, value in found.items():
            assert type(value) is type(meta[key]), key
            assert value.dtype == meta[key].dtype, key
            np.testing.assert_array_equal(value, meta[key])
