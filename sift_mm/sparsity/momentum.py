"""Running mean of dense gradients, which masked optimizers do not have."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from sift_mm.errors import UserError
from sift_mm.sparsity.optimizers import with_wrapped


def momentum_of(optimizer: Optimizer, parameter: nn.Parameter) -> float:
    """Return the decay of the optimizer's first moment for a parameter.

    This is SGD's ``momentum``, or the first of Adam's ``betas``.

    Raises:
        ValueError: If the optimizer has none.
    """
    for each in with_wrapped(optimizer):
        for group in each.param_groups:
            if all(parameter is not p for p in group['params']):
                continue
            betas = group.get('betas') or (0.0,)
            if decay := float(group.get('momentum') or betas[0]):
                return decay
    raise UserError(
        'The algorithm grows weights by momentum, and '
        f'{type(optimizer).__name__} has none: set momentum=0.9 of SGD, take '
        "Adam or AdamW, or choose algorithm='RigL'."
    )


def mean_gradients(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    before: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the running means after a step's dense gradients.

    Outside the masks they are, up to a factor, what the optimizer's first
    moment would be without masks. Gradients must be finite.

    Args:
        optimizer (Optimizer): Optimizer, for the decay.
        parameters (Mapping): Parameters with gradients, by name.
        before (Mapping): Means before the step; it does not change.
    """
    means = dict(before)
    for name, parameter in parameters.items():
        if (gradient := parameter.grad) is None:
            continue
        decay = momentum_of(optimizer, parameter)
        mean = gradient.detach() * (1 - decay)
        if name in before:
            mean.add_(before[name], alpha=decay)
        means[name] = mean
    return means


def restore_means(
    saved: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return copies of saved running means, on their parameters' devices.

    Raises:
        ValueError: If they are not those of the parameters, or not finite.
    """
    for name, mean in saved.items():
        fits = name in parameters and mean.shape == parameters[name].shape
        if not fits or not mean.isfinite().all():
            raise UserError(
                f'The saved mean gradient of {name!r} is not that of this '
                'network, or not finite: resume with the network and the '
                'include and exclude of that run.'
            )
    return {n: m.to(parameters[n], copy=True) for n, m in saved.items()}
