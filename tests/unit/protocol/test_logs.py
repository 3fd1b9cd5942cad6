"""Logs: one line each, with the ids that tell whom a message is about."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from zmqrt.protocol.logs import configure_logging

log = logging.getLogger("zmqrt.broker.server")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A stream to log to; what pytest had set up is back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_names_the_level_the_module_and_the_request(stream: io.StringIO) -> None:
    """A person reads who says what about which request."""
    configure_logging("info", role="broker", stream=stream)

    log.warning("queue of %s is full", "smollm2", extra={"request_id": b"\x01\x02"})

    assert stream.getvalue().split(" ", 1)[1] == (
        "WARNING broker broker.server: queue of smollm2 is full request_id=0102\n"
    )


def test_json_is_one_object_per_line_with_the_traceback_inside(stream: io.StringIO) -> None:
    """A collector gets one object per message, also when something raised."""
    configure_logging("info", "json", role="worker", stream=stream)

    try:
        raise LookupError("no such device")
    except LookupError:
        log.exception("lost “0”", extra={"worker_id": "node-1"})

    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["role"], entry["worker_id"]) == ("error", "worker", "node-1")
    assert entry["message"] == "lost “0”"
    assert entry["traceback"].endswith("LookupError: no such device")


def test_messages_below_the_level_are_left_out(stream: io.StringIO) -> None:
    """The level set is the least important one shown."""
    configure_logging("warning", stream=stream)

    log.info("nothing to see")

    assert stream.getvalue() == ""


def test_a_second_call_replaces_the_first(stream: io.StringIO) -> None:
    """No message is written twice."""
    configure_logging("info", stream=stream)
    configure_logging("info", stream=stream)

    log.info("once")

    assert stream.getvalue().count("once") == 1


FORGED = "x\n12:00:00.000 ERROR   broker forged: y\x1b[2J\u202e\x9b"


def _is_record(line: str) -> bool:
    return re.match(r"\d\d:\d\d:\d\d\.\d{3} ", line) is not None


def test_no_words_of_others_forge_a_line(stream: io.StringIO) -> None:
    """Neither in a message nor in a field, a name, a traceback or a stack: one record begins one line."""
    configure_logging("info", role="bridge", stream=stream)

    log.warning("field %s", FORGED, extra={"request_id": FORGED, "worker_id": FORGED})
    logging.getLogger(f"zmqrt.{FORGED}").warning("from a name")
    try:
        raise LookupError(FORGED)
    except LookupError:
        log.exception("it raised", stack_info=True)

    lines = stream.getvalue().splitlines()
    assert sum(map(_is_record, lines)) == 3
    assert all(_is_record(line) or line.startswith("    ") for line in lines)
    assert not set("\x1b\u202e\x9b") & set(stream.getvalue())
    assert any("LookupError: x" in line for line in lines)


def test_json_holds_no_character_that_a_terminal_obeys(stream: io.StringIO) -> None:
    """Though it says them all."""
    configure_logging("info", "json", role="bridge", stream=stream)

    log.warning("field %s", FORGED, extra={"request_id": FORGED})

    (line,) = stream.getvalue().splitlines()
    assert not set("\x1b\u202e\x9b") & set(line)
    assert json.loads(line)["request_id"] == FORGED
