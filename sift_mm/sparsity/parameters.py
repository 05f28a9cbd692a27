"""Selection of the sparse parameters of a network."""

from collections.abc import Iterable, Iterator, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sift_mm.errors import UserError, UserTypeError
from sift_mm.names import matching
from sift_mm.orientation import inputs_first, mark_inputs_first

# Names of sharded modules and parameters; most libraries are not installed.
SHARDING = {'DTensor', 'FullyShardedDataParallel', 'DeepSpeedEngine'}


def only_pieces(kind: str) -> UserTypeError:
    """Return the error of masks under a wrapper that shards weights."""
    return UserTypeError(
        f'Masks cannot be trained under {kind}: a rank holds pieces of '
        'weights there, and exact counts and the ranking of weights need '
        'whole ones; use DistributedDataParallel (MMDistributedDataParallel, '
        'the default of a distributed run).'
    )


def refuse_pieces(things: Iterable[nn.Module | nn.Parameter]) -> None:
    """Refuse modules and parameters that FSDP or DeepSpeed sharded.

    Raises:
        TypeError: If a module or parameter is sharded.
    """
    for thing in things:
        kinds = {kind.__name__ for kind in type(thing).__mro__}
        if kinds & SHARDING:
            raise only_pieces(type(thing).__name__)
        if hasattr(thing, 'ds_id'):  # Mark of DeepSpeed's ZeRO.
            raise only_pieces('DeepSpeed')


def sparsifiable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of all convolutions and linear layers.

    Returns:
        dict[str, nn.Parameter]: Weights by full name, in network order; a
        shared parameter appears once, and one without elements never.
    """
    weights = set()
    for module in model.modules():
        if inputs_first(module):
            mark_inputs_first(module)
        elif not isinstance(module, (_ConvNd, nn.Linear)):
            continue
        weights.add(id(module.weight))
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in weights and parameter.numel()
    }


def sparse_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the full name of each weight to mask, and its module.

    A module names weights, relative to itself, by a method
    ``sparse_parameter_names()``, like Sparse-IFT layers and backbones.
    """
    for prefix, module in model.named_modules():
        if hasattr(module, 'sparse_parameter_names'):
            for name in module.sparse_parameter_names():
                yield f'{prefix}.{name}' if prefix else name, module


def sparse_parameter_names(model: nn.Module) -> set[str]:
    """Return the names of :func:`sparse_weights`."""
    return {name for name, _ in sparse_weights(model)}


def layer_densities(model: nn.Module) -> dict[str, float]:
    """Return the densities of the Sparse-IFT layers, by weight name."""
    return {
        name: density
        for name, module in sparse_weights(model)
        if isinstance(density := getattr(module, 'density', None), float)
    }


def select_parameters(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> dict[str, nn.Parameter]:
    """Select the parameters to mask.

    Args:
        model (nn.Module): Network.
        include (Sequence[str], optional): Glob patterns of full parameter
            names; :func:`sparse_parameter_names` by default.
        exclude (Sequence[str]): Glob patterns of parameters to leave dense.

    Returns:
        dict[str, nn.Parameter]: Parameters by full name, in network order.

    Raises:
        ValueError: If a pattern matches nothing, a module names a parameter
            that cannot be sparse, or nothing is selected.
        TypeError: If the network is sharded, see :func:`refuse_pieces`.
    """
    refuse_pieces(model.modules())
    refuse_pieces(model.parameters())
    candidates = sparsifiable_parameters(model)
    nothing = 'none of the parameters that could be sparse'
    if include is not None:
        names = matching(include, candidates, nothing)
    else:
        names = sparse_parameter_names(model)
        if unknown := names - candidates.keys():
            raise UserError(
                'sparse_parameter_names() names parameters that cannot be '
                f'masked: {", ".join(sorted(unknown))}. There are: '
                f'{", ".join(candidates)}.'
            )
    could = [name for name in candidates if name in names]
    names -= matching(exclude, could, nothing)
    if not names:
        raise UserError(
            'No parameter is selected to be sparse: the model has no '
            'Sparse-IFT backbone with a family, and include/exclude leave '
            'nothing. Give include=[patterns] of: '
            f'{", ".join(candidates)}.'
        )
    return {n: p for n, p in candidates.items() if n in names}
