"""`zmqrt usage`: sums of the usage file, for people, spreadsheets and programs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zmqrt.client.cli.main import cli
from zmqrt.protocol.usage_file import open_usage

ROWS = [
    ("2026-10-31", "acme", "ci", "tiny", 1, 0, 0, 10, 1),
    ("2026-11-01", "acme", "ci", "tiny", 2, 1, 0, 20, 2),
    ("2026-11-30", "acme", "bob", "big", 4, 0, 1, 40, 4),
    ("2026-11-30", "=cmd()", "", "tiny", 8, 0, 0, 80, 8),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a file with some days."""
    path = tmp_path / "usage.db"
    connection = open_usage(path)
    for day, tenant, name, model, *counts in ROWS:
        requests, failed, unsettled, prompt, completion = counts
        values = (day, tenant, name, model, requests, failed, unsettled, prompt, completion)
        connection.execute("INSERT INTO usage VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    connection.close()
    return path


def run(path: Path, *words: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, ["usage", "--file", str(path), *words])


def test_rows_are_sums_by_what_is_asked_for(path: Path) -> None:
    """Of a month, of days, of one tenant; as JSON by the line."""
    november = run(path, "--since", "2026-11", "--until", "2026-11", "--json", "--by", "tenant")
    assert [json.loads(line) for line in november.stdout.splitlines()] == [
        {"tenant": "=cmd()", "requests": 8, "failed": 0, "unsettled": 0, "prompt_tokens": 80, "completion_tokens": 8},
        {"tenant": "acme", "requests": 6, "failed": 1, "unsettled": 1, "prompt_tokens": 60, "completion_tokens": 6},
    ]
    since = ("--since", "2026-10-31", "--until", "2026-11-01", "--tenant", "acme", "--json", "--by", "day,model")
    days = [json.loads(line) for line in run(path, *since).stdout.splitlines()]
    assert [(day["day"], day["model"], day["requests"]) for day in days] == [
        ("2026-10-31", "tiny", 1),
        ("2026-11-01", "tiny", 2),
    ]


def test_csv_is_for_spreadsheets(path: Path) -> None:
    """In which no name is a formula."""
    told = run(path, "--since", "2026-01", "--until", "2026-12", "--csv", "--by", "tenant,name,model,day").stdout
    rows = list(csv.DictReader(io.StringIO(told)))

    assert sum(int(row["prompt_tokens"]) for row in rows) == 150
    assert {row["tenant"] for row in rows} == {"acme", "'=cmd()"}


def test_a_table_is_for_people(path: Path) -> None:
    """With the names of its columns."""
    told = run(path, "--since", "2026-10", "--until", "2026-11").output

    assert "tenant" in told
    assert "completion" in told
    assert "acme" in told


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--since", "soon"), "expected a day"),
        (("--since", "20261130"), "expected a day"),
        (("--until", "2026-W48-1"), "expected a day"),
        (("--by", "colour"), "expected some of"),
    ],
)
def test_mistakes_are_named(path: Path, words: tuple[str, ...], why: str) -> None:
    """With the flag."""
    result = run(path, *words)

    assert result.exit_code == 2
    assert why in result.output


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """The remedy is named."""
    result = run(tmp_path / "none.db")

    assert "--usage-file" in str(result.exception)
    assert not (tmp_path / "none.db").exists()
