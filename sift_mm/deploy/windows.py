"""Fused convolutions inside methods, by rewriting their source.

A method such as ::

    out = self.conv2(out)
    out = self.bn2(out)
    out += identity
    out = self.relu(out)

gets a second branch around these statements: one kernel call. A check at
each call takes that branch only while modules and tensors are of the kinds
that the kernel computes. The statements are consecutive and each overwrites
the variable of the one before, so nothing can read or change a tensor in
between; the rest of the method stays as it is written.
"""

import __future__

import ast
import copy
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn
from torch.nn import functional as F

from sift_mm.deploy.folding import altered
from sift_mm.deploy.sparse_calls import fits, is_idle, is_norm, is_relu, run
from sift_mm.deploy.sparse_layers import SparseConv2d

_HELPERS = dict(_fits=fits, _run=run, _is_idle=is_idle, _relu=F.relu)
_FUTURE = __future__.annotations.compiler_flag
_UNKNOWN = object()
# Arguments of `fits` and `run`, in order.
_ARGUMENTS = ('layer', 'input', 'norm', 'residual', 'relu')


class Window(NamedTuple):
    """Consecutive statements of a method that one kernel call replaces.

    Args:
        method: Name of the method.
        source: Source of each statement.
        target: Variable that they assign; empty if the last one returns.
        arguments: Source of each argument of :func:`fits`.
        tests: Source of further conditions, under which the other statements
            in between do nothing.
    """

    method: str
    source: tuple[str, ...]
    target: str
    arguments: tuple[str, ...]
    tests: tuple[str, ...]

    def branch(self, old: list[ast.stmt]) -> ast.stmt:
        """Return the statement that chooses between both branches."""
        given = ', '.join(self.arguments)
        guard = ' and '.join([*self.tests, f'_fits({given})'])
        new = f'{self.target} = ' if self.target else 'return '
        (choice,) = ast.parse(f'if {guard}:\n    {new}_run({given})').body
        assert isinstance(choice, ast.If)
        choice.orelse = old
        return choice


def name_parts(norm: Any, residual: Any, relu: Any) -> str:
    """Return the names of the parts that are fused (not None)."""
    parts = dict(norm=norm, sum=residual, ReLU=relu)
    return ', '.join(k for k, part in parts.items() if part is not None)


def _methods(module: nn.Module) -> Iterator[FunctionType]:
    """Yield the methods that name one of the module's sparse layers."""
    children = {
        name
        for name, child in module.named_children()
        if isinstance(child, SparseConv2d)
    }
    kind = type(module)
    for name in dir(kind) if children else ():
        method = inspect.getattr_static(kind, name)
        if (
            isinstance(method, FunctionType)
            and name not in vars(module)
            and children & _names(method.__code__)
        ):
            yield method


def _names(code: CodeType) -> set[str]:
    """Return the names of a function and of the functions inside it."""
    return {name for inner in _codes(code) for name in inner.co_names}


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


@lru_cache(maxsize=64)
def _parse_file(text: str) -> tuple[ast.Module, list[CodeType]]:
    """Return the tree of a source file and all its code objects."""
    code = compile(text, '', 'exec', dont_inherit=True)
    return ast.parse(text), list(_codes(code))


@lru_cache(maxsize=1024)
def _parse(method: FunctionType) -> ast.FunctionDef | None:
    """Return the tree of a method, None if its source is not what runs."""
    code = method.__code__
    try:
        tree, codes = _parse_file(''.join(inspect.findsource(method)[0]))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if code.co_freevars or code not in codes:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            if (node.name, node.lineno) == (code.co_name, code.co_firstlineno):
                # Outside of its class, a private name would be another one.
                same = _names(_compile(node, method).__code__) == _names(code)
                return node if same else None
    return None


def _compile(node: ast.FunctionDef, method: FunctionType) -> FunctionType:
    """Compile the tree of a method, with the helpers as free variables."""
    node = copy.deepcopy(node)
    given = node.args
    for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs):
        argument.annotation = None
    node.returns = None
    # The method's defaults are kept, not evaluated again.
    given.defaults = [ast.Constant(None) for _ in given.defaults]
    given.kw_defaults = [d and ast.Constant(None) for d in given.kw_defaults]
    (outer,) = ast.parse(f'def make({", ".join(_HELPERS)}): pass').body
    assert isinstance(outer, ast.FunctionDef)
    outer.body = [node, ast.Return(ast.Name(node.name, ast.Load()))]
    whole = ast.fix_missing_locations(ast.Module([outer], []))
    old = method.__code__
    flags = old.co_flags & _FUTURE
    code = compile(whole, old.co_filename, 'exec', flags, dont_inherit=True)
    made: dict[str, Any] = {}
    exec(code, method.__globals__, made)
    new = made['make'](**_HELPERS)
    new.__defaults__ = method.__defaults__
    new.__kwdefaults__ = method.__kwdefaults__
    new.__qualname__, new.__doc__ = method.__qualname__, method.__doc__
    return new


def rewrite(method: FunctionType, windows: tuple[Window, ...]) -> Any:
    """Return a method with a second branch around each of its windows."""
    tree = copy.deepcopy(_parse(method))
    if tree is None:
        return method
    for block in list(_blocks(tree)):
        for start in reversed(range(len(block))):
            for window in windows:
                end = start + len(window.source)
                old = block[start:end]
                if tuple(map(ast.unparse, old)) == window.source:
                    block[start:end] = [window.branch(old)]
    return _compile(tree, method)


def _blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    """Yield all lists of statements, inner ones first."""
    for child in ast.iter_child_nodes(tree):
        yield from _blocks(child)
    for name in ('body', 'orelse', 'finalbody'):
        block = getattr(tree, name, None)
        if isinstance(block, list):
            yield block


def find_windows(
    module: nn.Module,
) -> Iterator[tuple[Window, SparseConv2d, str]]:
    """Yield the windows of a module's methods, with layer and fused parts."""
    for method in _methods(module):
        tree = _parse(method)
        for block in _blocks(tree) if tree else ():
            start = 0
            while start < len(block):
                reader = _Reader(module, method)
                window = reader.read(block[start:])
                if window:
                    parts = [window.arguments[i] for i in (2, 3, 4)]
                    fused = [None if p == 'None' else p for p in parts]
                    yield window, reader.layer, name_parts(*fused)
                start += len(window.source) if window else 1


class _Reader:
    """Reader of the statements of one window.

    Args:
        module: Module whose attributes the statements call.
        method: Method whose globals the statements call.
    """

    def __init__(self, module: nn.Module, method: FunctionType) -> None:
        self.method = method
        self.names = {method.__code__.co_varnames[0]: module}
        self.layer: Any = None
        # Source of each argument of `fits`.
        self.found: dict[str, str] = {}
        self.target: str | None = None
        self.tests: list[str] = []

    def read(self, block: list[ast.stmt]) -> Window | None:
        """Return the longest window that a block begins with, if any."""
        window = None
        for count, statement in enumerate(block, 1):
            if not self._take(statement):
                break
            fuses = self.found.keys() & {'norm', 'residual', 'relu'}
            # An `if` belongs to the window only when a statement follows.
            if fuses and not isinstance(statement, ast.If):
                window = Window(
                    self.method.__name__,
                    tuple(map(ast.unparse, block[:count])),
                    self.target or '',
                    tuple(self.found.get(k, 'None') for k in _ARGUMENTS),
                    tuple(self.tests),
                )
            if isinstance(statement, ast.Return):
                break
        return window

    def _take(self, statement: ast.stmt) -> bool:
        """Take a statement into the window if it continues the window."""
        before = self.target
        match statement:
            case ast.If(orelse=[]) if before is not None:
                return self._take_test(statement.test)
            case ast.AugAssign(ast.Name(name), ast.Add(), value):
                return name == before and self._take_sum(value, before)
            case ast.Assign([ast.Name(name)], value) if before in (None, name):
                self.target = name
                return self._take_value(value, before)
            case ast.Return(ast.expr() as value):
                self.target = ''
                return self._take_value(value, before)
        return False

    def _take_test(self, test: ast.expr) -> bool:
        """Take the test of an ``if`` that is false for this module."""
        self.tests.append(f'not ({ast.unparse(test)})')
        match test:
            case ast.Compare(path, [ast.IsNot()], [ast.Constant(None)]):
                return _is_path(path) and self._resolve(path) is None
        return _is_path(test) and self._resolve(test) is False

    def _take_value(self, value: ast.expr, before: str | None) -> bool:
        """Take the calls and sums of an expression, innermost first."""
        match value:
            case ast.Name(name):
                if before is None:
                    self.found['input'] = name
                return before in (None, name)
            case ast.BinOp(one, ast.Add(), ast.Name(name)) if name != before:
                return self._take_value(one, before) and self._take_sum(
                    value.right, before
                )
            case ast.BinOp(one, ast.Add(), other):
                return self._take_value(other, before) and self._take_sum(
                    one, before
                )
            case ast.Call(ast.Attribute(inner, 'relu' | 'relu_'), [], []):
                return self._take_value(inner, before) and self._take_call(
                    '_relu', F.relu
                )
            case ast.Call(path, [inner], keywords) if _is_path(path):
                called = self._resolve(path)
                plain = all(
                    k.arg == 'inplace' and isinstance(k.value, ast.Constant)
                    for k in keywords
                )
                if not plain or (keywords and isinstance(called, nn.Module)):
                    return False
                return self._take_value(inner, before) and self._take_call(
                    ast.unparse(path), called
                )
        return False

    def _take_sum(self, other: ast.expr, before: str | None) -> bool:
        """Take the sum with a variable that no statement here assigns."""
        if not isinstance(other, ast.Name) or other.id == before:
            return False
        if self.layer is None or self.found.keys() & {'residual', 'relu'}:
            return False
        self.found['residual'] = other.id
        return True

    def _take_call(self, source: str, called: Any) -> bool:
        """Take the call of the layer, its norm or the ReLU, in this order."""
        if self.layer is None:
            self.layer, self.found['layer'] = called, source
            return isinstance(called, SparseConv2d) and not altered(called)
        behind = self.found.keys() - {'layer', 'input'}
        if is_relu(called) and 'relu' not in behind:
            self.found['relu'] = source
            return True
        if is_norm(called, self.layer) and not behind:
            self.found['norm'] = source
            return True
        if is_idle(called):
            self.tests.append(f'_is_idle({source})')
            return True
        return False

    def _resolve(self, path: ast.expr) -> Any:
        """Return the present value of a path of names."""
        root, *names = ast.unparse(path).split('.')
        value = self.method.__globals__.get(root, _UNKNOWN)
        value = self.names.get(root, value)
        for name in names:
            value = getattr(value, name, _UNKNOWN)
        return value


def _is_path(expression: ast.expr) -> bool:
    while isinstance(expression, ast.Attribute):
        expression = expression.value
    return isinstance(expression, ast.Name)
