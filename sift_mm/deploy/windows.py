"""Second ways through the source of methods, for fused convolutions.

A method such as ::

    out = self.conv2(out)
    out = self.bn2(out)
    out += identity
    out = self.relu(out)

gets a second way through these statements: one kernel call, taken where a
check at each call finds that the modules and the tensors are still of the
kinds that it computes. The statements stand next to each other and each
overwrites the variable of the one before, so nothing can read or change a
tensor in between; everything else of the method stays as it is written.
"""

import __future__

import ast
import dis
import inspect
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn
from torch.nn import functional as F

from sift_mm.deploy.folding import altered
from sift_mm.deploy.sparse_calls import fits, is_idle, is_norm, is_relu, run
from sift_mm.deploy.sparse_layers import SparseConv2d


class Window(NamedTuple):
    """Consecutive statements of a method that one kernel call replaces.

    Args:
        method: Name of the method.
        place: Line and column of the first statement.
        length: Number of statements.
        target: Variable that they assign; empty if the last one returns.
        arguments: Expressions of the arguments of :func:`fits`.
        tests: Expressions that have to be true: of statements in between,
            which do nothing then.
    """

    method: str
    place: tuple[int, int]
    length: int
    target: str
    arguments: tuple[str, ...]
    tests: tuple[str, ...]

    def statement(self, old: list[ast.stmt]) -> ast.stmt:
        """Return the statement that chooses between both ways."""
        given = ', '.join(self.arguments)
        guard = ' and '.join([*self.tests, f'_fits({given})'])
        new = f'{self.target} = ' if self.target else 'return '
        text = f'if {guard}:\n    {new}_run({given})'
        (choice,) = ast.parse(text).body
        assert isinstance(choice, ast.If)
        choice.orelse = old
        return choice


def words_for(norm: Any, residual: Any, relu: Any) -> str:
    """Return words for what is fused, of which the rest is None."""
    parts = dict(norm=norm, sum=residual, ReLU=relu)
    return ', '.join(k for k, part in parts.items() if part is not None)


def _methods(module: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """Yield the methods of a module that name one of its sparse layers."""
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
            and not method.__code__.co_freevars
            and children & _names(method.__code__)
        ):
            yield name, method


def _names(code: CodeType) -> set[str]:
    """Return the names of a function and of the functions inside it."""
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*map(_names, inner))


@lru_cache(maxsize=1024)
def _source(method: FunctionType) -> str | None:
    """Return the source of a method if it is what runs, else None."""
    try:
        text = textwrap.dedent(inspect.getsource(method))
        tree = ast.parse(text).body[0]
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(tree, ast.FunctionDef) or tree.decorator_list:
        return None
    new = _compile(_parse(text), method).__code__
    same = _instructions(new) == _instructions(method.__code__)
    return text if same else None


def _parse(text: str) -> ast.FunctionDef:
    """Parse a method, without annotations and defaults."""
    (tree,) = ast.parse(text).body
    assert isinstance(tree, ast.FunctionDef)
    given = tree.args
    for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs):
        argument.annotation = None
    tree.returns = None
    # Defaults are those of the method; they are not evaluated anew.
    given.defaults = [ast.Constant(None) for _ in given.defaults]
    given.kw_defaults = [d and ast.Constant(None) for d in given.kw_defaults]
    return tree


def _instructions(code: CodeType) -> list[tuple[str, Any]]:
    """Return what a function does, however its source was compiled.

    A call of an imported module's function is compiled in another way than
    the call of a method; the names and their order are the same.
    """
    found: list[tuple[str, Any]] = []
    for step in dis.get_instructions(code):
        value = step.argval
        if isinstance(value, CodeType):
            found += _instructions(value)
        elif step.opname not in ('PUSH_NULL', 'PRECALL', 'EXTENDED_ARG'):
            name = step.opname.replace('LOAD_METHOD', 'LOAD_ATTR')
            jump = step.opcode in (*dis.hasjrel, *dis.hasjabs)
            found.append((name, None if jump else repr(value)))
    return found


def _compile(tree: ast.FunctionDef, method: FunctionType) -> FunctionType:
    """Compile a method in which the helpers are free variables."""
    (outer,) = ast.parse(f'def make({", ".join(_HELPERS)}): pass').body
    assert isinstance(outer, ast.FunctionDef)
    outer.body = [tree, ast.Return(ast.Name(tree.name, ast.Load()))]
    whole = ast.fix_missing_locations(ast.Module([outer], []))
    # Tracebacks point to the lines of the source.
    ast.increment_lineno(whole, method.__code__.co_firstlineno - tree.lineno)
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
    """Return a method with a second way through each of its windows."""
    text = _source(method)
    if text is None:
        return method
    tree = _parse(text)
    places = {w.place: w for w in windows if w.method == tree.name}
    for block in list(_blocks(tree)):
        for i in reversed(range(len(block))):
            window = places.get((block[i].lineno, block[i].col_offset))
            if window:
                old = block[i : i + window.length]
                block[i : i + window.length] = [window.statement(old)]
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
    """Yield the windows of a module's methods, with layer and description."""
    for name, method in _methods(module):
        text = _source(method)
        for block in _blocks(_parse(text)) if text else ():
            start = 0
            while start < len(block):
                reader = _Reader(module, method)
                count = reader.read(block[start:])
                if count:
                    first = block[start]
                    window = Window(
                        method=name,
                        place=(first.lineno, first.col_offset),
                        length=count,
                        target=reader.target or '',
                        arguments=tuple(reader.arguments),
                        tests=tuple(reader.tests),
                    )
                    parts = [
                        None if a == 'None' else a for a in window.arguments
                    ]
                    yield window, reader.layer, words_for(*parts[2:])
                start += count or 1


class _Reader:
    """Reader of the statements of one window.

    Args:
        module: The module, whose attributes tell what statements call.
        method: The method, whose globals tell what functions are called.
    """

    def __init__(self, module: nn.Module, method: FunctionType) -> None:
        self.names = {method.__code__.co_varnames[0]: module}
        self.scope = method.__globals__
        self.layer: Any = None
        # Expressions of layer, input, norm, residual and ReLU.
        self.arguments = ['None'] * 5
        self.target: str | None = None
        self.tests: list[str] = []

    def read(self, block: list[ast.stmt]) -> int:
        """Return the number of statements that belong to the window."""
        best, kept = 0, (list(self.arguments), '', 0)
        for count, statement in enumerate(block, 1):
            if not self._take(statement):
                break
            if not isinstance(statement, ast.If):
                best = count
                kept = list(self.arguments), self.target or '', len(self.tests)
            if isinstance(statement, ast.Return):
                break
        self.arguments, self.target, tests = kept
        del self.tests[tests:]
        fused = any(self.arguments[i] != 'None' for i in (2, 3, 4))
        return best if fused else 0

    def _take(self, statement: ast.stmt) -> bool:
        """Take a statement into the window if it continues it."""
        if isinstance(statement, ast.If):
            return self._take_test(statement)
        before = self.target
        value: ast.expr | None
        if isinstance(statement, ast.Return):
            value, target = statement.value, ''
        elif isinstance(statement, ast.AugAssign):
            target = ast.unparse(statement.target)
            if target != before or not isinstance(statement.op, ast.Add):
                return False
            return self._take_sum(statement.value, before)
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            if not isinstance(statement.targets[0], ast.Name):
                return False
            value, target = statement.value, statement.targets[0].id
        else:
            return False
        if before is not None and target not in ('', before):
            return False
        self.target = target
        return value is not None and self._take_value(value, before)

    def _take_test(self, statement: ast.If) -> bool:
        """Take an ``if`` that is false for this module and has no else."""
        path = test = statement.test
        if isinstance(test, ast.Compare):
            path = test.left
            if ast.unparse(test) != f'{ast.unparse(path)} is not None':
                return False
        if self.target is None or statement.orelse or not _is_path(path):
            return False
        self.tests.append(f'not ({ast.unparse(test)})')
        value = self._resolve(path)
        return value is False if path is test else value is None

    def _take_value(self, value: ast.expr, before: str | None) -> bool:
        """Take the calls and sums of an expression, innermost first."""
        if isinstance(value, ast.Name):
            if before is not None:
                return value.id == before
            self.arguments[1] = value.id
            return True
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            one, other = value.left, value.right
            if isinstance(other, ast.Name) and other.id != before:
                one, other = other, one
            return self._take_value(other, before) and self._take_sum(
                one, before
            )
        if not isinstance(value, ast.Call):
            return False
        if isinstance(value.func, ast.Attribute) and not value.args:
            if value.func.attr not in ('relu', 'relu_') or value.keywords:
                return False
            inner = self._take_value(value.func.value, before)
            return inner and self._take_call('_relu', F.relu)
        if len(value.args) != 1 or any(
            k.arg != 'inplace' or not isinstance(k.value, ast.Constant)
            for k in value.keywords
        ):
            return False
        if not _is_path(value.func):
            return False
        called = self._resolve(value.func)
        if value.keywords and isinstance(called, nn.Module):
            return False
        inner = self._take_value(value.args[0], before)
        return inner and self._take_call(ast.unparse(value.func), called)

    def _take_sum(self, other: ast.expr, before: str | None) -> bool:
        """Take the sum with a variable that no statement here assigns."""
        if not isinstance(other, ast.Name) or other.id == before:
            return False
        if self.layer is None or self.arguments[3:] != ['None', 'None']:
            return False
        self.arguments[3] = other.id
        return True

    def _take_call(self, text: str, called: Any) -> bool:
        """Take the call of the layer, its norm or the ReLU, in this order."""
        behind = self.arguments[2:]
        if self.layer is None:
            self.layer, self.arguments[0] = called, text
            return isinstance(called, SparseConv2d) and not altered(called)
        if is_relu(called) and behind[2] == 'None':
            self.arguments[4] = text
            return True
        if is_norm(called, self.layer) and behind == ['None'] * 3:
            self.arguments[2] = text
            return True
        if is_idle(called):
            self.tests.append(f'_is_idle({text})')
            return True
        return False

    def _resolve(self, path: ast.expr) -> Any:
        """Return what a path of names is in this module, now."""
        root, *names = ast.unparse(path).split('.')
        value = self.names.get(root, self.scope.get(root, _UNKNOWN))
        for name in names:
            value = getattr(value, name, _UNKNOWN)
        return value


_UNKNOWN = object()
_HELPERS = dict(_fits=fits, _run=run, _is_idle=is_idle, _relu=F.relu)
_FUTURE = __future__.annotations.compiler_flag


def _is_path(expression: ast.expr) -> bool:
    while isinstance(expression, ast.Attribute):
        expression = expression.value
    return isinstance(expression, ast.Name)
