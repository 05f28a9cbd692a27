"""Values of arguments, sensible and not: each means something or is refused.

The predicates here say again, on their own, what each argument may be.
"""

import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from mmengine.config import Config, ConfigDict
from torch import nn

from sift_mm.config.checks import check_config
from sift_mm.engine.hook import SparseTrainingHook
from sift_mm.errors import UserError

CASES = int(os.environ.get('SIFT_MM_CASES', 400))


def cases(share):
    return settings(
        max_examples=max(1, int(CASES * share)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def number(low, high, open_low=False, open_high=False):
    return lambda v: (
        isinstance(v, (int, float, np.integer, np.floating))
        and not isinstance(v, bool)
        and low <= v <= high
        and not (open_low and v == low)
        and not (open_high and v == high)
    )


def whole(least):
    return lambda v: type(v) in (int, np.int64) and least <= v < 2**63


def word(*words):
    return lambda v: type(v) is str and v in words


def strings(v):
    return type(v) in (list, tuple) and all(
        type(one) is str and len(one) for one in v
    )


def flag(v):
    return type(v) in (bool, np.bool_)


def optional(means):
    return lambda v: v is None or means(v)


sparsity = number(0, 1, open_high=True)
share = number(0, 1)


def part(**arguments):
    """Return the predicate of a registered part, given its arguments."""
    arguments = {name.lower(): known for name, known in arguments.items()}

    def means(v):
        if type(v) is str:
            v = dict(type=v)
        if not isinstance(v, dict) or type(v.get('type')) is not str:
            return False
        name = v['type'].lower().replace('-', '').replace('_', '')
        known = arguments.get(name.replace('+', 'plus'))
        return known is not None and all(
            key == 'type' or (key in known and known[key](value))
            for key, value in v.items()
        )

    return means


structure = dict(structure=part(Unstructured={}))
algorithm = part(Static=structure, SET=structure, RigL=structure)
initial = dict(initial=share)
schedule = part(Constant=initial, Linear=initial, Cosine=initial)


def patterns(v):
    return (
        isinstance(v, dict)
        and len(v) > 0
        and all(type(one) is str and one for one in v)
        and all(map(sparsity, v.values()))
    )


def distribution(v):
    known = part(
        Uniform={},
        UniformPlus=dict(last=share),
        ER={},
        ERK={},
        Explicit=dict(sparsities=patterns),
    )
    explicit = str(v).lower() == 'explicit' or (
        isinstance(v, dict)
        and v.get('type') == 'Explicit'
        and 'sparsities' not in v
    )
    return known(v) and not explicit


COMMON = dict(
    algorithm=algorithm,
    sparsity=optional(sparsity),
    distribution=distribution,
    init=optional(part(Random={}, TopK={}, FromWeights={})),
    drop_fraction=lambda v: share(v) or schedule(v),
    interval=whole(1),
    end=number(0, 1, open_low=True),
    include=optional(lambda v: strings(v) and len(v) > 0),
    exclude=strings,
    execution=word('auto', 'sparse', 'dense'),
    placement=word('after_step', 'replace_step'),
    seed=optional(whole(0)),
)
GROUP = ('algorithm', 'sparsity', 'drop_fraction', 'interval', 'end')


def groups(v):
    return isinstance(v, dict) and all(
        type(pattern) is str
        and pattern
        and isinstance(own, dict)
        and own
        and all(k in GROUP and COMMON[k](value) for k, value in own.items())
        for pattern, own in v.items()
    )


COMMON['groups'] = groups
HOOK = dict(
    COMMON,
    transfer=word('fixed', 'train', 'dense'),
    log_layers=lambda v: flag(v) or whole(1)(v),
)
BACKBONE = dict(
    family=word('wide', 'parallel', 'factorized', 'doped', 'wide_factorized'),
    sparsity=sparsity,
    flops=word('match', 'match_model', 'nominal'),
    inner=optional(word('none', 'norm', 'norm_act')),
    sparse_factors=optional(word('both', 'u', 'none')),
    match_shape=optional(
        lambda v: (
            type(v) in (list, tuple) and len(v) == 2 and all(map(whole(1), v))
        )
    ),
    unmasked=flag,
)
WRAPPER = dict(
    BACKBONE,
    include=COMMON['include'],
    exclude=strings,
)
ALL_WORDS = (
    'Static SET RigL Rigl2 Uniform UniformPlus ER ERK Explicit Random TopK '
    'FromWeights Constant Linear Cosine Unstructured fixed train dense auto '
    'sparse after_step replace_step wide parallel factorized doped norm '
    'wide_factorized match match_model nominal none norm_act both u 3 0.5 '
    'free bounded no yes weight * before aftr_step'.split()
)
WORDS = st.sampled_from(ALL_WORDS)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.floats(0, 1),
    st.sampled_from(
        [0.0, 1.0, 0.5, -0.1, math.nan, math.inf, 10**400, 2**63 - 1]
    ),
    st.sampled_from([np.float32(0.5), np.float64(2), np.int64(7)]),
    st.sampled_from([np.bool_(True), np.float32('nan')]),
)
LEAVES = st.one_of(
    NUMBERS,
    WORDS,
    st.text(max_size=3),
    st.none(),
    st.booleans(),
    st.binary(max_size=2),
    st.complex_numbers(),
    st.builds(object),
    st.sampled_from([int, len, np.zeros(2), torch.zeros(1), nn.ReLU]),
)
KEYS = st.sampled_from(
    ['type', 'initial', 'last', 'structure', 'sparsities', 'intial', 'a*', 3]
)
LISTS = st.lists(LEAVES, max_size=3) | st.lists(WORDS, max_size=2)
PATTERNS = st.dictionaries(WORDS, st.floats(0, 1), max_size=2)
DICTS = st.dictionaries(KEYS, LEAVES | PATTERNS, max_size=2)
PARTS = st.builds(lambda kind, rest: dict(rest, type=kind), WORDS, DICTS)
VALUES = st.one_of(
    LEAVES,
    WORDS,
    NUMBERS,
    LISTS,
    LISTS.map(tuple),
    st.tuples(NUMBERS, NUMBERS),
    st.sets(WORDS, max_size=2),
    DICTS,
    PARTS,
    PARTS.map(ConfigDict),
)
LIKELY = dict(
    algorithm=['rigl', dict(type='SET', structure='unstructured')],
    distribution=[
        'uniform+',
        dict(type='UniformPlus', last=0.5),
        dict(type='Explicit', sparsities={'*': np.float64(0.5)}),
        dict(type='Explicit', sparsities={'*': 1.0}),
        dict(type='Explicit'),
    ],
    init=['top_k', dict(type='Random'), dict(type='Random', seed=1)],
    drop_fraction=[dict(type='Linear', initial=i) for i in (0.5, 1, 2, '1')],
    include=[['*'], ('a*', 'b'), [''], 'weight'],
    exclude=[['*'], ('a*', 'b'), [''], 'weight'],
    groups=[
        {'a*': dict(algorithm='SET', interval=np.int64(3))},
        {'a*': dict(sparsity=0.5), 'b': {}},
        {'a*': dict(end=0.5, seed=3)},
        {'': dict(interval=2)},
        ConfigDict({'a*': dict(drop_fraction=dict(type='Linear'))}),
        [dict(interval=2)],
    ],
    match_shape=[(32, 64), [np.int64(8), 8], (0, 8), (8.0, 8), (8,)],
)


def named_values(table):
    """Draw argument names with values, about half of them valid."""

    def values(name):
        words = [one for one in ALL_WORDS if table[name](one)]
        likely = [*words, *LIKELY.get(name, [])]
        if any(map(table[name], (1, 7, 0.5))):
            likely += [0.25, np.float32(0.5), 1, 7, np.int64(7), 0]
        if table[name](True):
            likely += [True, False, np.bool_(True)]
        # Not one_of, which would weigh them as one to the many in VALUES.
        drawn = st.tuples(VALUES, st.sampled_from(likely), st.booleans())
        return drawn.map(lambda case: (name, case[case[2]]))

    return st.one_of(*map(values, sorted(table)))


def settle(build, name, value, means):
    """Build, or check that the UserError names argument and value."""
    meant = bool(means(value))
    event('sensible' if meant else 'nonsense')
    try:
        built = build()
    except UserError as error:
        assert not meant, f'{name}={value!r} is refused: {error}'
        text = str(error)
        assert name in text
        shown = value.item() if isinstance(value, np.generic) else value
        known = [shown]
        if name == 'groups' and isinstance(value, dict):
            known += value  # The pattern of the wrong one is shown.
        assert value is None or any(repr(one) in text for one in known)
        return None
    assert meant, f'{name}={value!r} is accepted'
    return built


@cases(0.8)
@given(named_values(HOOK))
def test_an_argument_of_the_hook_means_something_or_is_refused(case):
    name, value = case
    hook = settle(
        lambda: SparseTrainingHook(**{name: value}), name, value, HOOK[name]
    )
    kept = getattr(hook.options, name) if hook else None
    # Checkpoints hold them: no number of NumPy's.
    assert not isinstance(kept, np.generic)


@cases(0.2)
@given(
    st.one_of(
        st.tuples(st.just('SparseIFT'), named_values(WRAPPER)),
        st.tuples(st.just('SparseIFTResNet'), named_values(BACKBONE)),
    ),
    st.booleans(),
)
def test_an_argument_of_a_backbone_is_one_or_is_refused(case, hooked):
    kind, (name, value) = case
    table = WRAPPER if kind == 'SparseIFT' else BACKBONE
    node = dict(type=kind, family='factorized', sparsity=0.75)
    if kind == 'SparseIFT':
        node['backbone'] = dict(type='ResNet', depth=18)
    else:
        node['depth'] = 18
    cfg = SimpleNamespace(
        get=dict(
            default_scope='mmpretrain',
            model=dict(backbone={**node, name: value}),
            custom_hooks=[dict(type='SparseTrainingHook')] * hooked,
        ).get
    )
    settle(lambda: check_config(cfg) or cfg, name, value, table[name])


def hook(**arguments):
    return dict(custom_hooks=[dict(type='SparseTrainingHook', **arguments)])


def backbone(**arguments):
    return dict(model=dict(backbone=arguments))


@pytest.mark.parametrize(
    'change, words',
    [
        (
            hook(intervall=5),
            'SparseTrainingHook has no argument intervall: did you mean '
            'interval?',
        ),
        (
            hook(interval='3'),
            "interval is a whole number of 64 bits, at least 1; got '3'.",
        ),
        (
            hook(drop_fraction=dict(type='Linear', inital=0.1)),
            "schedule 'Linear' has no argument inital: did you mean initial?",
        ),
        (
            backbone(familly='wide'),
            'SparseIFTResNet has no argument familly: did you mean family?',
        ),
        (
            backbone(strides=2, out_indice=3),
            'no argument out_indice: did you mean out_indices?',
        ),
        (backbone(family='wid'), "got 'wid': did you mean 'wide'?"),
        (backbone(family='wide'), "family='wide' needs a sparsity"),
    ],
)
@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_a_config_is_checked_before_anything_is_built(scope, change, words):
    cfg = Config(
        dict(
            default_scope=scope,
            model=dict(
                type='NoSuchModel',
                backbone=dict(type='SparseIFTResNet', depth=18),
                neck=dict(type='NoSuchNeck'),
            ),
            custom_hooks=[dict(type='SparseTrainingHook', priority='LOW')],
        )
    )
    check_config(cfg)
    cfg.merge_from_dict(change)
    with pytest.raises(UserError) as error:
        check_config(cfg)
    assert words in str(error.value)


def test_names_are_those_of_a_class_derived_from_the_hook():
    class Derived(SparseTrainingHook):
        def __init__(self, temperature: float = 1.0, **kwargs):
            super().__init__(interval=7, **kwargs)

    class Fixed(SparseTrainingHook):
        def __init__(self):
            super().__init__(interval=7)

    assert Derived(temperature=2, end=0.5).options.interval == 7
    assert Fixed().options.interval == 7
    with pytest.raises(UserError, match='intervall: did you mean interval'):
        Derived(intervall=3)
