"""Speed of a network: dense twin, dense execution, sparse execution."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from timeit import timeit
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from sift_mm.cli.reports.costs import dense_network
from sift_mm.cli.reports.text import table
from sift_mm.config.images import channels_of
from sift_mm.deploy import to_sparse
from sift_mm.engine.plan import sparse_backbone
from sift_mm.flops import describe_shape
from sift_mm.flops.model_forward import call_model


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Fill a network that was built without weights."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.fill_(float(name.endswith(('weight', 'running_var'))))


def measure_speed(
    cfg: Config,
    model: nn.Module,
    masks: Mapping[str, Tensor],
    shape: tuple[int, ...],
    batches: Sequence[int],
    rounds: int,
    whole: bool = False,
) -> dict[str, Any]:
    """Time a network and its dense twin, dense and sparse, in turns.

    Args:
        cfg (Config): Config of the model, for its dense twin.
        model (nn.Module): The network, with zeros outside the masks.
        masks (Mapping[str, Tensor]): Bool masks by parameter name; if empty,
            nonzero weights are active.
        shape (tuple[int, ...]): Height and width of the images, or tokens of
            the texts.
        batches (Sequence[int]): Batch sizes.
        rounds (int): Turns of each network.
        whole (bool): Whether neck and heads are timed too, without their
            post-processing.

    Returns:
        dict: 'rows' has for each batch size and network 'batch', 'what', the
        median 'seconds' a batch, and the median 'ratio' to the dense twin
        within a turn with its 'quartiles'. 'layers' is the sparse report.

    Raises:
        ValueError: Nothing of the model can run sparse.
        RuntimeError: There are no kernels for this machine.
    """
    found = sparse_backbone(model)
    name = '' if whole else found[0][:-1] if found else 'backbone'
    twin = dense_network(cfg, model).eval()
    fill(twin)
    sparse = to_sparse(model.eval(), masks)
    ways = {
        'dense twin': twin.get_submodule(name),
        'executed densely': model.get_submodule(name),
        'executed sparsely': sparse.get_submodule(name),
    }
    channels = channels_of(cfg, model)
    rows = []
    for batch in batches:
        image = torch.randn(batch, channels, *shape)
        if len(shape) == 1:
            image = torch.zeros(batch, *shape, dtype=torch.long)
        with torch.inference_mode():
            for network in ways.values():
                call_model(network, image)
            turns = [
                [
                    timeit(partial(call_model, network, image), number=1)
                    for network in ways.values()
                ]
                for _ in range(rounds)
            ]
        for i, what in enumerate(ways):
            ratios = [turn[i] / turn[0] for turn in turns]
            low, middle, high = statistics.quantiles(
                ratios, n=4, method='inclusive'
            )
            rows.append(
                dict(
                    batch=batch,
                    what=what,
                    seconds=statistics.median(turn[i] for turn in turns),
                    ratio=middle,
                    quartiles=[low, high],
                )
            )
    return dict(
        network=name or 'the whole model',
        shape=list(shape),
        threads=torch.get_num_threads(),
        rows=rows,
        layers=str(sparse.sparse_report),
    )


def to_text(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    rows = [
        (
            str(row['batch']),
            row['what'],
            f'{row["seconds"]:.4f}',
            f'{row["ratio"]:.2f}',
            f'{row["quartiles"][0]:.2f} to {row["quartiles"][1]:.2f}',
        )
        for row in report['rows']
    ]
    head = (
        f'{report["network"]} at {describe_shape(report["shape"])}, '
        f'{report["threads"]} threads, float32, inference'
    )
    names = ('batch', '', 'seconds', 'over the twin', 'quartiles')
    return f'{report["layers"]}\n\n{head}\n{table(names, rows)}'
