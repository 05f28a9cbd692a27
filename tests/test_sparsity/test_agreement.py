"""Several ranks: equal to one of a larger batch, and found out if not."""

from unittest import mock

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from helpers.mask_trainers import masked
from helpers.process_groups import run_ranks
from sift_mm.sparsity import MaskSet
from sift_mm.sparsity.agreement import check_agreement, fingerprint

BATCH = 8
INTERVAL = 3
STEPS = 14
OPTIMIZERS = {
    'sgd': lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    'adamw': lambda p: torch.optim.AdamW(p, 0.01, betas=(0.5, 0.9)),
}


def training(optimizer='sgd', ranks=1, **kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 16),
        nn.Tanh(),
        nn.Linear(16, 3),
    ).double()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    usual = dict(steps=STEPS, interval=INTERVAL, sparsity=0.6, end=1.0)
    sparse = masked(model, optimizer=optimizer, **(usual | kwargs))
    # Draws depend on names, which a wrapper would change.
    return DistributedDataParallel(model) if ranks > 1 else model, sparse


def step(model, sparse, rank=0, ranks=1):
    """Train a step on every ``ranks``-th sample of the batch."""
    generator = torch.Generator().manual_seed(sparse.trainer.steps)
    images = torch.randn(BATCH, 2, 6, 6, generator=generator).double()
    labels = torch.randint(3, (BATCH,), generator=generator)
    model.zero_grad()
    loss = F.cross_entropy(model(images[rank::ranks]), labels[rank::ranks])
    loss.backward()
    return sparse.step()


def trained(optimizer, ranks):
    """Train; return masks, moved shares and weights."""
    rank = distributed.get_rank() if ranks > 1 else 0
    model, sparse = training(optimizer, ranks)
    reports = [step(model, sparse, rank, ranks) for _ in range(STEPS)]
    moved = [report.moved for report in reports if report is not None]
    masks = [mask.clone() for mask in sparse.masks.values()]
    return masks, moved, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_ranks_train_the_masks_of_one_rank_with_their_batches_together(
    optimizer, tmp_path
):
    masks, moved, weights = trained(optimizer, 1)
    assert len(moved) >= 3 and all(moved)
    for found in run_ranks(trained, tmp_path, optimizer, 2):
        for a, b in zip(masks, found[0], strict=True):
            assert torch.equal(a, b)
        for a, b in zip(weights, found[2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def broken(at):
    """Train while rank 1's mask changes unnoticed."""
    model, sparse = training(ranks=2)
    rank = distributed.get_rank()
    reduced = []
    original = distributed.all_reduce

    def reduce(tensor, *args, **kwargs):
        reduced.append(sparse.trainer.steps)
        assert tensor.numel() == 2
        return original(tensor, *args, **kwargs)

    before = said = ''
    with mock.patch.object(distributed, 'all_reduce', reduce):
        for number in range(1, STEPS):
            if rank == 1 and number == at:
                flat = next(iter(sparse.masks.values())).view(-1)
                flat[:2].logical_not_()
            before = fingerprint(sparse.masks)
            try:
                step(model, sparse, rank, 2)
            except RuntimeError as error:
                said = str(error)
                break
    return said, reduced, before == fingerprint(sparse.masks)


@pytest.mark.parametrize('at', [4, 6])
def test_a_mask_that_is_another_on_one_rank_stops_both_at_the_next_update(
    at, tmp_path
):
    for said, reduced, unchanged in run_ranks(broken, tmp_path, at):
        assert said.startswith(
            'At step 6 the masks of rank 1 are not those of'
        )
        # After the first step no rank waits for another between two
        # updates, steps 3 and 6 (so many are complete), and none has
        # updated masks that are not those of all.
        assert reduced == [0, 2, 5]
        assert unchanged


def seeded(algorithm, kwargs):
    """Train with the rank in an option, as a careless script does."""
    rank = distributed.get_rank()
    own = {kwargs.pop('differs'): 1 + rank}
    model, sparse = training(ranks=2, algorithm=algorithm, **own, **kwargs)
    try:
        step(model, sparse, rank, 2)
    except RuntimeError as error:
        return str(error), sparse.trainer.steps
    return '', sparse.trainer.steps


@pytest.mark.parametrize(
    'algorithm, kwargs',
    [
        ('Static', dict(differs='seed')),
        ('RigL', dict(differs='seed')),
        ('SET', dict(differs='seed', init='TopK')),
        ('SET', dict(differs='interval', seed=3)),
    ],
)
def test_ranks_of_several_seeds_stop_before_the_first_step(
    algorithm, kwargs, tmp_path
):
    # Under SET with TopK the first masks agree, and the next would not.
    for said, steps in run_ranks(seeded, tmp_path, algorithm, kwargs):
        assert said.startswith('At step 1 the masks of rank 1 are not those')
        assert 'one seed' in said and steps == 0


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, 1), (3, 5), (2, 3, 3, 3), (4, 8)]
    masks = {
        str(i): torch.rand(shape, generator=generator) < 0.3
        for i, shape in enumerate(shapes)
    }
    parameters = {
        n: nn.Parameter(torch.zeros(m.shape)) for n, m in masks.items()
    }
    return MaskSet(parameters, masks)


@pytest.mark.parametrize('seed', range(5))
def test_each_bit_counts(seed):
    masks = drawn(seed)
    first = fingerprint(masks)
    assert first == fingerprint(drawn(seed))
    found = {first}
    for mask in masks.values():
        for bit in mask.view(-1):
            bit.logical_not_()
            found.add(fingerprint(masks))
            bit.logical_not_()
    assert len(found) == 1 + sum(mask.numel() for mask in masks.values())
    assert fingerprint(masks) == first


def test_the_ranks_that_differ_are_named():
    masks = drawn(0)
    good = fingerprint(masks)

    def reduce(tensor):
        assert tensor.tolist() == [0, good, 0, 0]  # This is rank 1.
        tensor.copy_(torch.tensor([good, good, 7, 8]))

    with (
        mock.patch.object(distributed, 'is_initialized', lambda: True),
        mock.patch.object(distributed, 'get_world_size', lambda: 4),
        mock.patch.object(distributed, 'get_rank', lambda: 1),
        mock.patch.object(distributed, 'all_reduce', reduce),
        pytest.raises(RuntimeError, match='step 5 the masks of rank 2, 3 are'),
    ):
        check_agreement(masks, 5)
