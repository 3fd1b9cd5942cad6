"""One owner: each field of a record of the broker is written in one module. Found by parsing the source.

An assignment is known by the name of what it is assigned to: `request.state = …` writes `Request.state`, whatever else
a variable of that name may hold. So records have to be called after their class; an assignment to anything else fails.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3] / "broker"
SHELLS = {"allow_lists", "auth", "join_lines", "oversized_messages", "server", "sockets"}
"""Modules that hold sockets and no records."""
RECORDS = {
    "request": "Request",
    "trace": "TraceNotes",
    "subscriber": "Subscriber",
    "session": "Session",
    "node": "Node",
    "offer": "Offer",
    "service": "Service",
    "counters": "Counters",
    "state": "BrokerState",
    "result": "CachedResult",
    "entry": "a record of the module itself",
    "holder": "whoever holds bytes",
    "thing": "whoever has a deadline",
}


def writes(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (class, field, line) of each assignment to an attribute in a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owner: dict[ast.AST, str] = {}
    for definition in ast.walk(tree):
        if isinstance(definition, ast.ClassDef):
            owner.update(dict.fromkeys(ast.walk(definition), definition.name))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
            continue
        base = node.value
        name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else "?"
        record = owner.get(node, "?") if name == "self" else RECORDS.get(name, f"unknown record {name!r}")
        yield record, node.attr, node.lineno


def all_writes() -> dict[str, dict[str, list[int]]]:
    """Return the lines that write each field, by module."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(ROOT.glob("*.py")):
        if path.stem in SHELLS:
            continue
        for record, field, line in writes(path):
            found[f"{record}.{field}"][path.stem].append(line)
    return found


def test_each_field_is_written_in_one_module() -> None:
    """Two writers are two places to look for one mistake."""
    found = {field: dict(modules) for field, modules in all_writes().items() if len(modules) > 1}

    assert found == {}


def test_records_are_called_after_their_class() -> None:
    """Else the test above would be blind to them."""
    assert [field for field in all_writes() if field.startswith(("unknown", "?"))] == []


@pytest.mark.parametrize(
    ("field", "module"),
    [
        ("Request.state", "requests"),
        ("Request.journal", "requests"),
        ("Request.next_n", "requests"),
        ("Request.is_waiting", "queues"),
        ("Node.state", "nodes"),
        ("whoever holds bytes.held_bytes", "bounds"),
        ("MemoryBudget.held_bytes", "bounds"),
        ("Counters.completed", "completion"),
        ("Counters.failed", "completion"),
        ("Counters.cancelled", "completion"),
        ("Offer.level", "placement"),
        ("Offer.running", "leases"),
    ],
)
def test_who_writes_what_matters_most(field: str, module: str) -> None:
    """By name, so that a rename or a move shows here."""
    assert list(all_writes()[field]) == [module]
