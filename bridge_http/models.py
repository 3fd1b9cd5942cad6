"""GET /v1/models: the services of the fleet, in the shape of whoever asks: OpenAI's, or that of the Messages API."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from ..protocol.api_keys import ApiKey
from ..protocol.errors import ErrorKind, request_error
from ..protocol.snapshot import ServiceStatus
from .anthropic.message_schema import ModelInfo, ModelPage
from .errors import json_response
from .openai.schema import Model, ModelList
from .snapshot_cache import SnapshotCache

_STARTED: Final = int(time.time())
"""When models were made is not known; since when this bridge serves them is."""
_MESSAGES: Final = "anthropic-version"
"""The header that only clients of the Messages API send, with every request."""


async def models(snapshots: SnapshotCache, request: Request) -> Response:
    """Answer GET /v1/models: all of them on one page."""
    services = (await _listed(snapshots, request)).values()
    if _MESSAGES not in request.headers:
        return json_response(200, ModelList(data=[_model(service) for service in services]))
    data = [_info(service) for service in services]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return json_response(200, ModelPage(data=data, first_id=first, last_id=last))


async def model(snapshots: SnapshotCache, request: Request) -> Response:
    """Answer GET /v1/models/{model}."""
    name: str = request.path_params["model"]
    listed = await _listed(snapshots, request)
    if name not in listed:
        text = f"there is no model {name[:128]!r}; there are {', '.join(listed) or 'none yet'}"
        raise request_error(ErrorKind.NOT_FOUND, text)
    service = listed[name]
    return json_response(200, _info(service) if _MESSAGES in request.headers else _model(service))


async def _listed(snapshots: SnapshotCache, request: Request) -> dict[str, ServiceStatus]:
    """Return those that the key may ask."""
    snapshot = await snapshots.snapshot(news=True)
    key: ApiKey | None = request.state.key
    listed = [service for service in snapshot.services if service.is_listed]
    return {service.service: service for service in listed if key is None or key.may_ask(service.service)}


def _model(service: ServiceStatus) -> Model:
    return Model(id=service.service, created=_STARTED, capabilities=list(service.capabilities))


def _info(service: ServiceStatus) -> ModelInfo:
    created_at = datetime.fromtimestamp(_STARTED, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    context = service.context or None
    return ModelInfo(id=service.service, display_name=service.service, created_at=created_at, max_input_tokens=context)
