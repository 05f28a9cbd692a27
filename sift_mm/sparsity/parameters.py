"""Which parameters of a network are sparse."""

from collections.abc import Iterable, Iterator, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sift_mm.errors import UserError, UserTypeError
from sift_mm.names import matching

# Classes of modules and parameters, by name: most are not installed.
SHARDING = {'DTensor', 'FullyShardedDataParallel', 'DeepSpeedEngine'}


def only_pieces(kind: str) -> UserTypeError:
    """The mistake of masks where ``kind`` leaves a rank no whole weights."""
    return UserTypeError(
        f'Masks cannot be trained under {kind}: a rank holds pieces of '
        'weights there, and exact counts and the ranking of weights need '
        'whole ones; use DistributedDataParallel (MMDistributedDataParallel, '
        'the default of a distributed run).'
    )


def refuse_pieces(things: Iterable[nn.Module | nn.Parameter]) -> None:
    """Refuse what is sharded over ranks: FSDP, ``fully_shard``, DeepSpeed.

    Raises:
        TypeError: If one of them is no whole module or parameter.
    """
    for thing in things:
        kinds = {kind.__name__ for kind in type(thing).__mro__}
        if kinds & SHARDING:
            raise only_pieces(type(thing).__name__)
        if hasattr(thing, 'ds_id'):  # As DeepSpeed's ZeRO marks parameters.
            raise only_pieces('DeepSpeed')


def sparsifiable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that a mask can be put on: of convolutions and linear layers.

    Norms and biases are never sparse.

    Returns:
        dict[str, nn.Parameter]: By full name, in the network's order; a
        shared parameter appears once.
    """
    weights = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    }
    return {n: p for n, p in model.named_parameters() if id(p) in weights}


def sparse_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Full names of the weights that masks go on, each with who says so.

    A module says so by a method ``sparse_parameter_names()`` that gives names
    relative to it, as the layers of Sparse-IFT and its backbones do.
    """
    for prefix, module in model.named_modules():
        if hasattr(module, 'sparse_parameter_names'):
            for name in module.sparse_parameter_names():
                yield f'{prefix}.{name}' if prefix else name, module


def sparse_parameter_names(model: nn.Module) -> set[str]:
    """The names that :func:`sparse_weights` gives."""
    return {name for name, _ in sparse_weights(model)}


def select_parameters(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> dict[str, nn.Parameter]:
    """The parameters to be sparse, by what the network says and by patterns.

    What the network says is :func:`sparse_parameter_names`.

    Args:
        model (nn.Module): A built network.
        include (Sequence[str], optional): Glob patterns of full parameter
            names, in place of what the modules say.
        exclude (Sequence[str]): Glob patterns of names to leave dense.

    Returns:
        dict[str, nn.Parameter]: By full name, in the network's order.

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
                'sparse_parameter_names() names what no mask can be put on: '
                f'{", ".join(sorted(unknown))}. There are: '
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
