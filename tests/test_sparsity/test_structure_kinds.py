"""Structures against a search of all masks, and over random shapes."""

import itertools
import random

import pytest
import torch
from torch import nn

from helpers.mask_trainers import masked
from sift_mm.sparsity import (
    ALGORITHMS,
    NM,
    SET,
    Block,
    ConstantFanIn,
    FromWeights,
    LayerState,
    RigL,
    SRigL,
    Unstructured,
)

INF = float('inf')
SHAPES = [(7, 9), (6, 8, 3), (5, 6, 3, 3), (9, 4, 1, 2, 2), (3, 11, 1, 1)]


def in_block(mask, filters):
    flat = mask.flatten(1)
    return all((block == block[0]).all() for block in flat.split(filters))


def in_groups(mask, n, m):
    rows = mask.movedim(1, -1).reshape(-1, mask.shape[1])
    return all(
        (part.sum(1) == -(-n * part.shape[1] // m)).all()
        for part in rows.split(m, 1)
    )


def has_fan_in(mask):
    return len(mask.flatten(1).sum(1).unique()) == 1


KINDS = [
    (NM(2, 4), lambda mask: in_groups(mask, 2, 4)),
    (NM(1, 4), lambda mask: in_groups(mask, 1, 4)),
    (NM(3, 5), lambda mask: in_groups(mask, 3, 5)),
    (Block(2), lambda mask: in_block(mask, 2)),
    (Block(4), lambda mask: in_block(mask, 4)),
    (ConstantFanIn(), has_fan_in),
    (Unstructured(), lambda mask: True),
]
names = [str(tuple(kind.describe().values())) for kind, _ in KINDS]


def scores(shape, generator):
    """Return scores with ties, NaN and infinities."""
    score = torch.randint(-9, 9, shape, generator=generator) / 4
    odd = torch.randint(12, shape, generator=generator)
    for value, number in (float('nan'), 0), (INF, 1), (-INF, 2):
        score[odd == number] = value
    return score


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('kind', KINDS, ids=names)
def test_masks_keep_structure_and_count(kind, shape, seed):
    structure, has = kind
    print(f'seed {seed}')
    generator = torch.Generator().manual_seed(seed)
    asked = random.Random(seed).randint(1, torch.Size(shape).numel())
    count = structure.fit(shape, asked)
    assert structure.fit(shape, count) == count
    mask = structure.first(scores(shape, generator), count)
    for step, fraction in enumerate([0.1, 0.3, 1.0, 0.5]):
        assert mask.shape == shape and mask.is_contiguous()
        assert int(mask.sum()) == count and has(mask)
        assert structure.has(mask)
        weight = scores(shape, generator) * mask
        state = LayerState(
            mask,
            weight,
            scores(shape, generator),
            generator=torch.Generator().manual_seed(step),
        )
        rule = (RigL, SET)[step % 2](structure)
        whole = rule.update(state, fraction)
        listed = rule.shortlist(state, fraction)
        if step % 2 == 0 and listed is not None:
            assert torch.equal(rule.exchange(state, listed), whole)
        mask = whole
    fewer = structure.fit(shape, count // 2)
    pruned = structure.prune(weight.abs().neg(), mask, fewer)
    if fewer < count:
        assert int(pruned.sum()) == fewer and has(pruned)
        assert not (pruned & ~mask).any()


@pytest.mark.parametrize(
    'structure, has, shape',
    [
        (NM(1, 3), lambda m: in_groups(m, 1, 3), (2, 5)),
        (NM(1, 2), lambda m: in_groups(m, 1, 2), (1, 3, 3)),
        (Block(2), lambda m: in_block(m, 2), (3, 3)),
        (Block(4), lambda m: in_block(m, 4), (6, 2)),
        (ConstantFanIn(), has_fan_in, (3, 2, 2)),
    ],
)
def test_first_masks_have_the_largest_score_of_all(structure, has, shape):
    # Sums of powers of two are all different: the best mask is one.
    size = torch.Size(shape).numel()
    order = torch.randperm(size, generator=torch.Generator().manual_seed(3))
    score = (2.0**order).view(shape).double()
    every = torch.tensor(list(itertools.product([0, 1], repeat=size))).bool()
    for count in sorted({structure.fit(shape, n) for n in range(size)}):
        mask = structure.first(score, count)
        rivals = [
            m
            for m in every[every.sum(1) == count].view(-1, *shape)
            # Full and last blocks have counts of their own.
            if has(m) and structure.has(m)
        ]
        best = max(rivals, key=lambda m: float(score[m].sum()))
        assert torch.equal(mask, best)


def test_updates_by_hand():
    # 2:4. The least two weights are in one group, which grows the position
    # of largest gradient first, then the second; the other group stays.
    mask = torch.tensor([[1, 1, 0, 0, 0, 1, 1, 0]]).bool()
    weight = torch.tensor([[0.1, 0.2, 0, 0, 0, 5, 4, 0]])
    gradient = torch.tensor([[1.0, 2, 4, 3, 9, 9, 9, 9]])
    new = RigL(NM()).update(LayerState(mask, weight, gradient), 0.5)
    assert new.int().tolist() == [[0, 0, 1, 1, 0, 1, 1, 0]]
    # Blocks of two filters: |w| sums to 3, 4 and 9; gradients to 5, 8, 6.
    # k = 3 weights are one place, the first; place 4 grows.
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2).bool()
    weight = torch.tensor([[1.0, 4, 5, 0, 0], [2, 0, 4, 0, 0]])
    gradient = torch.tensor([[4.0, 0, 0, 8, 3], [1, 0, 0, 0, 3]])
    new = RigL(Block(2)).update(LayerState(mask, weight, gradient), 0.5)
    assert new.int().tolist() == [[0, 1, 1, 1, 0]] * 2
    # Fan-in 2: both weights of the first filter go, one of the second.
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]).bool()
    weight = torch.tensor([[0.1, 0.2, 0, 0], [0, 0.3, 7, 0]])
    gradient = torch.tensor([[1.0, 2, 3, 4], [9, 1, 1, 8]])
    state = LayerState(mask, weight, gradient)
    new = RigL(ConstantFanIn()).update(state, 0.75)
    assert new.int().tolist() == [[0, 0, 1, 1], [1, 0, 1, 0]]


def test_a_filter_with_too_many_weights_loses_the_least():
    # As SRigL leaves them: all weights in a filter, the other is ablated.
    weight = torch.tensor([[1.0, 2, 4, 3], [0, 0, 0, 0]])
    gradient = torch.tensor([[9.0, 9, 9, 9], [0, 9, 0, 8]])
    state = LayerState(weight != 0, weight, gradient)
    for rule in RigL(ConstantFanIn()), SRigL(0.0):
        new = rule.update(state, 0.25)
        assert new.int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 1]]


@pytest.mark.parametrize(
    'structure, weight, mask',
    [
        (NM(2, 4), [[0, 0, 5, 0, 1, 2, 0, 0]], [[1, 0, 1, 0, 1, 1, 0, 0]]),
        (Block(2), [[5, 0, 1], [0, 0, 1]], [[1, 0, 1], [1, 0, 1]]),
        (ConstantFanIn(), [[0, 0, 5], [1, 2, 0]], [[1, 0, 1], [1, 1, 0]]),
    ],
)
def test_weights_that_are_zero_by_chance_stay_in_the_structure(
    structure, weight, mask
):
    weight = torch.tensor(weight).float()
    found = FromWeights().mask(weight, 4, torch.Generator(), structure)
    assert found.int().tolist() == mask
    weight = torch.zeros_like(weight)
    weight[0, :3] = weight[-1, -1] = 1  # Three of a group or filter.
    with pytest.raises(ValueError, match='are not of structure='):
        FromWeights().mask(weight, 4, torch.Generator(), structure)


FILTERS = [[9.0, 8, 0, 0], [7, 6, 0, 0], [0.1, 0.2, 0, 0], [5, 4, 0, 0]]
GRADIENT = [[9.0, 9, 5, 10], [9, 9, 8, 1], [99, 99, 3, 4], [9, 9, 1, 2]]


@pytest.mark.parametrize(
    'share, expected',
    [
        # k = 2: the third filter's weights go, and 10 and 8 are the largest
        # gradients of inactive weights: 3, 3, 0 and 2 salient weights. The
        # 8 active weights are 3, 3 and 2 without the third filter.
        (0.5, [[1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]),
        # Of 2, a share of 1.0 would leave the filters of 3, 3 and 2 too.
        (1.0, [[1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]),
        # Without ablation each filter has two: the third one's best are its
        # own, of gradient 99.
        (0.0, [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]),
    ],
)
def test_srigl_by_hand(share, expected):
    weight = torch.tensor(FILTERS)
    state = LayerState(weight != 0, weight, torch.tensor(GRADIENT))
    rule = SRigL(salient=share)
    new = rule.update(state, 0.25)
    assert new.int().tolist() == expected
    assert rule.structure.has(new)
    # The two weights that are grown, still zero, go. The largest gradients
    # are of the ablated filter, which comes back: two salient weights each.
    gradient = torch.tensor(GRADIENT)
    gradient[2] = 200
    again = rule.update(LayerState(new, weight * new, gradient), 0.25)
    if share:
        assert again.int().tolist() == [[1, 1, 0, 0]] * 4


def test_srigl_keeps_filters_that_have_room():
    # 10 weights of 12 fit in 3 filters of 4, whatever is salient.
    mask = torch.ones(3, 4).bool()
    mask[0, 0] = mask[1, 0] = False
    weight = torch.tensor([[5.0] * 4, [4.0] * 4, [0.1] * 4]) * mask
    state = LayerState(mask, weight, torch.zeros(3, 4))
    assert SRigL(1.0).update(state, 0.5).sum(1).tolist() == [4, 3, 3]
    with pytest.raises(ValueError, match="structure='ConstantFanIn' alone"):
        SRigL(structure='NM')


def test_what_a_shape_does_not_divide():
    # 6 inputs: a group of 4 with 2 and a last one of 2 with 1, at 9 taps.
    assert NM(2, 4).fit((5, 6, 3, 3), 1) == 5 * 9 * 3
    assert NM(2, 4).fit((5, 6), 30) == 30  # A dense layer stays dense.
    # 3 blocks of 4 and a last one of 2 filters; 8 places.
    assert Block(4).fit((14, 8), 56) == 12 * 4 + 2 * 4
    assert Block(4).fit((14, 8), 1) == 4
    assert Block(4).fit((3, 8), 7) == 6
    assert ConstantFanIn().fit((5, 6), 12) == 10
    assert ConstantFanIn().fit((5, 6), 1) == 5


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, groups=2)
        self.fc = nn.Linear(8, 6)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def train(algorithm, structure, name, steps, seed=0):
    """Train; yield the masks after each step."""
    torch.manual_seed(seed)
    model = Net()
    rule = dict(type=algorithm, structure=structure)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    options = dict(steps=steps, include=[name], execution='dense')
    sparse = masked(model, rule, optimizer, **options)
    for _ in range(steps):
        yield model, sparse, sparse.masks[name].clone()
        model.zero_grad()
        model(torch.randn(4, 8, 5, 5)).square().mean().backward()
        sparse.step()


@pytest.mark.parametrize('kind', KINDS[:1] + KINDS[3:4] + KINDS[5:6])
@pytest.mark.parametrize('algorithm', ALGORITHMS.names)
def test_the_table_of_algorithms_and_structures(algorithm, kind):
    structure, has = kind
    name = structure.describe()
    layer = 'fc.weight' if algorithm == 'CHT' else 'conv.weight'
    if algorithm == 'SRigL' and name['type'] != 'ConstantFanIn':
        with pytest.raises(ValueError, match="'ConstantFanIn' alone"):
            next(train(algorithm, name, layer, 9))
        return
    masks = [mask for *_, mask in train(algorithm, name, layer, 9)]
    for mask in masks:
        assert structure.has(mask)
        # An update of SRigL may ablate filters.
        assert algorithm == 'SRigL' or mask.all() or has(mask)
    moved = not torch.equal(masks[0], masks[-1])
    assert moved == (algorithm != 'Static')
    assert int(masks[-1].sum()) == structure.fit(mask.shape, mask.numel() // 2)


def test_files_with_other_masks_are_refused():
    *_, (model, sparse, _) = train('RigL', 'NM', 'conv.weight', 5)
    state = sparse.state_dict()
    *_, (model, sparse, mask) = train('RigL', 'NM', 'conv.weight', 5, seed=1)
    model.load_state_dict(model.state_dict())
    # One weight moves from a group to another one.
    wrong = mask.clone()
    wrong[0, 0, 0, 0] ^= True
    wrong[1, 0, 0, 0] ^= mask[0, 0, 0, 0] == mask[1, 0, 0, 0]
    state['masks']['conv.weight'] = wrong
    words = 'does not have structure=.*n=2, m=4.*the file was changed'
    with pytest.raises(ValueError, match=words):
        sparse.load_state_dict(state)
