"""Reading checkpoints: bad files are named, and none runs code."""

import http.server
import io
import os
import pickle
import threading
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from helpers.sparse_runs import sparse_config
from helpers.toy_runs import assert_same, pretrained_toy, toy_run, toy_runner
from sift_mm import load_compact
from sift_mm.checkpoint import reading
from sift_mm.checkpoint.reading import TRUST, load_plain, read
from sift_mm.cli import benchmark, publish_model, train
from sift_mm.cli import test as tester
from sift_mm.config.resume import check_checkpoint
from sift_mm.engine import use_safe_files
from sift_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('fresh_process')
use_safe_files()
WEIGHTS = {'a.weight': torch.arange(6.0).view(2, 3)}


class Code:
    """Object that makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Reach:
    """With MMEngine's own list of safe types this gets at any attribute."""

    def __reduce__(self):
        return getattr, (np.ndarray, '__class__')


def saved(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as file:
        file.writestr('a.txt', 'no checkpoint')
    return stream.getvalue()


def scripted():
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.tanh, torch.ones(1)), stream)
    return stream.getvalue()


def flipped():
    content = bytearray(saved({'state_dict': WEIGHTS}))
    content[content.index(np.float32(3).tobytes())] ^= 1
    return bytes(content)


def sparse(training):
    return saved({'state_dict': WEIGHTS, 'sparse_training': training})


OLD = dict(_use_new_zipfile_serialization=False)
BAD = {
    'empty': (b'', 'damaged: it is no pickle of tensors'),
    'text': (b'# Notes\nNo checkpoint.', 'no pickle of tensors'),
    'jpeg': (b'\xff\xd8\xff\xe0\0\x10JFIF' + bytes(99), 'no pickle of'),
    'safetensors': (
        b'\x3c\0\0\0\0\0\0\0{"a":{"dtype":"F32"}}' + bytes(9),
        'no checkpoint',
    ),
    'zip': (zipped(), 'no checkpoint'),
    'cut': (saved({'state_dict': WEIGHTS})[:-100], 'no checkpoint'),
    'cut, old': (saved({'state_dict': WEIGHTS}, **OLD)[:-9], 'no checkpoint'),
    'flipped': (flipped(), "damaged: the checksum of '.*data/0'"),
    'script': (scripted(), 'no checkpoint.*archives'),
    'list': (saved([1, 2]), 'no weights by name'),
    'tensor': (saved(torch.ones(3)), 'no weights by name'),
    'module': (saved(torch.nn.Linear(2, 2)), 'contains torch.nn.*Linear.*=1'),
    'reach': (saved(Reach()), 'contains builtins.getattr'),
    'reach, old': (saved(Reach(), **OLD), 'contains builtins.getattr'),
    'no weights': (saved({'meta': {'epoch': 1}}), 'no weights by name'),
    'weights in a list': (saved({'state_dict': [1]}), 'no weights by name'),
    'no tensor': (saved({'state_dict': {**WEIGHTS, 'b': 3}}), "'b' in its"),
}
BAD_MASKS = {
    'no masks': (sparse({'version': 1}), 'holds no masks'),
    'mask a text': (sparse({'masks': {'a.weight': 'x'}}), 'no bool tensor'),
    'mask of floats': (sparse({'masks': WEIGHTS}), 'no bool tensor'),
    'newer': (sparse({'version': 99, 'masks': {}}), 'version 99'),
    'version a text': (sparse({'version': '1', 'masks': {}}), 'damaged'),
    'not finite': (saved({'state_dict': {'a': torch.ones(1) / 0}}), "'a' of"),
    'of no weight': (
        sparse({'masks': {'b': torch.ones(2, 3).bool()}}),
        "'b' has no weight of its shape",
    ),
    'of another shape': (
        sparse({'masks': {'a.weight': torch.ones(3, 2).bool()}}),
        'has no weight of its shape',
    ),
    'of other weights': (
        sparse({'masks': {'a.weight': torch.eye(2, 3).bool()}}),
        'not zero outside its mask',
    ),
}


def said(main, argv, capsys):
    """Return the message with which a command line ends."""
    with pytest.raises((UserError, SystemExit)) as stop:
        main([str(arg) for arg in argv])
    return f'{stop.value} {capsys.readouterr()}'


@pytest.mark.parametrize('name', BAD)
def test_a_bad_file_is_named(name, tmp_path):
    content, words = BAD[name]
    path = tmp_path / 'bad.pth'
    path.write_bytes(content)
    for reader in (read, load_compact, CheckpointLoader.load_checkpoint):
        with pytest.raises(UserError, match=f'{path} .*{words}'):
            reader(str(path))


def test_a_start_is_read_once(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        reading, 'load_plain', lambda *a: opened.append(1) or load_plain(*a)
    )
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': WEIGHTS}, path)
    check_checkpoint(str(path))
    load = CheckpointLoader.load_checkpoint
    assert_same(load(str(path), 'cpu')['state_dict'], WEIGHTS)
    assert len(opened) == 1
    load(str(path), 'cpu')  # Nothing is kept any longer.
    assert len(opened) == 2
    check_checkpoint(str(path))
    other = {'a.weight': torch.ones(2, 3)}
    torch.save({'state_dict': other, 'more': 'of it'}, path)
    assert_same(load(str(path), 'cpu')['state_dict'], other)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(
        UserError, match=f'There is no checkpoint {tmp_path}/a'
    ):
        read(tmp_path / 'a.pth')
    with pytest.raises(UserError, match=f'{tmp_path} cannot be read:.*direct'):
        read(tmp_path)
    os.mkfifo(tmp_path / 'pipe')
    for path in (tmp_path / 'pipe', '/dev/zero'):
        with pytest.raises(UserError, match=f'{path} .*no ordinary file'):
            read(path)


@pytest.mark.parametrize('name', BAD | BAD_MASKS)
def test_a_bad_file_is_not_published(name, tmp_path, capsys):
    content, words = (BAD | BAD_MASKS)[name]
    path = tmp_path / 'bad.pth'
    path.write_bytes(content)
    text = said(publish_model.main, [path, tmp_path / 'out.pth'], capsys)
    with pytest.raises(UserError, match=f'{path}:? .*{words}'):
        raise UserError(text)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('options', [{}, OLD])
def test_code_in_a_file_is_not_run(options, tmp_path, capsys):
    path, made = tmp_path / 'bad.pth', tmp_path / 'made'
    path.write_bytes(
        saved({'state_dict': WEIGHTS, 'meta': Code(made)}, **options)
    )
    config = sparse_config(tmp_path / 'c', 'mmpretrain', tmp_path / 'nowhere')
    for main, argv in (
        (tester.main, [config, path]),
        (train.main, [config, '--resume', path]),
        (train.main, [config, '--pretrained', path]),
        (train.main, [config, '--cfg-options', f'load_from={path}']),
        (publish_model.main, [path, tmp_path / 'out.pth']),
        (benchmark.main, [config, path, '--shape', '32', '32']),
    ):
        text = said(main, argv, capsys)
        assert f'{path} is not loaded: it contains posix.mkdir' in text
        assert f'{TRUST}=1' in text
    for options in (
        dict(load_from=str(path)),
        dict(load_from=str(path), resume=True),
        dict(model=pretrained_toy(path)),
    ):
        runner = toy_runner(tmp_path / 'run', dict(), **options)
        with pytest.raises(UserError, match=f'{path} is not loaded'):
            runner.train()
    with pytest.raises(UserError, match=f'{path} is not loaded'):
        load_compact(path)
    assert not made.exists()


def test_a_trusted_file_is_loaded(tmp_path, monkeypatch):
    path, made = tmp_path / 'a.pth', tmp_path / 'made'
    path.write_bytes(saved({'state_dict': WEIGHTS, 'meta': Code(made)}))
    monkeypatch.setenv(TRUST, '1')
    assert_same(read(path)['state_dict'], WEIGHTS)
    made.rmdir()
    checkpoint = CheckpointLoader.load_checkpoint(str(path))
    assert_same(checkpoint['state_dict'], WEIGHTS)
    made.rmdir()


def test_code_in_a_file_from_the_net_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    made = tmp_path / 'made'
    for name, content in (
        ('bad.pth', {'state_dict': WEIGHTS, 'meta': Code(made)}),
        ('good.pth', {'state_dict': WEIGHTS}),
    ):
        (tmp_path / name).write_bytes(saved(content))
    handler = partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path)
    )
    with http.server.HTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        good = CheckpointLoader.load_checkpoint(f'{address}/good.pth')
        with pytest.raises(
            UserError, match=f'{address}/bad.pth is not loaded'
        ):
            CheckpointLoader.load_checkpoint(f'{address}/bad.pth')
        server.shutdown()
    assert_same(good['state_dict'], WEIGHTS)
    assert not made.exists()


def test_a_checkpoint_of_a_run_is_read_whole(tmp_path):
    ema = dict(type='EMAHook', momentum=0.1)
    toy_run(tmp_path, dict(), epochs=1, custom_hooks=[ema])
    path = tmp_path / 'epoch_1.pth'
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    found, whole = read(path), torch.load(path, weights_only=False)
    assert found.keys() == whole.keys()
    assert found['meta'] == whole['meta']
    assert_same(found['ema_state_dict'], whole['ema_state_dict'])
    history = found['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    same = whole['message_hub']['log_scalars']['train/loss']
    assert history.mean() == same.mean() == history.statistics('mean')
    # What was allowed for it is not allowed to others.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize('options', [{}, OLD])
def test_meta_of_the_model_zoos_is_read(options, tmp_path):
    meta = dict(
        epoch=np.int64(3),
        mAP=np.float64(0.5),
        lr=np.float32(0.5),
        best=np.bool_(True),
        palette=np.arange(6, dtype=np.uint8).reshape(2, 3),
        CLASSES=('a', 'b'),
        names=np.array(['a', 'bc']),
    )
    path = tmp_path / 'a.pth'
    path.write_bytes(saved(dict(meta=meta, state_dict=WEIGHTS), **options))
    found = read(path)
    assert_same(found['state_dict'], WEIGHTS)
    assert repr(found['meta']) == repr(meta)
    publish_model.main([str(path), str(tmp_path / 'slim.pth')])
    (slim,) = tmp_path.glob('slim-*')
    published = torch.load(slim, weights_only=True)['meta']
    assert published['palette'] == [[0, 1, 2], [3, 4, 5]]
    assert published['mAP'] == 0.5 and published['CLASSES'] == ['a', 'b']


def test_a_file_written_with_numpy_1_is_read(tmp_path):
    content = saved({'meta': np.float64(0.5), 'state_dict': WEIGHTS}, **OLD)
    content = content.replace(b'numpy._core.multi', b'numpy.core.multi')
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    assert read(path)['meta'] == 0.5


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Publish a plain and a compact file; return bytes and weights."""
    folder = tmp_path_factory.mktemp('published')
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(40, 9, generator=generator) < 0.2
    state = {
        'a': torch.randn(40, 9, generator=generator) * mask,
        'b': torch.randn(7, generator=generator),
    }
    training = {'version': 1, 'steps': 3, 'masks': {'a': mask}}
    torch.save(
        {'meta': {}, 'state_dict': state, 'sparse_training': training},
        folder / 'run.pth',
    )
    files = []
    for options in ([], ['--compact']):
        publish_model.main(
            [str(folder / 'run.pth'), str(folder / 'out.pth'), *options]
        )
        (path,) = folder.glob('out-*.pth')
        files.append(path.read_bytes())
        path.unlink()
    return folder / 'damaged.pth', files, state


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damage_is_found_or_does_no_harm(published, data):
    path, files, state = published
    content = bytearray(data.draw(st.sampled_from(files)))
    place = st.integers(0, len(content) - 1)
    if data.draw(st.booleans()):
        del content[data.draw(place) :]
    else:
        changes = st.tuples(place, st.integers(1, 255))
        for at, bits in data.draw(st.lists(changes, min_size=1, max_size=4)):
            content[at] ^= bits
    path.write_bytes(content)
    try:
        found = load_compact(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert_same(found, state)
