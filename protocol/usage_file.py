"""The usage file of a bridge: what each tenant has had, in SQLite; written by bridges, read by `zmqrt usage`.

    usage         what was asked and had, by day, tenant, name and model
    months        the tokens of a calendar month, by tenant and name: what budgets are compared with
    reservations  requests under way, by their names on the wire, and how much they may still take
    settled       requests that have ended a moment ago and may be asked for again, which costs nothing
    buckets       how much of a minute's requests and tokens is left
    bridges       who writes here, and how long the machine was up when each gave its last sign of life

Several bridges of one machine may share it. Days and months are in UTC.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from .errors import ConfigurationError
from .file_edits import FULL

SCHEMA_NUMBER: Final = 1
BUSY_S: Final = 2.0
"""Longest wait for another bridge's transaction; each takes milliseconds."""
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS usage(
    day TEXT, tenant TEXT, name TEXT, model TEXT,
    requests INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0, unsettled INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY(day, tenant, name, model)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS months(
    month TEXT, tenant TEXT, name TEXT, tokens INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY(month, tenant, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reservations(
    rid BLOB PRIMARY KEY, bridge TEXT, tenant TEXT, name TEXT, model TEXT, requests INTEGER,
    prompt_tokens INTEGER, completion_tokens INTEGER, most INTEGER, at REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS reservations_by_tenant ON reservations(tenant, name, most);
CREATE TABLE IF NOT EXISTS buckets(
    tenant TEXT, name TEXT, what TEXT, left REAL NOT NULL, at REAL NOT NULL,
    PRIMARY KEY(tenant, name, what)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settled(rid BLOB PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bridges(bridge TEXT PRIMARY KEY, seen REAL NOT NULL) WITHOUT ROWID;
PRAGMA user_version={SCHEMA_NUMBER};
COMMIT;
"""


class UsageRow(NamedTuple):
    """What was had. `unsettled`: requests whose bridge died with them; they count as what was reserved for them."""

    tenant: str
    name: str
    model: str
    day: str
    requests: int
    failed: int
    unsettled: int
    prompt_tokens: int
    completion_tokens: int


class NotNowError(ConfigurationError):
    """The file is not wrong, but cannot be written now: its disk is full, or somebody else holds it."""


_NOT_NOW: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
GROUPS: Final = ("tenant", "name", "model", "day")
_SUMS: Final = ("requests", "failed", "unsettled", "prompt_tokens", "completion_tokens")


def open_usage(path: Path | None, *, busy_s: float = BUSY_S) -> sqlite3.Connection:
    """Open a usage file for a bridge, made if absent; None: one in memory. Raises ConfigurationError or NotNowError."""
    try:
        if path is not None:
            path.touch(0o600)  # who asked how much is nobody else's business
        connection = sqlite3.connect(path or ":memory:", busy_s, isolation_level=None)
    except (sqlite3.Error, OSError) as error:
        raise _unusable(path, error) from None
    try:
        _check(path, connection)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # survives the death of any process, not a power cut
        connection.executescript(_SCHEMA)
    except sqlite3.Error as error:
        connection.close()
        raise _unusable(path, error) from None
    except ConfigurationError:
        connection.close()
        raise
    return connection


def _unusable(path: Path | None, error: sqlite3.Error | OSError) -> ConfigurationError:
    if isinstance(error, OSError):
        is_for_now = error.errno in FULL
    else:
        is_for_now = getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_NOW
    return (NotNowError if is_for_now else ConfigurationError)(f"{path} cannot be used as usage file: {error}")


def _check(path: Path | None, connection: sqlite3.Connection) -> None:
    """Refuse a file that another program, or another version of this one, has made: nothing is written to it."""
    # In one step: a bridge that makes the file at this moment has made none of it, or all.
    query = "SELECT user_version, (SELECT MIN(name) FROM sqlite_master) FROM pragma_user_version"
    number, other = connection.execute(query).fetchone()
    if number not in (0, SCHEMA_NUMBER):
        raise ConfigurationError(f"{path} is of another version of zmqrt (schema {number}, not {SCHEMA_NUMBER})")
    if not number and other is not None:
        raise ConfigurationError(f"{path} is no usage file: another program has made it (it has {other!r})")


def read_usage(
    path: Path, by: Sequence[str] = GROUPS, *, since: str = "", until: str = "9", tenant: str | None = None
) -> list[UsageRow]:
    """Return sums of what was had by tenant, name, model and day, or by some of them. Raises ConfigurationError."""
    if not path.is_file():
        raise ConfigurationError(f"{path} is not there; a bridge makes it with --usage-file")
    columns = ", ".join(name if name in by else f"'' AS {name}" for name in GROUPS)
    sums = ", ".join(f"SUM({name})" for name in _SUMS)
    groups = ", ".join(name for name in GROUPS if name in by)
    query = f"SELECT {columns}, {sums} FROM usage WHERE day >= ? AND day <= ? AND (? IS NULL OR tenant = ?)"  # noqa: S608
    grouped = f" GROUP BY {groups} ORDER BY {groups}" if groups else " HAVING COUNT(*)"
    try:
        connection = sqlite3.connect(path, BUSY_S)
        try:
            _check(path, connection)
            return [UsageRow(*row) for row in connection.execute(query + grouped, (since, until, tenant, tenant))]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None


def day_of(at: float) -> str:
    """Return the day of a time, in UTC."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d")


def month_of(at: float) -> str:
    """Return its month."""
    return day_of(at)[:7]


def next_month(at: float) -> float:
    """Return when the next month begins."""
    now = dt.datetime.fromtimestamp(at, dt.UTC)
    begins = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + dt.timedelta(days=32)
    return begins.replace(day=1).timestamp()
