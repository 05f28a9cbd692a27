"""Costs of each layer of a network, and their sum."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from sift_mm.errors import UserKeyError
from sift_mm.flops.counting import meta_image, on_meta, watched
from sift_mm.flops.model_forward import count_trial


@dataclass(frozen=True)
class Row:
    """Costs of one module, without the modules that it calls.

    Attributes:
        name (str): Name of the module, '' for the whole network.
        type (str): Name of its class.
        flops_dense (int): FLOPs of a forward pass (2 x MACs), weights dense.
        flops_sparse (float): The same times the density of its ``weight``.
        parameters (int): Parameters; shared ones count in the first row.
        active (int): Parameters that no mask holds at zero.
        weight_bytes (int): Memory of the parameters.
        active_bytes (int): Memory of the active parameters.
        activation_bytes (int): Memory of the outputs of each call. Views and
            in-place operations take none.
    """

    name: str
    type: str
    flops_dense: int
    flops_sparse: float
    parameters: int
    active: int
    weight_bytes: int
    active_bytes: int
    activation_bytes: int

    @property
    def numbers(self) -> tuple[float, ...]:
        """Return all values but name and type, in their order."""
        return astuple(self)[2:]


@dataclass(frozen=True)
class Profile:
    """Costs of a network, dense and under masks, by layer.

    Attributes:
        rows (tuple[Row, ...]): A row for each module with costs of its own, in
            the order of ``named_modules``; they sum to the network's costs.
        assumed (tuple[str, ...]): Assumptions, as of
            :func:`~sift_mm.flops.model_forward.run_once`.
    """

    rows: tuple[Row, ...]
    assumed: tuple[str, ...] = ()

    def total(self, module: str = '') -> Row:
        """Return the sum over a module and its submodules, '' for all."""
        within = f'{module}.' if module else ''
        return _sum(
            module, [r for r in self.rows if f'{r.name}.'.startswith(within)]
        )

    def parts(self) -> dict[str, Row]:
        """Return the sums by child, such as 'backbone'; '' for the rest."""
        rows: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            rows[row.name.partition('.')[0]].append(row)
        return {name: _sum(name, part) for name, part in rows.items()}


def _sum(name: str, rows: list[Row]) -> Row:
    none = Row(name, '', 0, 0, 0, 0, 0, 0, 0).numbers
    columns: Any = zip(none, *(row.numbers for row in rows), strict=True)
    return Row(name, '', *map(sum, columns))


def profile(
    model: nn.Module,
    shape: tuple[int, ...],
    densities: Mapping[str, float] | None = None,
    in_channels: int = 3,
    auxiliary: bool = False,
) -> Profile:
    """Count FLOPs, parameters and memory of each layer, for one input.

    Every report of a network's costs comes from here.

    Args:
        model (nn.Module): Any of the libraries' models, or a plain network;
            it does not change.
        shape (tuple[int, ...]): As for :func:`~sift_mm.flops.meta_image`.
        densities (Mapping[str, float], optional): Share of active weights by
            parameter name, as of :func:`mask_densities`.
        in_channels (int): Channels of the image.
        auxiliary (bool): Whether the auxiliary heads of a segmentor run too.

    Raises:
        KeyError: If a density's name is no parameter of the model.
        NotCountable: A ValueError, if the model does not run at that shape.
    """
    densities = densities or {}
    # Not of the meta copy, where tied weights are two.
    parameters = dict(model.named_parameters())
    unknown = [name for name in densities if name not in parameters]
    if unknown:
        raise UserKeyError(
            'The densities are not of this model: it has no '
            f'parameters {unknown}.'
        )
    density = {id(parameters[name]): d for name, d in densities.items()}
    owned = defaultdict(list)
    for name, parameter in parameters.items():
        owned[name.rpartition('.')[0]].append(parameter)
    trial = on_meta(model, norms=False)
    image = meta_image(shape, in_channels)
    with _recording(trial, image) as activations:
        count, assumed = count_trial(trial, image, auxiliary)
    rows = []
    for name, module in model.named_modules():
        flops = count.own.get(name, 0)
        weight = getattr(module, 'weight', None)
        own = owned[name]
        active = [round(p.numel() * density.get(id(p), 1)) for p in own]
        row = Row(
            name,
            type(module).__name__,
            flops_dense=flops,
            flops_sparse=flops * density.get(id(weight), 1),
            parameters=sum(p.numel() for p in own),
            active=sum(active),
            weight_bytes=sum(p.nbytes for p in own),
            active_bytes=sum(
                n * p.itemsize for n, p in zip(active, own, strict=True)
            ),
            activation_bytes=activations[name],
        )
        if any(row.numbers):
            rows.append(row)
    return Profile(tuple(rows), assumed)


def compare(here: Profile, dense: Profile) -> dict[str, Any]:
    """Return FLOPs by part of a network, beside those of the dense one.

    Args:
        here (Profile): Costs of the network.
        dense (Profile): Costs of the dense network.
    """
    own, other = here.parts(), dense.parts()
    parts = [
        dict(
            name=name or 'the model itself',
            flops=own[name].flops_sparse if name in own else 0,
            flops_of_dense=other[name].flops_dense if name in other else 0,
        )
        for name in dict.fromkeys([*own, *other])
    ]
    total, dense_total = here.total().flops_sparse, dense.total().flops_dense
    backbone = here.total('backbone').flops_sparse
    dense_backbone = dense.total('backbone').flops_dense
    added = (total - backbone) - (dense_total - dense_backbone)
    return dict(
        parts=parts,
        total=dict(flops=total, flops_of_dense=dense_total),
        backbone_ratio=dense_backbone and backbone / dense_backbone,
        added_share=added / max(dense_total, 1),
    )


def mask_densities(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the share of active weights by parameter name."""
    return {
        name: int(mask.count_nonzero()) / mask.numel()
        for name, mask in masks.items()
    }


@contextmanager
def _recording(model: nn.Module, image: Tensor) -> Iterator[dict[str, int]]:
    """Record the bytes of each module's output while the model runs."""
    bytes_of: dict[str, int] = defaultdict(int)
    # Weak references keep addresses from being used again.
    known = {
        StorageWeakRef(tensor.untyped_storage())
        for tensor in (image, *model.parameters(), *model.buffers())
    }

    def leave(name: str, module: nn.Module, args: Any, output: Any) -> None:
        for tensor in filter(torch.is_tensor, tree_leaves(output)):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference not in known:
                known.add(reference)
                bytes_of[name] += storage.nbytes()

    with watched(model, lambda *_: None, leave):
        yield bytes_of
