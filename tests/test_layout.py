"""The layout: which room may import which, and no circle of files.

All imports count: at the top of a file, in a function, for type checkers.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import sift_mm

PACKAGE = Path(sift_mm.__file__).parent

#: Single files, from the ground up, then the floors of rooms on top of them.
#: A room imports what is below its floor, and nothing else.
FLOORS = [
    {'errors', 'discovery', 'orientation'},
    {'names'},
    {'validation'},
    {'registry'},
    {'flops', 'kernels', 'checkpoint', 'data'},
    {'layers', 'sparsity'},
    {'backbones', 'deploy'},
    {'models'},
    {'config'},
    {'engine'},
    {'cli'},
    {'__init__'},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Return the files of the package by module name."""
    found = {}
    for path in PACKAGE.rglob('*.py'):
        parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
        found['.'.join(parts).removesuffix('.__init__')] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """Yield the modules of the package that a file imports."""
    path = MODULES[module]
    package = module if path.stem == '__init__' else module.rpartition('.')[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in MODULES)
        if not isinstance(node, ast.ImportFrom):
            continue
        base = node.module or ''
        if node.level:
            above = package.split('.')[: 1 - node.level or None]
            base = '.'.join([*above, *filter(None, [node.module])])
        for alias in node.names:
            deeper = f'{base}.{alias.name}'
            if deeper in MODULES:
                yield deeper
            elif base in MODULES:
                yield base


def room(module: str) -> str:
    """Return the folder, or the file, below the package."""
    parts = module.split('.')
    return parts[1] if len(parts) > 1 else '__init__'


def test_every_room_is_on_a_floor():
    assert {room(module) for module in MODULES} <= FLOOR.keys()


def test_no_file_imports_from_its_own_floor_or_above():
    wrong = [
        f'{module} -> {found}'
        for module in MODULES
        for found in imports(module)
        if room(found) != room(module)
        and FLOOR[room(found)] >= FLOOR[room(module)]
    ]
    assert not wrong


def test_no_circle_of_files():
    graph = {
        module: {found for found in imports(module) if found != module}
        for module in MODULES
    }
    # The order raises CycleError, which names the circle.
    assert list(TopologicalSorter(graph).static_order())


def test_no_two_files_of_one_name():
    names = Counter(path.stem for path in MODULES.values())
    del names['__init__']
    assert [name for name, count in names.items() if count > 1] == []
