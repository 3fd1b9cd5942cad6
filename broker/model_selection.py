"""Which service a REQUEST means that names none: the only one of its task that lives.

A model whose last node has left is no choice and is not waited for: it makes no such request ambiguous, and none waits
in vain. One that was lost a moment ago and is due back counts where nothing serves, one that still loads where there is
neither. A repeat means what its first was given, whatever serves by now.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from .availability import is_coming, wait_until
from .requests import Request, User
from .services import Service
from .state import BrokerState

TASK_KEY = "task"
"""In REQUEST's ext: what the body asks for, since the broker reads no bodies. Without it: generate, as in a body."""
PREFER_KEY = "prefer"
"""In REQUEST's ext: the service to take if it is among those that can."""


class NoChoice(NamedTuple):
    """Why a request that names no service cannot be taken, as the fields of its refusal."""

    kind: ErrorKind
    text: str
    retry_after_s: float = 0.0


def select_service(state: BrokerState, user: User, ask: m.Request, now: float) -> str | NoChoice:
    """Return the name of the service that a request without one means, or why there is none."""
    live, result = user.requests.get(ask.rid), user.results.get(ask.rid)
    if live is not None:
        return live.service.name
    if result is not None:
        return result.service
    task, preferred = ask.ext.get(TASK_KEY, "generate"), ask.ext.get(PREFER_KEY)
    what = task if task in get_args(m.TaskName) else ascii(task)
    able = [service for service in state.services.values() if service.spec is not None and service.spec.task == task]
    names = sorted(service.name for service in _best(state, able, now))
    if preferred in names:
        return str(preferred)
    if len(names) == 1:
        return names[0]
    if not names:
        return _none(state, str(what), now, is_known=bool(able))
    listed = ", ".join(names)
    if not any(service.healthy for service in able):
        return NoChoice(ErrorKind.STARTING, f"no model that can {what} is ready; there will be: {listed}", 1.0)
    text = f"several models can {what}: {listed}; say which one (model=…, or a default model)"
    return NoChoice(ErrorKind.BAD_REQUEST, text)


def _best(state: BrokerState, able: list[Service[Request]], now: float) -> list[Service[Request]]:
    """Return those that serve; without any, those that are due back; without any, those that load."""
    eviction_s = state.timing.eviction_s
    return (
        [service for service in able if service.healthy]
        or [service for service in able if service.is_due_back and now < service.unhealthy_since + eviction_s]
        or [service for service in able if is_coming(service)]
    )


def _none(state: BrokerState, what: str, now: float, *, is_known: bool) -> NoChoice:
    others = sorted(service.name for service in state.services.values() if service.healthy)
    if is_known:
        return NoChoice(ErrorKind.NO_WORKER, f"no model that can {what} has a healthy worker; see 'zmqrt status'", 1.0)
    if others and wait_until(state, None) <= now:  # else nodes may still be about to register with a new broker
        return NoChoice(ErrorKind.NOT_FOUND, f"no model here can {what}; there are: {', '.join(others)}")
    text = "this broker knows of no model yet; is a worker running ('zmqrt-worker')?"
    return NoChoice(ErrorKind.NO_WORKER, text, 1.0)
