"""The doctor's round: what is looked at, in which order, and who judges it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..config import ClientSettings
from . import brokers, gpu, key_files, machine, models, probe_far, probe_here, software
from .check import Check


@dataclass(frozen=True, slots=True)
class Step:
    """One part of the round; `doing` says what is being waited for."""

    doing: str
    look: Callable[[], list[Check]]


def steps(settings: ClientSettings, *, are_named: bool, with_worker: bool) -> Iterator[Step]:
    """List the parts; `are_named` tells whether somebody named the brokers."""
    has_keys = settings.keys is not None
    yield Step("looking at what is installed", lambda: software.judge(probe_here.software(), has_keys=has_keys))
    yield Step("looking at this machine", lambda: machine.judge(probe_here.machine()))
    yield Step("reading keys", lambda: key_files.judge(probe_here.key_files(settings.keys)))
    yield Step(f"asking {', '.join(settings.broker)}", lambda: _brokers(settings, are_named=are_named))
    if with_worker:
        yield Step("looking at GPUs, torch and models (this takes some seconds)", _worker)


def _brokers(settings: ClientSettings, *, are_named: bool) -> list[Check]:
    return [check for asked in probe_far.brokers(settings, are_named=are_named) for check in brokers.judge(asked)]


def _worker() -> list[Check]:
    if not probe_far.is_worker_here():
        return [Check(gpu.GROUP, "package", "ok", "not installed, and a client does not need it")]
    found = probe_far.worker()
    if isinstance(found, str):
        remedy = f"run `python -m {probe_far.CHECKUP}` and nvidia-smi: one of them shows what hangs or fails"
        return [Check(gpu.GROUP, "checkup", "bad", found, remedy)]
    return [*gpu.judge(found), *models.judge(found)]
