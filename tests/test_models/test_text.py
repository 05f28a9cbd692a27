"""Text: preparing it, its windows, the metric, and runs of a tiny GPT."""

import math
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from helpers.forked_scripts import train_ranks
from helpers.runs import ROOT
from helpers.sparse_runs import load, probed, train
from helpers.texts import SMALL, mini_text
from sift_mm.cli import generate, prepare_text, test
from sift_mm.config.building import build
from sift_mm.config.dense import make_dense
from sift_mm.config.loading import read_config
from sift_mm.data.tokens import HEADER, TokenHeader, open_tokens, write_tokens
from sift_mm.errors import UserError
from sift_mm.models import GPT, Perplexity, TokenCheckHook, TokenWindows
from sift_mm.models.tokenizer import open_tokenizer

CONFIG = ROOT / 'configs/gpt/gpt-tiny-sift-wide-s75_set-1xb16-2k_text.py'
RUN = f"""
_base_ = {str(CONFIG)!r}
model = dict({', '.join(f'{k}={v}' for k, v in SMALL.items())}, dropout=0.1)
data = dict(context=8, vocabulary=VOCABULARY, data_root=ROOT)
train_dataloader = dict(batch_size=8, dataset=dict(windows=320, **data))
val_dataloader = dict(batch_size=4, dataset=data)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=40, val_interval=20)
param_scheduler = []
optim_wrapper = dict(optimizer=dict(lr=0.01))
default_hooks = dict(checkpoint=dict(interval=20), logger=dict(interval=20))
custom_imports = dict(imports=['sift_mm', 'helpers.sparse_runs'])
custom_hooks = [
    dict(type='SparseTrainingHook', algorithm='SET', interval=5, end=1.0),
    dict(type='MaskProbe')]
"""


def write_run(folder, data, vocabulary=SMALL['vocabulary']):
    path = folder / 'gpt.py'
    code = RUN.replace('ROOT', repr(str(data)))
    path.write_text(code.replace('VOCABULARY', str(vocabulary)))
    return str(path)


def test_tokens_file_round_trip(tmp_path):
    path, ids = tmp_path / 'x.bin', np.array([0, 1, 65535, 7])
    header = TokenHeader(65536, 4, 9, 2)
    write_tokens(path, ids, header)
    assert path.stat().st_size == HEADER + 8
    # Little endian, behind a header of text.
    assert path.read_bytes()[HEADER:] == b'\0\0\1\0\xff\xff\7\0'
    found, read = open_tokens(path)
    assert isinstance(found, np.memmap)
    assert found.tolist() == ids.tolist() and read == header


@pytest.mark.parametrize(
    'damage, match',
    [
        (lambda b: b[:-1], 'has 655 bytes, and its header says 656'),
        (lambda b: b[:50], 'is no file of tokens'),
        (lambda b: b'', 'is no file of tokens'),
        (lambda b: b.replace(b'tokens 1', b'tokens 2'), 'no file of tokens'),
        (lambda b: b.replace(b'"bytes"', b'"bites"'), 'no file of tokens'),
        (lambda b: b[:-2] + b'\xff\xff', 'has the token 65535, and its he'),
        (None, 'There is no file of tokens'),
    ],
)
def test_damaged_tokens_are_refused(damage, match, tmp_path):
    path = mini_text(tmp_path / 'text') / 'train.bin'
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    with pytest.raises(UserError, match=match):
        TokenWindows(str(tmp_path / 'text'))


def test_windows(tmp_path):
    root = str(mini_text(tmp_path / 'text'))
    ids, _ = open_tokens(tmp_path / 'text/val.bin')
    val = TokenWindows(root, 'val', context=8)
    # 29 tokens have one before them: three windows, and five of a fourth.
    assert len(val) == 4
    counted = [w['targets'][w['targets'] >= 0].tolist() for w in val]
    assert [len(one) for one in counted] == [8, 8, 8, 5]
    assert sum(counted, []) == ids[1:].tolist()
    assert val.metainfo == dict(bytes_per_token=2.0)
    for window in val:
        known = window['targets'][:-1] >= 0
        assert torch.equal(
            window['inputs'][1:][known], window['targets'][:-1][known]
        )

    first, again, other = (
        TokenWindows(root, context=8, windows=50, seed=seed)
        for seed in (0, 0, 1)
    )
    starts = [tuple(w['inputs'].tolist()) for w in first]
    assert starts == [tuple(again[i]['inputs'].tolist()) for i in range(50)]
    assert starts != [tuple(other[i]['inputs'].tolist()) for i in range(50)]
    assert len(set(starts)) > 20
    for context, vocabulary, match in (
        (200, None, 'needs 201: add text'),
        (8, 15, 'vocabulary of 16 tokens, and vocabulary=15'),
    ):
        with pytest.raises(UserError, match=match):
            TokenWindows(root, context=context, vocabulary=vocabulary)


def test_perplexity_by_hand():
    metric = Perplexity()
    metric.dataset_meta = dict(bytes_per_token=4.0)
    # 8 tokens of 3 bits each, and 2 tokens of 8.
    for bits, tokens in ((24, 8), (16, 2)):
        metric.process({}, [dict(nats=bits * math.log(2), tokens=tokens)])
    assert metric.evaluate(2) == pytest.approx(
        {
            'text/nats': 4 * math.log(2),
            'text/perplexity': 16,
            'text/bits_per_byte': 1,
        }
    )


def prepare(folder, *files, **options):
    flags = [str(file) for file in files]
    for name, value in options.items():
        flags += [f'--{name.replace("_", "-")}', str(value)]
    prepare_text.main([*flags, '--out', str(folder)])


def test_preparing_text(tmp_path, monkeypatch):
    documents = [f'Text {i}: ä <|endoftext|>\n\n ß {i}\n' for i in range(9)]
    path = tmp_path / 'all.txt'
    path.write_bytes('=====\n'.join(documents).encode('utf-8-sig'))
    out = tmp_path / 'out'
    monkeypatch.setattr(prepare_text, 'PIECE', 10)
    prepare(out, path, separator='=====', vocabulary=300, val_share=0.2)
    bpe = open_tokenizer(str(out))
    found = {}
    for name, number in (('train', 7), ('val', 2)):
        ids, header = open_tokens(out / f'{name}.bin')
        ends = np.flatnonzero(ids == bpe.get_vocab_size() - 1)
        texts = [
            bpe.decode(part.tolist()[:-1])
            for part in np.split(ids, ends + 1)[:-1]
        ]
        assert header.documents == len(texts) == number
        assert header.bytes == sum(len(t.encode()) for t in texts)
        assert header.vocabulary <= 300 and ids.max() < header.vocabulary
        found[name] = texts
    assert sorted(found['train'] + found['val']) == documents


@pytest.mark.parametrize(
    'content, options, match',
    [
        (b'caf\xe9', {}, 'not in UTF-8 .byte 3 is 0xe9'),
        (b' \n', {}, 'has no text'),
        ('text'.encode('utf-16-le'), {}, 'has zero bytes'),
        (None, {}, 'cannot be read'),
        (b'one', {}, 'validation needs another'),
        (b'one', dict(separator='=='), 'No file has the line'),
        (b'one', dict(vocabulary=256), '2'),
        (b'a\n==\nb', dict(separator='==', val_share=2), '--val-share is a'),
    ],
)
def test_unfit_text_is_refused(content, options, match, tmp_path):
    path = tmp_path / 'x.txt'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=match):
        prepare(tmp_path / 'out', path, **options)
    assert not (tmp_path / 'out').exists()


def test_without_tokenizers(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(SystemExit, match='pip install tokenizers'):
        prepare(tmp_path / 'out', tmp_path / 'x.txt')


def test_a_tiny_gpt_trains_tests_resumes_and_writes(tmp_path, capsys):
    files = [tmp_path / f'{i}.txt' for i in range(3)]
    for file in files:
        file.write_text('aabc ' * 60)
    data = tmp_path / 'data'
    prepare(data, *files, vocabulary=264)
    config = write_run(tmp_path, data, 'model["vocabulary"]')
    code = (tmp_path / 'gpt.py').read_text()
    (tmp_path / 'gpt.py').write_text(
        code.replace('vocabulary=16', 'vocabulary=264')
    )
    whole = train(config, tmp_path / 'whole')
    checkpoint = tmp_path / 'whole/iter_40.pth'
    found = test.main([config, str(checkpoint), '--work-dir', str(tmp_path)])
    # 264 tokens alike have 5.58 nats.
    assert found['text/nats'] < 3
    assert found['flops'] == pytest.approx(found['flops_of_dense'], rel=5e-3)

    # The same bits after a stop halfway, with dropout and mask updates.
    half = tmp_path / 'half'
    half.mkdir()
    (half / 'iter_20.pth').write_bytes(
        (tmp_path / 'whole/iter_20.pth').read_bytes()
    )
    resumed = train(config, half, '--resume')
    assert resumed['meta']['iter'] == 40
    for key in ('state_dict', 'optimizer'):
        assert_equal(resumed[key], whole[key])
    masks, others = (
        run['sparse_training']['masks'] for run in (resumed, whole)
    )
    assert masks.keys() == others.keys() and len(masks) == 12
    assert_equal(masks, others)
    old = load(tmp_path / 'whole/iter_20.pth')['sparse_training']['masks']
    assert any(not torch.equal(old[name], masks[name]) for name in masks)

    capsys.readouterr()
    args = [config, str(checkpoint), '--prompt', 'aab', '--length', '20']
    said = []
    for more in (['--seed', '1'], ['--seed', '1'], ['--temperature', '0']):
        generate.main([*args, *more])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and all(one.startswith('aab') for one in said)
    generate.main([*args, '--temperature', '1e-320'])
    assert capsys.readouterr().out == said[2]
    with pytest.raises(SystemExit, match='--prompt is empty'):
        generate.main([*args, '--prompt', ''])
    with pytest.raises(SystemExit):
        generate.main([*args, '--prompt', 'a\udcff'])
    assert '--prompt is not in UTF-8' in capsys.readouterr().err

    # Tokens of another tokenizer are as good as noise.
    prepare(data, *files, vocabulary=259)
    with pytest.raises(SystemExit, match='trained on tokens of tokenizer'):
        generate.main(args)
    options = ['--work-dir', str(tmp_path)]
    with pytest.raises(SystemExit, match='trained on tokens of tokenizer'):
        test.main([config, str(checkpoint), *options])
    with pytest.raises(SystemExit, match='trained on tokens of tokenizer'):
        train(config, half, '--resume')


def assert_equal(one, two):
    """Assert that nested dicts and lists hold the same bits."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, list):
        for pair in zip(one, two, strict=True):
            assert_equal(*pair)
    else:
        assert one == two


def test_two_ranks_have_equal_masks(tmp_path):
    config = write_run(tmp_path, mini_text(tmp_path / 'text'))
    path = tmp_path / 'gpt.py'  # RigL reads gradients, which ranks share.
    path.write_text(path.read_text().replace("'SET'", "'RigL'"))
    train_ranks(config, tmp_path / 'run')
    ranks = [probed(tmp_path / 'run', rank) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert len({record['digest'] for record in ranks[0]}) > 4
    assert not any(record['stray'] for record in ranks[0])


def test_options_make_a_dense_config_sparse():
    path = str(CONFIG.with_name('gpt-tiny_1xb16-2k_text.py'))
    cfg = read_config(path, family='wide', sparsity=0.5, algorithm='RigL')
    # 128 sqrt(2) is 181, and 46 x 4 heads are the next.
    assert build(cfg).d_model == 184
    assert cfg.custom_hooks[0]['algorithm'] == 'RigL'
    dense = make_dense(cfg)[1]
    assert (dense.family, dense.d_model) == (None, 128)
    cfg = read_config(path, pretrained='a.pth')
    assert cfg.model.init_cfg == dict(type='Pretrained', checkpoint='a.pth')


@pytest.mark.filterwarnings('ignore:Detected call of')
def test_the_recipe_of_gpt3_small():
    path = CONFIG.with_name('gpt3-small_32xb8-4778_text.py')
    cfg = read_config(str(path))
    cfg.model.update(SMALL)
    wrapper = build_optim_wrapper(build(cfg), cfg.optim_wrapper)
    assert wrapper.clip_grad_kwargs == dict(max_norm=1.0)
    optimizer = wrapper.optimizer
    for group in optimizer.param_groups:
        assert (group['betas'], group['eps']) == ((0.9, 0.95), 1e-8)
        dims = {parameter.dim() for parameter in group['params']}
        assert dims == {2 if group['weight_decay'] == 0.1 else 1}
        assert group['weight_decay'] in (0, 0.1)
    steps = [
        PARAM_SCHEDULERS.build(one, default_args=dict(optimizer=optimizer))
        for one in cfg.param_scheduler
    ]
    rates = []
    for _ in range(4778):
        rates.append(optimizer.param_groups[0]['lr'])
        for one in steps:
            one.step()
    # 375 M tokens are 715 batches of 256 x 2048.
    assert 715 * 256 * 2048 == pytest.approx(375e6, rel=1e-3)
    assert rates.index(max(rates)) == pytest.approx(715, abs=1)
    assert max(rates) == pytest.approx(6e-4)
    assert rates[357] == pytest.approx(3e-4, rel=0.01)
    middle = 715 + 4063 // 2
    assert rates[middle] == pytest.approx(3.3e-4, rel=0.01)
    assert rates[-1] == pytest.approx(6e-5, rel=0.01)


@pytest.mark.parametrize(
    'options, match',
    [
        (dict(vocabulary=12), 'vocabulary of 16 tokens, and the network one'),
        (dict(context=4), 'val data have 8 tokens, and model.context is 4'),
        (dict(context=9), '8 tokens, and model.context is 9, where FLOPs are'),
        (dict(context=9, flops='nominal'), None),
        (dict(context=9, family=None, sparsity=None), None),
    ],
)
def test_data_of_another_shape_are_refused(options, match, tmp_path):
    data = TokenWindows(str(mini_text(tmp_path / 'text')), context=8)
    name = 'val' if match and match.startswith('val') else 'train'
    loop = {f'_{name}_loop': SimpleNamespace(dataloader=SimpleNamespace())}
    model = GPT(**(SMALL | dict(family='wide', sparsity=0.5) | options))
    runner = SimpleNamespace(model=model, **loop)
    loop[f'_{name}_loop'].dataloader.dataset = data
    with pytest.raises(UserError, match=match) if match else nullcontext():
        TokenCheckHook().before_run(runner)


def test_bits_per_byte_count_the_text_that_is_scored(tmp_path):
    (tmp_path / 'a').write_text('hello world. ' * 9)
    (tmp_path / 'b').write_text('hello word. ' * 9)
    out = tmp_path / 'out'
    prepare(out, tmp_path / 'a', tmp_path / 'b', vocabulary=270)
    val = TokenWindows(str(out), 'val', context=8)
    bpe = open_tokenizer(str(out))
    ids = sum((w['targets'][w['targets'] >= 0].tolist() for w in val), [])
    size = len(bpe.decode(ids).encode())
    first = len(bpe.decode(open_tokens(out / 'val.bin')[0][:1].tolist()))
    assert first > 1
    metric = Perplexity()
    metric.dataset_meta = val.metainfo
    metric.process({}, [dict(nats=len(ids) * math.log(2), tokens=len(ids))])
    found = metric.evaluate(1)['text/bits_per_byte']
    assert found == pytest.approx(len(ids) / size, rel=1e-12)


def test_long_lines_are_cut(monkeypatch):
    monkeypatch.setattr(prepare_text, 'PIECE', 10)
    text = 'ab\n' + 'x' * 35 + '\ncd'
    pieces = list(prepare_text.cut(text))
    assert ''.join(pieces) == text
    assert max(map(len, pieces)) < 20
