"""Transformation of any built network into a member of the family."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sift_mm.errors import UserError
from sift_mm.flops import on_meta, plain_operators
from sift_mm.layers.candidates import choose_layers
from sift_mm.layers.family import Member, check_share, share_of_flops
from sift_mm.layers.plain import Change, plain_type
from sift_mm.layers.report import (
    NothingReplaced,
    Replacement,
    TransformReport,
    find_refused,
    note_refused,
    record,
)
from sift_mm.layers.widening import widen_chains


def transform(
    module: nn.Module,
    family: str,
    sparsity: float,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    inner: str = 'none',
    sparse_factors: str | None = None,
    example: Any = None,
) -> TransformReport:
    """Replace a network's dense layers by a member of the family, in place.

    Convolutions and linear layers (PyTorch's classes, and mmcv's wrappers of
    them) become larger layers of the same FLOPs under masks. 'wide' and
    'wide_factorized' widen the inside of feed-forward pairs and residual
    blocks, so that the network's interface stays.

    New layers have new weights (see their classes), drawn from PyTorch's
    random state, and the old biases. A network of MMEngine is initialized
    first if it was not (from a checkpoint, if its ``init_cfg`` names one).
    Load a checkpoint of the transformed network afterwards. The network holds
    no masks: ``SparseTrainingHook`` or ``MaskSet`` mask the weights that the
    report and ``sparse_parameter_names`` list.

    Widening is checked by values, with random weights, in training and in
    evaluation. New channels that are unread or zero must not change outputs.
    No channel may mix with others before the next layer reads it (attention
    heads, a softmax, a norm over channels), and no output may depend on
    further tokens. The check runs the whole network with the ``example``, or
    with images or token ids if it takes them; else each block alone, which
    does not show modules that reach into it.

    Args:
        module (nn.Module): The network.
        family (str): 'wide', 'parallel', 'factorized', 'doped' or
            'wide_factorized'.
        sparsity (float): Share of zero weights, in [0, 1).
        include (Sequence[str], optional): Glob patterns of layer names. None
            takes all layers except the stem (a convolution of up to 4 input
            channels, or named so), the classifier (a last linear layer, named
            so), predictors (named ``conv_seg``, ``retina_cls``, ...), frozen
            layers and layers of zeros.
        exclude (Sequence[str]): Glob patterns of layer names to leave.
        inner (str): Modules behind an inner layer: 'none', 'norm',
            'norm_act'.
        sparse_factors (str, optional): As for :class:`Member`.
        example (Tensor | tuple | Mapping, optional): Input of the network,
            its positional or its keyword arguments. Tensors on the meta
            device stand for random ones. Layers whose replacement
            fails the check stay dense.

    Returns:
        TransformReport: Replaced layers with sizes, and the other layers with
        reasons.

    Raises:
        ValueError: If an argument is wrong, a pattern matches no layer, the
            network does not run with the example, or nothing could be
            replaced.
    """
    member = Member(family, sparsity, inner, sparse_factors)
    # MMEngine initializes when a run starts, and would then draw the new
    # layers by the library's rule.
    uninitialised: Any = module
    if getattr(module, 'is_init', True) is False:
        uninitialised.init_weights()
    layers, skipped = choose_layers(module, family, include, exclude)
    if member.kind.widens:
        replaced = widen_chains(module, member, layers, skipped, example)
    else:
        replaced = _replace(module, member, layers, skipped, example)
    report = TransformReport(replaced, skipped)
    if not replaced:
        raise NothingReplaced(report)
    return report


def output_shapes(module: nn.Module, example: Any) -> list[Any] | str:
    """Return the shapes of a network's outputs in evaluation.

    The network runs on the meta device and does not change.

    Args:
        module (nn.Module): The network.
        example (Tensor | tuple | Mapping): As for :func:`transform`.

    Returns:
        list | str: Shapes, or the reason why the network does not run.
    """
    example = tree_map_only(Tensor, lambda t: t.to('meta'), example)
    args, kwargs = example if isinstance(example, tuple) else (example,), {}
    if isinstance(example, Mapping):
        args, kwargs = (), dict(example)
    try:
        with torch.no_grad(), plain_operators():
            out = on_meta(module, norms=False)(*args, **kwargs)
    except Exception as error:  # Any error of a layer.
        return str(error).partition('\n')[0]
    return [getattr(leaf, 'shape', None) for leaf in tree_leaves(out)]


def _replace(
    module: nn.Module,
    member: Member,
    layers: Mapping[str, Any],
    skipped: dict[str, str],
    example: Any,
) -> dict[str, Replacement]:
    """Replace layers one by one, except where the network then fails."""
    expected = None if example is None else output_shapes(module, example)
    if isinstance(expected, str):
        raise UserError(
            f'The network does not run with the example: {expected}'
        )
    changes = _put_composites(module, member, layers, skipped)
    for change in changes if expected is not None else ():
        change.undo()

    def objection(some: Sequence[Change]) -> str:
        for change in some:
            change.redo()
        found = output_shapes(module, example)
        for change in some:
            change.undo()
        if found == expected:
            return ''
        return found if isinstance(found, str) else 'other outputs'

    refused = {} if expected is None else find_refused(changes, objection)
    note_refused(changes, refused, skipped)
    replaced: dict[str, Replacement] = {}
    for change in changes:
        if change.names not in refused:
            change.redo()
            replaced |= change.replaced
    return replaced


def _put_composites(
    module: nn.Module,
    member: Member,
    layers: Mapping[str, Any],
    skipped: dict[str, str],
) -> list[Change]:
    changes = []
    for name, layer in layers.items():
        try:
            new = member.build(layer)
            ratio = share_of_flops(new, layer, member.sparsity)
            check_share(ratio)
        except ValueError as error:
            skipped[name] = str(error)
            continue
        for part in new.modules():
            # One inner layer takes the dense bias, which may be a prior.
            if plain_type(part) and part.bias is not None:
                part.bias = layer.bias
        holder = module.get_submodule(name.rpartition('.')[0])
        change = Change(module, type(holder).__name__)
        change.replace(name, new)
        change.replaced[name] = record(name, layer, new, ratio)
        changes.append(change)
    return changes
