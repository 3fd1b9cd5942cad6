"""The documentation says what the code says."""

from pathlib import Path

import pytest

from zmqrt.protocol.settings import known_roles, markdown_table

ROOT = Path(__file__).resolve().parent.parent
ROLES = {"bridge", "broker", "client", "worker"}


def test_the_page_of_settings_is_current() -> None:
    """`make docs` was run after the last change of a setting."""
    if set(known_roles()) != ROLES:
        pytest.skip("not every role has its settings yet")

    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")

    assert written == markdown_table(known_roles()), "run `make docs`"
