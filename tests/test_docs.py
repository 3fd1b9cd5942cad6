"""The documentation says what the code says."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import report

ROOT = Path(__file__).resolve().parent.parent
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def load_pages() -> ModuleType:
    """Import the script that writes the generated pages."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pages"] = module
    spec.loader.exec_module(module)
    return module


MADE = ["../bridge_http/static/openapi.json", "openai_fields.md", "settings.md", "states.md"]


@pytest.mark.parametrize("name", MADE)
def test_a_generated_page_is_current(name: str) -> None:
    """`make docs` was run after the last change of what it shows."""
    pages = load_pages().PAGES

    assert set(pages) == set(MADE)
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == pages[name](), "run `make docs`"


def test_the_benchmarks_are_those_of_the_newest_reports() -> None:
    """`make docs` was run after a report was added to bench/results/."""
    assert report.PAGE.read_text(encoding="utf-8") == report.page(), "run `make docs`"


def test_every_failure_names_a_test_that_exists() -> None:
    """A promise without a test that causes the failure is a wish."""
    text = (ROOT / "docs" / "failure_modes.md").read_text(encoding="utf-8")
    named = TEST.findall(text)

    assert len(named) > 30
    for path, name in named:
        assert f"def {name or 'test_'}" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


def test_every_row_names_one() -> None:
    """Or says that it is the row above."""
    text = (ROOT / "docs" / "failure_modes.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| what happens")]

    assert [row for row in rows if not TEST.search(row) and "as above" not in row] == []
