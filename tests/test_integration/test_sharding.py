"""Sharded weights are refused before training."""

import gc

import pytest
import torch
from mmengine._strategy import SingleDeviceStrategy
from mmengine._strategy.deepspeed import (
    DeepSpeedOptimWrapper,
    MMDeepSpeedEngineWrapper,
)
from mmengine.model.wrappers import MMFullyShardedDataParallel
from mmengine.registry import STRATEGIES
from mmengine.runner import FlexibleRunner
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from helpers.toy_runs import (
    Toy,
    loader,
    toy_runner,
)
from sift_mm.sparsity import MaskSet, SparseTraining

PIECES = 'a rank holds pieces of weights'


@pytest.fixture
def one_rank():
    """Make a process group of this process alone."""
    distributed.init_process_group(
        'gloo', store=distributed.HashStore(), rank=0, world_size=1
    )
    yield init_device_mesh('cpu', (1,))
    # What holds the group has to be gone first: a fork of a later test would
    # wait for the group's threads, which it does not have.
    gc.collect()
    distributed.destroy_process_group()


def flat(model, mesh):
    """Wrap a model in PyTorch's first FSDP."""
    with pytest.warns(UserWarning, match='NO_SHARD'):
        return MMFullyShardedDataParallel(
            model, device_id=torch.device('cpu'), use_orig_params=True
        )


def whole(model, mesh):
    return fully_shard(model, mesh=mesh)


def inner(model, mesh):
    """Apply FSDP to a layer that is not the masked one."""
    fully_shard(model.out, mesh=mesh)
    return model


@pytest.mark.parametrize(
    'shard, kind',
    [
        (flat, 'MMFullyShardedDataParallel'),
        (whole, 'DTensor'),
        (inner, 'DTensor'),
    ],
)
def test_shards_are_refused_before_training(tmp_path, one_rank, shard, kind):
    runner = toy_runner(tmp_path, dict())
    runner.model = shard(runner.model, one_rank)
    with pytest.raises(TypeError, match=f'under {kind}: {PIECES}'):
        runner.train()
    assert runner.iter == 0


def test_deepspeed_is_refused_before_training(tmp_path):
    @STRATEGIES.register_module(force=True)
    class LikeDeepSpeed(SingleDeviceStrategy):
        """Stand-in for DeepSpeedStrategy, whose library is large."""

        def _wrap_model(self, model):
            return MMDeepSpeedEngineWrapper(model=model)

        def build_optim_wrapper(self, optim_wrapper, model=None):
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            return DeepSpeedOptimWrapper(optimizer)

    runner = FlexibleRunner(
        model=Toy(),
        work_dir=str(tmp_path),
        strategy=dict(type='LikeDeepSpeed'),
        train_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='SparseTrainingHook', sparsity=0.5)],
        experiment_name='flexible',
    )
    with pytest.raises(
        TypeError, match=f'under MMDeepSpeedEngineWrapper: {PIECES}'
    ):
        runner.train()
    assert runner.iter == 0


def test_a_loop_of_ones_own_refuses_shards_too(one_rank):
    def train_sparse(model):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return SparseTraining(
            model, optimizer, steps=8, sparsity=0.5, include=['*hidden.weight']
        )

    for shard in (flat, whole, inner):
        with pytest.raises(TypeError, match=PIECES):
            train_sparse(shard(Toy(), one_rank))
    model = whole(Toy(), one_rank)
    with pytest.raises(TypeError, match=f'under DTensor: {PIECES}'):
        MaskSet({'w': model.hidden.weight}, {'w': torch.ones(16, 8).bool()})
    # DeepSpeed's ZeRO gives parameters a number, and the rest to others.
    model = Toy()
    model.hidden.weight.ds_id = 0
    with pytest.raises(TypeError, match=f'under DeepSpeed: {PIECES}'):
        train_sparse(model)
