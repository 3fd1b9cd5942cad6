"""POST /infer with the standard library alone, and what its answers mean to a command line."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from typing import Any, Final, cast
from urllib.parse import urlsplit

from ...protocol.errors import (
    EXIT_FAILED,
    EXIT_NOT_AUTHORISED,
    EXIT_TRY_AGAIN,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    ConfigurationError,
    ZmqrtError,
)
from ...protocol.sanitize import printable
from ...protocol.settings import API_KEY_ENV
from .proxies import Proxy, opener_for, proxy_for

_EXIT_OF_STATUS: Final = {
    400: EXIT_USAGE,
    401: EXIT_NOT_AUTHORISED,
    403: EXIT_NOT_AUTHORISED,
    413: EXIT_USAGE,
    422: EXIT_USAGE,
    429: EXIT_TRY_AGAIN,
    503: EXIT_TRY_AGAIN,
    504: EXIT_TRY_AGAIN,
}
_SPARE_S: Final = 5.0
"""The bridge's own 504 should arrive before we stop waiting for it."""
_MOST_S: Final = 600.0
"""For a bridge whose own time for an answer is longer, give one with --timeout."""
_MAX_ANSWER_BYTES: Final = 64 << 20


class SubmitError(ZmqrtError):
    """The bridge did not answer with a result."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def post(
    url: str, body: dict[str, object], *, timeout_s: float | None = None, api_key: str | None = None
) -> dict[str, Any]:
    """Send a request and return the v1 response. Without a time of ours the bridge's own counts. Raises SubmitError."""
    target = _target(url)
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Accept": "application/json",
        **({"X-Request-Timeout": f"{timeout_s:.3f}"} if timeout_s is not None else {}),
    }
    if api_key:
        headers["Authorization"] = f"Bearer {_key(api_key)}"
    request = urllib.request.Request(target, json.dumps(body).encode(), headers, method="POST")  # noqa: S310 - checked
    proxy = proxy_for(target)
    try:
        with opener_for(proxy).open(request, timeout=(timeout_s or _MOST_S) + _SPARE_S) as answer:
            return _read(answer.read(_MAX_ANSWER_BYTES), target)
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(error, error.read(_MAX_ANSWER_BYTES), target, proxy) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(error, target, proxy) from None


def _target(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{url!r} is not an HTTP address; expected something like http://127.0.0.1:8000")
    try:
        is_possible = url.isascii() and url.isprintable() and " " not in url and urlsplit(url).port != 0
    except ValueError:  # a port that is no number, half of an IPv6 address
        is_possible = False
    if not is_possible:
        raise ConfigurationError(f"{url!a} is not an HTTP address: encode what is not ASCII, and check the port")
    return url if url.rstrip("/").endswith("/infer") else url.rstrip("/") + "/infer"


def _key(api_key: str) -> str:
    """Write a key so that its bytes are those of UTF-8, or those it was given in: headers are sent as Latin-1."""
    if any(letter < " " or letter == "\x7f" for letter in api_key):
        raise ConfigurationError(
            f"the key (--api-key or {API_KEY_ENV}) holds characters that no key has; is there a line break behind it?"
        )
    return api_key.encode("utf-8", "surrogateescape").decode("latin-1")


def _read(raw: bytes, target: str) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise SubmitError(f"{target} answered, but not as a zmqrt bridge does; is this the right port?", EXIT_FAILED)
    return cast("dict[str, Any]", answer)


def _refused(error: urllib.error.HTTPError, raw: bytes, target: str, proxy: Proxy | None) -> SubmitError:
    status = error.code
    try:
        words = _detail(raw)
    except (ValueError, KeyError, IndexError, TypeError):
        words = "is this the address of a zmqrt bridge?"
        if proxy is not None:
            words = f"or {proxy.shown} did; no_proxy={urlsplit(target).hostname} goes without it"
        if where := error.headers.get("Location"):
            words = f"it points to {printable(where)}; if that is the bridge, name it with --url"
    if status == 401 and os.environ.get("API_KEY"):
        words += f" (the variable API_KEY is not read: other products use it; set {API_KEY_ENV})"
    return SubmitError(f"{target} answered {status}: {words}", _EXIT_OF_STATUS.get(status, EXIT_FAILED))


def _detail(raw: bytes) -> str:
    """Return the sentence of a refusal, or of the first field that is wrong."""
    detail: Any = json.loads(raw)["detail"]
    if isinstance(detail, str):
        return detail
    return f"{'.'.join(detail[0]['loc'][1:])}: {detail[0]['msg']}"


def _unreachable(error: Exception, target: str, proxy: Proxy | None) -> SubmitError:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        through = f" through {proxy.shown}" if proxy is not None else ""
        return SubmitError(f"{target} did not answer in time{through} (--timeout)", EXIT_TRY_AGAIN)
    words = "nobody listens there" if isinstance(reason, ConnectionRefusedError) else str(reason)
    if proxy is not None:
        text = f"{target} cannot be reached through {proxy.shown}: {words}"
        return SubmitError(f"{text}; no_proxy={urlsplit(target).hostname} goes without it", EXIT_UNREACHABLE)
    text = f"{target} cannot be reached: {words}; start a bridge with `zmqrt up` or zmqrt-bridge"
    return SubmitError(text, EXIT_UNREACHABLE)
