"""One word, one meaning: whoever searches for a class or a module finds one."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bridge_http", "broker", "client", "protocol", "worker")
REQUESTS = {"Request"}
"""What each role remembers of a request, and the message of the wire; see the glossary in docs/PROTOCOL.md."""
IN_EACH_PART = {"__init__", "__main__", "config", "core", "errors"}


def modules() -> Iterator[Path]:
    """Yield every file of the source, relative to the root."""
    for folder in FOLDERS:
        yield from (path.relative_to(ROOT) for path in sorted((ROOT / folder).rglob("*.py")))


def public_classes(module: Path) -> Iterator[str]:
    """Yield the names of the classes that a module defines for others."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    yield from (node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))


def test_a_class_name_stands_in_one_module() -> None:
    """Of the whole source, not of a folder alone."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for module in modules():
        for name in public_classes(module):
            places[name].append(module.as_posix())
    assert len(places) > 300

    assert {name: where for name, where in places.items() if len(where) > 1 and name not in REQUESTS} == {}


def test_a_module_name_stands_once_in_a_role() -> None:
    """Below a folder of the root, whatever folders are in between."""
    places: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for module in modules():
        places[module.parts[0], module.stem].append(module.as_posix())

    assert {name: where for (_, name), where in places.items() if len(where) > 1 and name not in IN_EACH_PART} == {}


def test_every_module_is_on_the_map() -> None:
    """ARCHITECTURE.md names each module, so that a newcomer finds it, and none that is gone."""
    words = re.findall(r"[\w/]+(?=\.py\b)", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    named = {word.rsplit("/", 1)[-1] for word in words} - {"cmd_NAME"}
    source = {module.stem for module in modules()}
    tests = {path.stem for path in (ROOT / "tests").rglob("*.py")}

    assert {name for name in source - named - IN_EACH_PART if not name.startswith("cmd_")} == set()
    assert named - source - tests == set()
