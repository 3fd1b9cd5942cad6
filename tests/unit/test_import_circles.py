"""No two modules of the source import one another, not even for their types: what is above what can be seen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("bridge_http", "broker", "client", "protocol", "worker")


def modules() -> dict[str, Path]:
    """Return every module by its name."""
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield what a module imports of the source: anywhere in it, in functions and for type checkers, too."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name.removeprefix("zmqrt.") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module.removeprefix("zmqrt.")] if node.module else [])])
            for alias in node.names:
                targets.append(f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base)
        yield from (target for target in targets if target in known and target != name)


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Return the sets of modules that lead back to themselves."""
    reached = {name: _reach(graph, name) for name in graph}
    return {
        frozenset({name, *(other for other in reached[name] if name in reached[other])})
        for name in graph
        if name in reached[name]
    }


def _reach(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    front = [start]
    while front:
        for target in graph[front.pop()] - seen:
            seen.add(target)
            front.append(target)
    return seen


def test_no_module_leads_back_to_itself() -> None:
    """A circle has no first module to read, and none that can be tested alone."""
    known = modules()
    graph = {name: set(imports(name, path, known)) for name, path in known.items()}

    found = circles(graph)
    assert len(graph) > 150
    assert sorted(map(sorted, found)) == []


def test_a_circle_is_found() -> None:
    """Of two, and of three; a module that imports only is in none."""
    graph = {"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"e"}, "e": {"c"}, "f": {"a"}}

    assert circles(graph) == {frozenset("ab"), frozenset("cde")}
