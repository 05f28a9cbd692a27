"""Fusion of sparse convolutions with the norm, sum and ReLU behind them.

Containers that call one module after the other get another forward method.
Other modules keep their methods, in which statements get a second branch; see
:mod:`sift_mm.deploy.windows`.
"""

from abc import ABCMeta
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from sift_mm.deploy.folding import altered
from sift_mm.deploy.sparse_calls import fits, is_norm, is_relu, run
from sift_mm.deploy.sparse_layers import SparseConv2d, SparseLayer
from sift_mm.deploy.windows import Window, find_windows, name_parts, rewrite

_CONV_MODULE = 'mmcv.cnn.bricks.conv_module', 'ConvModule.forward'


def fuse(module: nn.Module) -> dict[SparseLayer, str]:
    """Fuse the sparse convolutions of a module with the parts behind them.

    Args:
        module (nn.Module): Module with sparse layers; its class changes in
            place.

    Returns:
        dict[SparseLayer, str]: Parts that are fused, by layer.
    """
    plain: Any = type(module)
    if type(plain) not in (type, ABCMeta) or 'forward' in vars(module):
        return {}
    found: dict[SparseLayer, str] = {}
    windows: list[Window] = []
    chain = _chain(module)
    if chain is not None:
        for layer, norm, relu in _links(chain):
            if norm is not None or relu is not None:
                found[layer] = name_parts(norm, None, relu)
    else:
        for window, layer, parts in find_windows(module):
            windows.append(window)
            found[layer] = parts
    if found:
        module.__class__ = _fused_class(plain, tuple(windows))
    return found


class _Fused:
    """Mixin of a class whose methods may run statements as one call."""

    plain_class: Any
    windows: tuple[Window, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        _, _, *state = super().__reduce_ex__(max(protocol, 2))  # type: ignore
        return _make, (self.plain_class, self.windows), *state

    def __prepare_scriptable__(self) -> Any:
        """Return the module without fusion, which TorchScript can compile."""
        module = self.plain_class.__new__(self.plain_class)
        module.__dict__ = self.__dict__ | dict(
            _modules=self.__dict__['_modules'].copy()
        )
        return module


def _make(plain: Any, windows: tuple[Window, ...]) -> Any:
    fused = _fused_class(plain, windows)
    return fused.__new__(fused)


@lru_cache(maxsize=1024)
def _fused_class(plain: Any, windows: tuple[Window, ...]) -> Any:
    """Return the subclass of a class with rewritten methods."""
    body: dict[str, Any] = {
        name: rewrite(
            getattr(plain, name), tuple(w for w in windows if w.method == name)
        )
        for name in {window.method for window in windows}
    }
    if not windows:
        body['forward'] = _run_chain
    body |= dict(__module__=plain.__module__, __qualname__=plain.__qualname__)
    body |= dict(plain_class=plain, windows=windows)
    return type(plain)(plain.__name__, (_Fused, plain), body)


def _chain(module: Any) -> list[Any] | None:
    """Return the modules that a container calls one after the other."""
    plain = module.plain_class if isinstance(module, _Fused) else type(module)
    forward = plain.forward
    if forward is nn.Sequential.forward:
        return list(module)
    if (forward.__module__, forward.__qualname__) != _CONV_MODULE:
        return None
    if (
        module.order != ('conv', 'norm', 'act')
        or module.with_explicit_padding
        or module.efficient_conv_bn_eval_forward is not None
    ):
        return None
    parts = [module.conv]
    parts += [module.norm] if module.with_norm else []
    return parts + ([module.activate] if module.with_activation else [])


def _links(chain: list[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """Split a chain into modules, each with the norm and ReLU behind it."""
    rest = list(chain)
    while rest:
        layer, norm, relu = rest.pop(0), None, None
        if isinstance(layer, SparseConv2d) and not altered(layer):
            if rest and is_norm(rest[0], layer):
                norm = rest.pop(0)
            if rest and is_relu(rest[0]):
                relu = rest.pop(0)
        yield layer, norm, relu


def _run_chain(self: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a container's modules; ``forward`` of a fused container."""
    chain = None if args or kwargs else _chain(self)
    if chain is None:
        return self.plain_class.forward(self, input, *args, **kwargs)
    for layer, norm, relu in _links(chain):
        if (norm or relu) and fits(layer, input, norm, None, relu):
            input = run(layer, input, norm, None, relu)
            continue
        for module in (layer, norm, relu):
            input = input if module is None else module(input)
    return input
