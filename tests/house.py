"""The source tree as its tests see it: modules, what they import, what they define."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("cggm", "cggm_seg", "cggm_cls", "cggm_nnunet")


@cache
def modules() -> dict[str, Path]:
    """Dotted name to file, packages included."""
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    return {dotted_name(file): file for file in files}


def dotted_name(file: Path) -> str:
    """``cggm/runs/__init__.py`` is ``cggm.runs``."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(file: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(file.read_text())


def imports(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it; of a known package the module alone."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            base = node.module or ""
            whole = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in modules() else base for name in whole)


def packages_of(name: str) -> list[str]:
    """The packages that hold a module, outermost first: ``cggm``, ``cggm.runs``, ..."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with where it stands, pipelines included."""
    for file in [*modules().values(), *sorted((ROOT / "pipelines").glob("*.py"))]:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(ROOT)}:{node.name}", node


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def circles() -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    graph = {name: {n for n in imports(file) if n in modules()} for name, file in modules().items()}
    reach = {name: _reachable(graph, name) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other]) | {name} for name in graph
    }
    return [sorted(group) for group in groups if len(group) > 1]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = [*graph[start]]
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += graph[name]
    return found
