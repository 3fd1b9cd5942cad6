"""Look beyond this process: ask each broker, and have the worker package look at GPUs and models. Judges nothing."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from ...protocol import checkup
from ...protocol.checkup import Checkup
from ...protocol.children import UTF8_OUTPUT, python
from ...protocol.errors import ZmqrtError
from ..config import ClientSettings
from ..sync import Client
from .brokers import Asked

_WORKER: Final = "zmqrt.worker"
CHECKUP: Final = f"{_WORKER}.checkup"
PATIENCE_S: Final = 60.0
"""Importing torch from a slow disk takes half of it; a driver that hangs takes forever."""


def brokers(settings: ClientSettings, *, are_named: bool) -> Sequence[Asked]:
    """Ask each broker by itself, all at the same time: those that are not there take seconds each."""
    endpoints = settings.broker
    if not endpoints:
        return [Asked(endpoint="", is_named=are_named, error="no broker is named; name one with --broker ENDPOINT")]
    with ThreadPoolExecutor(len(endpoints)) as pool:
        return list(pool.map(functools.partial(_ask, settings=settings, are_named=are_named), endpoints))


def _ask(endpoint: str, *, settings: ClientSettings, are_named: bool) -> Asked:
    alone = dataclasses.replace(settings, broker=(endpoint,))
    try:
        with Client.from_settings(alone, name="zmqrt doctor") as client:
            began_s, began_unix_s = time.monotonic(), time.time()
            snapshot = client.status()
            took_s = time.monotonic() - began_s
    except ZmqrtError as error:
        return Asked(endpoint=endpoint, is_named=are_named, error=str(error))
    return Asked(
        endpoint=endpoint,
        is_named=are_named,
        snapshot=snapshot,
        round_trip_s=took_s,
        unix_s=began_unix_s + took_s / 2,
    )


def is_worker_here() -> bool:
    """Say whether the worker package is installed; looking for it imports nothing of it."""
    return importlib.util.find_spec(_WORKER) is not None


def worker(*, patience_s: float = PATIENCE_S) -> Checkup | str:
    """Have the worker package look, in a process of its own: a client never imports it. Else return why it did not."""
    try:
        ended = subprocess.run(
            python(CHECKUP),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **UTF8_OUTPUT},
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {patience_s:.0f} s"
    last = (ended.stdout.strip().splitlines() or [""])[-1]
    try:
        return checkup.decode(last)
    except msgspec.DecodeError:
        words = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"it ended with code {ended.returncode}: {words}"
