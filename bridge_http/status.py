"""GET /status: the broker's snapshot as JSON, for the page and for programs that have no client library."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..client.rates import Rates, TokenRates
from ..protocol.errors import ConnectError
from ..protocol.snapshot import Snapshot, for_everybody
from .errors import answer, encode
from .health import SnapshotCache
from .replies import json_response

_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class FleetStatus(Snapshot, frozen=True, kw_only=True):
    """Body of /status: the snapshot, and two things that the bridge knows about it.

    Attributes:
        age_s: How long ago the broker gave it; more than a few seconds: it does not answer now.
        tokens_per_s: By worker_uuid and device id, between a node's last two heartbeats; what is not known is absent.
    """

    age_s: float
    tokens_per_s: Rates


class StatusEndpoint:
    """The endpoint."""

    def __init__(self, watch: SnapshotCache) -> None:
        self._watch = watch
        self._pace = TokenRates()

    async def get(self, request: Request) -> Response:
        """Answer GET /status: 200 with a FleetStatus, or 503 while the broker is unreachable."""
        sight = await self._watch.look()
        if sight.snapshot is None:
            said = answer(ConnectError(sight.problem), request.state.request_id)
            return json_response(said.status, said.body, {**said.headers, **_HEADERS})
        known = msgspec.structs.asdict(for_everybody(sight.snapshot))  # tenants share this bridge, not their requests
        body = FleetStatus(**known, age_s=round(sight.age_s, 3), tokens_per_s=self._pace.fold(sight.snapshot))
        return json_response(200, encode(body), _HEADERS)
