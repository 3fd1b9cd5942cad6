"""Runs the ledger in a thread of its own: disks may take their time, and the event loop has none.

All that waits when the thread comes back is one transaction, so many requests cost little more than one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ..protocol.errors import ConfigurationError
from ..protocol.usage_file import BUSY_S, NotNowError, open_usage
from .ledger import SIGN_EVERY_S, Ledger, Reservation, Settlement, Verdict

MOST_WAITING: Final = 4096
"""Requests that wait for the file; beyond it they are refused, as if it could not be written."""
_MOST_AT_ONCE: Final = 512
_MOST_UNSETTLED: Final = 65_536
"""Kept while the file cannot be written: a bridge has fewer requests under way."""
_FAREWELL_S: Final = 5.0
BUSY_AGAIN_S: Final = 0.1
"""Longest wait for somebody else's lock once the file could not be written: each request waits for this."""
log = logging.getLogger(__name__)


class UnrecordedError(Exception):
    """The usage file cannot be written now."""


class _Asked(NamedTuple):
    reservation: Reservation
    answer: asyncio.Future[Verdict]


_Job = _Asked | Settlement | None


class LedgerThread:
    """The usage file as the event loop sees it. Its thread begins with the first need of it, and ends with `close`."""

    def __init__(self, path: Path | None, bridge: str, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._bridge = bridge
        self._clock = clock
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._unsettled: list[Settlement] = []
        self._ledger: Ledger | None = None
        self._opened: tuple[int, int] | None = None
        self.problem = ""
        """Why nothing can be written now; "" = it can."""
        self.lost = 0
        """Settlements that were given up."""

    def start(self) -> None:
        """Open the file: a wrong one is known at once, and what others left is settled. Raises ConfigurationError."""
        with contextlib.suppress(NotNowError):  # a full disk ends no service that starts anew, either
            open_usage(self._path).close()
        self._begin()

    def reserve(self, reservation: Reservation) -> asyncio.Future[Verdict]:
        """Ask whether a request may go out; what is awaited may raise UnrecordedError."""
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if self._jobs.qsize() >= MOST_WAITING:
            answer.set_exception(UnrecordedError(f"{MOST_WAITING} requests wait for the usage file"))
        else:
            self._put(_Asked(reservation, answer))
        return answer

    def settle(self, settlement: Settlement) -> None:
        """Say what a request took, at some time soon."""
        self._put(settlement)

    @property
    def is_idle(self) -> bool:
        """Whether nothing has needed the thread yet."""
        return self._thread is None

    def close(self) -> None:
        """Write what there is to write, and end the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(_FAREWELL_S)
            self._thread = None

    def _put(self, job: _Job) -> None:
        self._jobs.put(job)
        self._begin()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
            self._thread.start()

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        is_over = False
        while not is_over:
            jobs = self._next()
            is_over = None in jobs
            asked = [job for job in jobs if isinstance(job, _Asked)]
            self._unsettled += [job for job in jobs if isinstance(job, Settlement)]
            try:
                verdicts = self._work([one.reservation for one in asked])
            except (sqlite3.Error, ConfigurationError) as error:
                self._close_file()
                self._fail(asked, str(error))
            except Exception as error:  # whatever it is, the thread goes on: everybody waits for it
                log.exception("%d answers cannot be written to the usage file", len(self._unsettled))
                self._lose()
                self._fail(asked, repr(error))
            else:
                self._unsettled.clear()
                self._recover()
                _answer(asked, verdicts)
        self._close_file()

    def _work(self, reservations: Sequence[Reservation]) -> list[Verdict]:
        if self._ledger is not None and self._identity() != self._opened:  # deleted, or another one in its place
            self._close_file()
        if self._ledger is None:
            busy_s = BUSY_AGAIN_S if self.problem else BUSY_S
            self._ledger = Ledger(open_usage(self._path, busy_s=busy_s), self._bridge)
            self._opened = self._identity()
        now = self._clock()
        self._ledger.sign(time.monotonic(), now)
        return self._ledger.work(reservations, self._unsettled, now)

    def _close_file(self) -> None:
        if self._ledger is not None:
            with contextlib.suppress(sqlite3.Error):
                self._ledger.close()
        self._ledger = None

    def _identity(self) -> tuple[int, int] | None:
        """Say which file it is; None: none, or one in memory."""
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _next(self) -> list[_Job]:
        """Wait for work, or until a sign of life is due; take what has come with it."""
        jobs: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            jobs.append(self._jobs.get(timeout=SIGN_EVERY_S))
            while len(jobs) < _MOST_AT_ONCE:
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _fail(self, asked: Sequence[_Asked], problem: str) -> None:
        if problem != self.problem:
            log.error("the usage file cannot be written: %s", problem)
        self.problem = problem
        if len(self._unsettled) > _MOST_UNSETTLED:
            self._lose()
        _answer(asked, [UnrecordedError(problem)] * len(asked))

    def _lose(self) -> None:
        self.lost += len(self._unsettled)
        self._unsettled.clear()

    def _recover(self) -> None:
        if self.problem:
            log.warning("the usage file can be written again")
            self.problem = ""
            if self._path is not None:
                self._close_file()  # it was opened with little patience


def _answer(asked: Sequence[_Asked], answers: Sequence[Verdict | UnrecordedError]) -> None:
    """Answer in the loop of whoever asked; a loop that has gone needs no answer."""
    if not asked:
        return
    pairs = list(zip([one.answer for one in asked], answers, strict=True))

    def resolve() -> None:
        for future, answer in pairs:
            if future.done():
                continue  # its caller has left; what it reserved is settled by whoever waited
            if isinstance(answer, UnrecordedError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    with contextlib.suppress(RuntimeError):
        pairs[0][0].get_loop().call_soon_threadsafe(resolve)
