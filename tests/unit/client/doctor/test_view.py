"""What people and programs see of the result."""

import io

from rich.console import Console

from zmqrt.client.doctor.check import Check
from zmqrt.client.doctor.view import summary, to_dict, views

LONG = "run: pip install --upgrade --force-reinstall something-with-a-name, and then have a look at it again"
CHECKS = [
    Check("software", "Python", "ok", "3.11.7"),
    Check("software", "libzmq", "note", "4.3.4 has bugs", LONG),
    Check("keys", "permissions", "bad", "others may read [a/secret.key]", "run: chmod 600 'a/secret.key'"),
]


def text(width: int = 80) -> str:
    """Render for a pipe."""
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None)
    console.print(*views(CHECKS), summary(CHECKS))
    return file.getvalue()


def test_each_line_says_how_it_is_in_words() -> None:
    """Colours only repeat it."""
    lines = [line.rstrip() for line in text().splitlines()]

    assert lines[0] == "software"
    assert lines[1] == "ok    Python        3.11.7"
    assert "BAD   permissions   others may read [a/secret.key]" in lines
    assert lines[-1] == "1 thing to mend, 1 note."


def test_the_remedy_stands_below_and_fits_80_columns() -> None:
    """Whole, with its words in order."""
    shown = text()

    assert max(map(len, shown.splitlines())) <= 80
    assert f"→ {LONG}" in " ".join(shown.split())


def test_if_nothing_is_bad_it_says_so() -> None:
    """Notes are counted."""
    assert summary(CHECKS[:1]).plain == "Nothing is broken."
    assert summary(CHECKS[:2]).plain == "Nothing is broken, 1 note."


def test_programs_get_everything() -> None:
    """And the verdict on the whole."""
    told = to_dict(CHECKS)

    assert not told["is_well"]
    assert to_dict(CHECKS[:2])["is_well"]
    assert told["checks"][0] == {
        "group": "software",
        "name": "Python",
        "verdict": "ok",
        "found": "3.11.7",
        "remedy": "",
    }
