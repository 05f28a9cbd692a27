"""Access to the model inside MMEngine's wrappers."""

from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sift_mm.sparsity.parameters import only_pieces, refuse_pieces


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a data-parallel wrapper.

    Raises:
        TypeError: If the wrapper, or a module in the model, shards
            parameters.
    """
    if is_model_wrapper(model):
        if not isinstance(model, (DistributedDataParallel, DataParallel)):
            raise only_pieces(type(model).__name__)
        model = model.module
    refuse_pieces(model.modules())
    refuse_pieces(model.parameters())
    return model
