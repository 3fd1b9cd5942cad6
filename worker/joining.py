"""How a node gets its keys: from a line to join by, or from a folder."""

from __future__ import annotations

import dataclasses

from ..protocol.enrolment import enrol
from ..protocol.errors import ConfigurationError
from ..protocol.join_line import JoinLine, read_line, refuse_expired
from ..protocol.keys import PeerKeys, load_peer
from ..protocol.own_files import read_text, refuse_readable
from ..protocol.settings import joined_folder
from .config import WorkerSettings


def joined(settings: WorkerSettings) -> tuple[WorkerSettings, PeerKeys | None]:
    """Return the settings with the brokers that a line names, and the node's keys. Raises ConfigurationError."""
    line = _line(settings)
    if line is None:
        return settings, load_peer(settings.keys, "worker") if settings.keys is not None else None
    if not line.is_worker:
        raise ConfigurationError(f"join: this line is for {line.role}s; ask for one for workers")
    if not line.is_once:  # else what it got may outlive it
        refuse_expired(line)
    keys = enrol(line, settings.keys or joined_folder()) if line.is_once else line.peer_keys()
    return dataclasses.replace(settings, broker=line.brokers), keys


def _line(settings: WorkerSettings) -> JoinLine | None:
    if settings.join is not None:
        return read_line(settings.join)
    if settings.join_file is None:
        return None
    try:
        refuse_readable(settings.join_file)
        return read_line(read_text(settings.join_file))
    except FileNotFoundError:
        raise ConfigurationError(f"{settings.join_file} is not there; it would hold the line to join by") from None
