"""Reads requests of APIs that say a chat in their own words: as a task of ours; or, where that cannot be and a server
of others behind the model's node may understand it, as the chat that is asked of that server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ...protocol.capabilities import EXTRA
from ...protocol.tasks import Generate, needs_of
from ..errors import InvalidRequestError
from ..in_flight import HttpRequest
from ..json_body import encode
from ..request_body import BodyReader
from ..snapshot_cache import SnapshotCache
from .passing import passed_on
from .requests import read_fields

Json = dict[str, Any]


class _NamesModel(Protocol):
    @property
    def model(self) -> str: ...


A = TypeVar("A", bound=_NamesModel)


class OtherApi(NamedTuple, Generic[A]):
    """How one API is read: its body, the task of that, and of a body that is not ours to read its outline and its chat.

    All raise InvalidRequestError.
    """

    parse: Callable[[bytes], A]
    task: Callable[[A], Generate]
    outline: Callable[[Json], Json]
    as_chat: Callable[[Json], Json]


async def read_other_api(
    api: OtherApi[A], bodies: BodyReader, snapshots: SnapshotCache, request: HttpRequest
) -> tuple[A, Generate]:
    """Read a request, and make its task: ours, or one that a server behind the model's node does in its own way."""
    raw = await bodies.read(request.headers, request.scope, request.receive)
    try:
        body = api.parse(raw)
        task = api.task(body)
    except InvalidRequestError as error:
        given = read_fields(raw)
        if not await may_pass(snapshots, given.get("model")):
            raise
        try:
            return api.parse(encode(api.outline(given))), passed_on(api.as_chat(given))
        except InvalidRequestError:
            raise error from None
    needs = needs_of(task)
    if needs is None or not await may_pass(snapshots, body.model, unless=set(needs.split(","))):
        return body, task
    return body, passed_on(api.as_chat(read_fields(raw)))


async def may_pass(snapshots: SnapshotCache, model: object, *, unless: set[str] | None = None) -> bool:
    """Whether a node of a model passes on what is not ours; `unless`: not where nodes of it can do this themselves."""
    latest = (await snapshots.look()).snapshot
    services = latest.services if latest is not None else []
    able = [service.capabilities.keys() for service in services if model in (None, service.service)]
    return any(EXTRA in names for names in able) and not (unless and any(unless <= names for names in able))
