"""Outputs as pieces of one reservation."""

import copy
import io
import mmap
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sift_mm.kernels import memory
from sift_mm.kernels.memory import Arena, empty_output

MIB = 1 << 20
PLACES = MIB // 4  # of a tensor of one MiB


@pytest.fixture
def arena(monkeypatch):
    """A fresh one, for outputs too."""
    fresh = Arena()
    monkeypatch.setattr(memory, 'ARENA', fresh)
    return fresh


def resident() -> int:
    """Bytes of this process that are in main memory."""
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def test_what_is_in_use_is_written_by_nobody_else(arena):
    seed = random.randrange(2**31)
    print('seed', seed)
    rng = random.Random(seed)
    held: dict[int, torch.Tensor] = {}
    most = 0
    for number in range(300):
        tensor = empty_output(rng.randint(1, 9), PLACES)
        held[number] = tensor.fill_(number)
        while sum(t.numel() for t in held.values()) > 60 * PLACES:
            del held[rng.choice(list(held))]
        most = max(most, sum(t.numel() * 4 for t in held.values()))
        del tensor
    for number, tensor in held.items():
        assert bool((tensor == number).all())
    # Room is found between them: 1.6 times in the worst of 3,000 seeds.
    assert arena.touched <= 2 * (most + 9 * MIB)


@pytest.mark.parametrize('piece', [1, 2, 3])
def test_the_smallest_room_that_fits_is_taken(arena, piece):
    parts = [empty_output(n * PLACES) for n in (3, 1, 2, 1, 5, 1, 1)]
    places = [part.data_ptr() for part in parts]
    for i in (0, 2, 4):  # Of three, two and five MiB.
        parts[i] = torch.empty(0)
    expected = {1: 2, 2: 2, 3: 0}
    assert empty_output(piece * PLACES).data_ptr() == places[expected[piece]]


def test_a_view_or_a_graph_keeps_the_piece(arena):
    first = empty_output(4, PLACES).zero_()
    part, place = first[1:], first.data_ptr()
    del first
    second = empty_output(4, PLACES).fill_(1)
    assert second.data_ptr() != place and not part.any()
    factor = torch.ones((), requires_grad=True)
    product = empty_output(2, PLACES).fill_(3) * factor  # Saves the three.
    others = [empty_output(2, PLACES).fill_(7) for _ in range(3)]
    (gradient,) = torch.autograd.grad(product.sum(), factor)
    assert int(gradient) == 3 * 2 * PLACES
    del part, second, others, product
    # Once nothing is left of them, their place is taken again.
    assert empty_output(4, PLACES).data_ptr() == place


def test_pages_that_no_piece_reached_lately_are_given_back(arena, monkeypatch):
    monkeypatch.setattr(memory, 'EPOCH', 8)
    tensor = empty_output(256, PLACES).fill_(1)
    del tensor
    before = resident()
    for _ in range(8 - 1):  # The epoch in which the large one was.
        empty_output(2, PLACES).fill_(1)
    assert arena.touched >= 256 * MIB and before - resident() < 16 * MIB
    for _ in range(8):
        empty_output(2, PLACES).fill_(1)
    assert arena.touched < 16 * MIB and before - resident() > 200 * MIB
    assert bool((empty_output(256, PLACES).fill_(3) == 3).all())


def test_without_addresses_memory_is_pytorchs(monkeypatch):
    real = mmap.mmap

    def narrow(file: int, size: int, **kwargs: int) -> mmap.mmap:
        if size > MIB:
            raise OSError('Cannot allocate memory')
        return real(file, size, **kwargs)

    monkeypatch.setattr(mmap, 'mmap', narrow)
    monkeypatch.setattr(memory, 'ARENA', Arena())
    tensors = [empty_output(2, PLACES).fill_(i) for i in range(3)]
    assert all(bool((t == i).all()) for i, t in enumerate(tensors))


def test_what_is_larger_than_memory_is_refused_by_pytorch(arena):
    with pytest.raises(RuntimeError, match='memory'):
        empty_output(1 << 40, 1024)


def test_a_fork_writes_to_its_own(arena):
    tensor = empty_output(2, PLACES).fill_(1)
    child = os.fork()
    if not child:
        tensor.fill_(2)
        empty_output(4, PLACES).fill_(3)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert bool((tensor == 1).all())


def test_a_fork_inherits_what_is_in_use_alone():
    kept = empty_output(2, PLACES).fill_(1)
    between = empty_output(128, PLACES).fill_(2)
    also = empty_output(2, PLACES).fill_(3)
    above = empty_output(128, PLACES).fill_(4)
    before = resident()
    del between, above
    child = os.fork()
    if not child:
        alike = bool((kept == 1).all()) and bool((also == 3).all())
        os._exit(not (alike and before - resident() > 200 * MIB))
    assert os.waitpid(child, 0)[1] == 0
    assert bool((kept == 1).all()) and bool((also == 3).all())
    assert bool((empty_output(128, PLACES).fill_(5) == 5).all())


def test_threads_have_pieces_of_their_own(arena):
    def work(number: int) -> torch.Tensor:
        for _ in range(20):
            tensor = empty_output(2, PLACES).fill_(number)
            assert bool((tensor == number).all())
        return tensor

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    # They outlive their threads.
    for number, tensor in enumerate(found):
        assert bool((tensor == number).all())


def test_outputs_are_tensors_like_others():
    tensor = empty_output(3, PLACES).normal_()
    assert tensor.is_contiguous() and not tensor._is_view()
    assert torch.equal(copy.deepcopy(tensor), tensor)
    file = io.BytesIO()
    torch.save(tensor, file)
    assert file.tell() < 4 * tensor.numel() + 4096
    file.seek(0)
    assert torch.equal(torch.load(file), tensor)
    small = empty_output(2, 3)
    assert small.shape == (2, 3) and small.dtype == torch.float32
