"""Logs of every role: one line for each message on standard error, as text or as JSON.

It formats and nothing else: levels and request ids are given where a message is logged (`extra={"request_id": …}`).
"""

import json
import logging
import sys
import time
from typing import Final, TextIO

from .sanitize import escaped, indented, printable
from .stdio import prepare_stdio

FIELDS: Final = ("request_id", "rid", "trace_id", "worker_id")


def configure_logging(
    level: str, log_format: str = "text", *, role: str = "", worker_id: str = "", stream: TextIO | None = None
) -> None:
    """Send everything logged in this process to one stream; replaces what an earlier call set up.

    `worker_id` names the node that this process is, or belongs to: JSON tells it on each line.
    """
    prepare_stdio()
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(role, worker_id) if log_format == "json" else TextFormatter(role))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def json_line(level: str, logger: str, message: str, *, role: str) -> str:
    """Write one message as `JsonFormatter` would, for what is said before there is a log."""
    record = logging.LogRecord(logger, logging.getLevelNamesMapping()[level.upper()], "", 0, "%s", (message,), None)
    return JsonFormatter(role).format(record)


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """Return whom a message is about: the request and the worker, where it says so."""
    found = {name: getattr(record, name, None) for name in FIELDS}
    return {name: value.hex() if isinstance(value, bytes) else str(value) for name, value in found.items() if value}


class TextFormatter(logging.Formatter):
    """For people: local time to the millisecond, level, logger, message, ids."""

    def __init__(self, role: str = "") -> None:
        super().__init__()
        self._role = f" {role}" if role else ""

    def format(self, record: logging.LogRecord) -> str:
        """Write one message. Only its first line begins like one: others, and a traceback's, stand further in."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = printable(record.name.removeprefix("zmqrt."))
        words = indented(record.getMessage())
        line = f"{clock}.{record.msecs:03.0f} {record.levelname:7}{self._role} {name}: {words}"
        line += "".join(f" {key}={printable(value)}" for key, value in fields_of(record).items())
        traces = [self.formatException(record.exc_info)] if record.exc_info else []
        traces += [record.stack_info] if record.stack_info else []
        return "\n    ".join([line, *map(indented, traces)])


class JsonFormatter(logging.Formatter):
    """For machines: one object per line, time in UTC."""

    def __init__(self, role: str = "", worker_id: str = "") -> None:
        super().__init__()
        self._role = role
        self._worker_id = worker_id

    def format(self, record: logging.LogRecord) -> str:
        """Write one message; a traceback is one field of it."""
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{clock}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            **({"role": self._role} if self._role else {}),
            "logger": record.name,
            "message": record.getMessage(),
            **({"worker_id": self._worker_id} if self._worker_id else {}),
            **fields_of(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        return escaped(json.dumps(entry, ensure_ascii=False))
