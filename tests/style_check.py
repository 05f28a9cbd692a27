"""Check the rules of style that a program can check, part of `make lint`.

Usage: python tests/style_check.py [FILE ...]

Without files, the Python and C++ files of the project are checked. A finding
is one line, `path:line: message`; with findings the exit status is 1.
CONTRIBUTING.md has the rules with examples.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES = 400
FUNCTION_LINES = 65
SUMMARY_WORDS = 20
SOURCES = ('.py', '.cpp', '.h')
# A summary that begins so has its subject behind a relative clause.
OPENINGS = frozenset(
    'what which whether how those of by where whose who why when that'.split()
)
# Verbs that summaries begin with. A verb that is missing here is added, where
# it says more than one of these.
VERBS = frozenset(
    """
    abort accept accumulate adapt add adjust advance agree align allocate allow
    answer append apply arrange ask assemble assert assign attach average avoid
    backpropagate balance begin bind block bound break broadcast browse build
    bypass cache calibrate call cap cast change check choose clamp clear clip
    clone close collect combine compact compare compile complete compute
    concatenate configure connect consume convert convolve copy correct count
    cover create cut deal debug decide decode decorate decrease delete derive
    describe detach detect determine disable discard dispatch distribute divide
    document double download draw drop dump duplicate emit empty enable encode
    end ensure enter enumerate escape estimate evaluate exclude execute exit
    expand expect explain export expose extend extract factorize fail feed
    fetch fill filter find finish fit fix flatten flip flush fold follow forbid
    force fork form format forward free freeze fuse gather generate get give
    group grow guard halve handle hash hide hold ignore import include increase
    index infer inherit initialize insert inspect install interpret intersect
    invert iterate join keep kill label launch lay leave limit link list load
    locate lock log look lower make map mark mask match measure merge mirror
    mix modify move multiply name narrow negate normalize note observe obtain
    omit open order overlay override pack pad parse partition pass paste patch
    permute pick place plan plot point pool pop prefer prefix prepare prevent
    print probe process produce profile project promise propagate protect prove
    provide prune publish pull push put quantize query raise rank read rebuild
    receive record rectify redirect reduce reflect refresh refuse register
    reject release reload remove rename render repeat replace report represent
    require reserve reset reshape resize resolve restart restore restrict
    resume retry return reuse reverse rewrite rotate round run sample save say
    scale scan schedule score search seed seek select send separate serve set
    settle shape share shift shorten show shuffle shut sign simulate skip slice
    smooth solve sort spawn specify split stack start state step stop store
    stream strip subtract suggest sum summarize suppress swap switch
    synchronize take teach tell terminate test tie tile time total touch trace
    track train transfer transform translate transpose traverse treat trim
    truncate try tune turn undo unfold unpack unscale unwrap update upsample
    use validate verify view visit wait walk warn watch weigh widen wrap write
    yield zero zip
    """.split()
)
# Verbs above that are nouns too, with which a class may begin.
NOUNS = frozenset(
    """
    average block bound cache call cast change check copy count cut draw dump
    end export file filter fit fix flip form format forward group guard hash
    hold import index label launch limit link list load lock log look map mark
    mask match measure merge mix name note order overlay pack patch place plan
    plot point pool prefix process profile project query rank record release
    repeat report reset round run sample scale scan schedule score search seed
    sequence set shape share shift sign slice split stack start state step stop
    store stream sum switch test tie tile time total trace track train transfer
    transform try turn update use view walk watch wrap zero zip
    """.split()
)


def third_person(verb: str) -> str:
    """Return a verb with the ending of the third person."""
    if verb.endswith(('s', 'sh', 'ch', 'x', 'z', 'o')):
        return f'{verb}es'
    if verb.endswith('y') and verb[-2] not in 'aeiou':
        return f'{verb[:-1]}ies'
    return f'{verb}s'


FORMS = {third_person(verb): verb for verb in VERBS}
# Words behind a plural noun ("Runs of a sweep"); behind a verb is an object.
LINKS = frozenset('of that for in on at with by to from and or'.split())


def summary_of(node: ast.AST) -> str:
    """Return the first paragraph of a docstring in one line, or ''."""
    text = ast.get_docstring(node) or ''  # type: ignore[arg-type]
    return ' '.join(text.split('\n\n')[0].split())


def check_function_summary(summary: str) -> Iterator[str]:
    """Yield a finding if a function's summary begins with no imperative."""
    first = summary.split()[0]
    word = first.strip('.,:;').lower()
    if word in VERBS:
        return
    if verb := FORMS.get(word):
        yield f'write "{verb.capitalize()}" in place of "{first}"'
    else:
        yield f'begin with a verb in the imperative, not with "{first}"'


def check_class_summary(summary: str) -> Iterator[str]:
    """Yield a finding if a class's summary begins with a verb."""
    first, second = [*summary.split(), ''][:2]
    word = first.strip('.,:;').lower()
    if word in NOUNS or (second in LINKS and FORMS.get(word) in NOUNS):
        return
    if word in VERBS or word in FORMS:
        yield f'begin a class with a noun or article, not with "{first}"'


def is_property(node: ast.AST) -> bool:
    """Return True for a property, whose summary may be a noun."""
    names = [ast.unparse(d) for d in getattr(node, 'decorator_list', ())]
    return any(
        name.split('.')[-1] in ('property', 'cached_property')
        for name in names
    )


def check_summary(node: ast.AST) -> Iterator[str]:
    """Yield the findings in the docstring summary of one definition."""
    summary = summary_of(node)
    if not summary:
        return
    first = summary.split()[0]
    words = len(summary.split())
    if words > SUMMARY_WORDS:
        yield f'summary of {words} words, at most {SUMMARY_WORDS}'
    if first.strip('.,:;').lower() in OPENINGS:
        yield f'summary begins with "{first}": name the thing or the action'
    elif isinstance(node, ast.ClassDef):
        yield from check_class_summary(summary)
    elif not isinstance(node, ast.Module) and not is_property(node):
        yield from check_function_summary(summary)


def code_lines(node: ast.stmt, lines: list[str]) -> int:
    """Count a definition's lines without docstrings, comments and blanks."""
    numbers = set(range(node.lineno, (node.end_lineno or 0) + 1))
    for inner in ast.walk(node):
        match inner:
            case ast.Expr(value=ast.Constant(value=str())):
                text = range(inner.lineno, (inner.end_lineno or 0) + 1)
                numbers -= set(text)
    return sum(
        bool((line := lines[number - 1].strip()) and line[0] != '#')
        for number in numbers
    )


def check_python(text: str) -> Iterator[tuple[int, str]]:
    """Yield the findings in a Python file, each with its line."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        if not isinstance(node, (ast.Module, ast.ClassDef, *functions)):
            continue
        line = getattr(node, 'lineno', 1)
        for message in check_summary(node):
            yield line, message
        if isinstance(node, functions):
            length = code_lines(node, lines)
            if length > FUNCTION_LINES:
                yield (
                    line,
                    f'{node.name} has {length} lines of code, at most '
                    f'{FUNCTION_LINES}',
                )


def check_file(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the findings in one file, each with its line."""
    text = path.read_text()
    length = len(text.splitlines())
    if length > FILE_LINES:
        yield FILE_LINES + 1, f'{length} lines, at most {FILE_LINES}'
    if path.suffix == '.py':
        yield from check_python(text)


def shorten(path: Path) -> Path:
    """Return a path of the project relative to its root."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def check_names(paths: list[Path]) -> Iterator[tuple[Path, str]]:
    """Yield the modules of sift_mm whose name another module has."""
    seen: dict[str, Path] = {}
    for path in sorted(paths):
        rooms = [
            folder.name
            for folder in path.resolve().parents
            if (folder / '__init__.py').exists()
        ]
        if path.suffix != '.py' or not rooms or rooms[-1] != 'sift_mm':
            continue
        if path.stem in ('__init__', '__main__'):
            continue
        if path.stem in seen:
            yield path, f'module name taken by {shorten(seen[path.stem])}'
        seen.setdefault(path.stem, path)


def find_sources() -> list[Path]:
    """List the tracked and new source files, configs left out."""
    command = ['git', 'ls-files', '-co', '--exclude-standard', '--']
    patterns = [f'*{suffix}' for suffix in SOURCES]
    done = subprocess.run(
        command + patterns,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = [ROOT / name for name in done.stdout.splitlines()]
    return [
        path
        for path in paths
        if path.exists() and (ROOT / 'configs') not in path.parents
    ]


def main(arguments: list[str]) -> int:
    """Print the findings and return the exit status."""
    paths = [Path(name) for name in arguments] or find_sources()
    found = [
        (path, line, message)
        for path in paths
        for line, message in check_file(path)
    ]
    found += [(path, 1, message) for path, message in check_names(paths)]
    for path, line, message in sorted(found):
        print(f'{shorten(path)}:{line}: {message}')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
