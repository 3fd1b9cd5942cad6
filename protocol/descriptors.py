"""Raises and reads the limit of file descriptors: each connection takes one, and a process without any spins.

libzmq asks the system for every connection that waits, again and again, also when there is no descriptor for it: a full
process burns a core and logs nothing. So a role that listens takes as many as it is allowed, keeps some back, and
resets new connections when only those are left (broker/sockets.py). Without such a limit nothing happens here.
"""

from __future__ import annotations

import sys
from typing import Final

_SHARE: Final = 8
_LEAST_SPARE: Final = 8
_MOST_SPARE: Final = 64
"""Kept back: what a burst of newcomers takes before they are sent away, and what the process itself opens meanwhile."""


def raise_limit() -> None:
    """Take as many descriptors as the administrator allows: 1,024 is only where most systems begin."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        return  # macOS names an unlimited one that cannot be had: what there is has to do


def limit() -> int | None:
    """Return how many there may be now; None if nobody counts them."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def is_spare(fd: int) -> bool:
    """Say whether a new descriptor is one of the last: the system gives the lowest free one, so all below are taken."""
    most = limit()
    return most is not None and fd >= most - min(_MOST_SPARE, max(_LEAST_SPARE, most // _SHARE))
