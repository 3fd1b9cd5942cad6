"""JSON answers as responses of the framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.responses import Response

from .errors import MEDIA_TYPE

CLIENT_GONE: Final = 499
"""Nobody reads this status; it is for the access log."""


def json_response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON that is encoded already."""
    return Response(body, status, headers, MEDIA_TYPE)
