"""Which paths there are, in whose shape each answers, and what to tell whoever asked for another one. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final, Literal

ApiShape = Literal["own", "openai", "anthropic", "both"]
"""`both`: who asks where nothing is may be a client of either API, so it finds the fields of both."""

RERANK: Final = ("/v1/rerank", "/v2/rerank", "/rerank")
"""Of Jina, of Cohere, of both in other servers."""
MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"
ANTHROPIC: Final = {MESSAGES: "POST", COUNT_TOKENS: "POST"}
RESPONSES: Final = "/v1/responses"
OPENAI: Final[Mapping[str, str]] = {
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    RESPONSES: "POST",
    "/v1/embeddings": "POST",
    "/v1/classify": "POST",
    **dict.fromkeys(RERANK, "POST"),
}
FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/openapi.json": ("openapi.json", "application/json; charset=utf-8"),
    "/client.sh": ("client.sh", "text/x-shellscript; charset=utf-8"),
    "/client.ps1": ("client.ps1", "text/plain; charset=utf-8"),
}
"""Path -> file in static/, media type (which the system's own list would have otherwise on some machines)."""
OWN: Final[Mapping[str, str]] = {
    "/infer": "POST",
    "/health": "GET",
    "/readyz": "GET",
    "/livez": "GET",
    "/startupz": "GET",
    "/status": "GET",
    "/metrics": "GET",
    **dict.fromkeys(FILES, "GET"),
}
_METHODS: Final = {**OPENAI, **ANTHROPIC, **OWN}
_SLASHES: Final = re.compile("/{2,}")
_MODEL: Final = "/v1/models/"
_REQUEST: Final = "/infer/"
_BASE: Final = re.compile(r"(/v1)+")
_TAILS: Final = tuple(path.removeprefix("/v1") for path in OPENAI if path.startswith("/v1"))
_LONGEST: Final = 100
"""Characters of a path that are compared and repeated: it is somebody else's text, and comparing is quadratic."""

_NOT_SERVED: Final = (
    *("responses", "conversations", "images", "audio", "videos", "moderations", "files", "uploads", "batches"),
    *("fine_tuning", "fine-tunes", "assistants", "threads", "vector_stores", "realtime", "evals", "containers"),
    *("edits", "engines", "organization", "messages", "complete", "score"),
)
"""Of OpenAI's and its neighbours' APIs, what exists elsewhere under /v1 and not here."""
_INSTEAD: Final[Mapping[str, str]] = {
    "responses": RESPONSES,
    "messages": MESSAGES,
    "complete": "/v1/completions",
    "conversations": "/v1/chat/completions",
    "engines": "/v1/models",
    "score": "/v1/rerank",
    "/v1/chat": "/v1/chat/completions",
    # Ollama, llama.cpp, TGI, Gemini
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/completions",
    "/api/tags": "/v1/models",
    "/api/show": "/v1/models",
    "/api/ps": "/v1/models",
    "/api/embed": "/v1/embeddings",
    "/api/embeddings": "/v1/embeddings",
    "/api/version": "/health",
    "/completion": "/v1/completions",
    "/embedding": "/v1/embeddings",
    "/predict": "/v1/classify",
    "/generate": "/infer",
    "/generate_stream": "/infer",
    "/props": "/v1/models",
}


def tidy(path: str) -> str:
    """Write a path in the one way that is looked up: clients join addresses with a slash too many, or leave one."""
    if "//" in path:
        path = _SLASHES.sub("/", path)
    return path.rstrip("/") or "/"


def shape_of(path: str) -> ApiShape:
    """Return in whose shape a path answers what is no success."""
    if path in OPENAI or path.startswith(_MODEL):
        return "openai"
    if path in ANTHROPIC:
        return "anthropic"
    return "own" if path in OWN or path.startswith(_REQUEST) else "both"


def is_elsewhere(path: str) -> bool:
    """Return whether the path is one of OpenAI's API (or of its neighbours') that a bridge does not serve."""
    base, _, rest = path[1:].partition("/")
    return base == "v1" and rest.partition("/")[0] in _NOT_SERVED


def advice(path: str, address: str) -> str:
    """Write what is wrong with a path, and which one was meant. `address`: this bridge, as its caller reached it."""
    shown = repr(path[:_LONGEST])
    base = f"{address}/v1"
    if _BASE.fullmatch(path):
        return (
            f"{shown} is the base URL of the OpenAI API and no path of its own: clients set their base URL to {base} "
            "and add /chat/completions, /completions, /embeddings or /models"
        )
    if is_elsewhere(path):
        return f"this bridge does not serve {shown} of the OpenAI API; {_there_is(_instead_of(path[4:]))}"
    if tail := next((tail for tail in ANTHROPIC if path.endswith(tail)), None):
        return f"there is no {shown}: the base URL of a client of the Messages API is {address}; it asks {tail} then"
    if tail := next((tail for tail in _TAILS if path.endswith(tail) or f"{tail}/" in path), None):
        return f"there is no {shown}: the base URL of a client ends in /v1, so set it to {base}; it asks /v1{tail} then"
    return f"there is no {shown}; {_there_is(nearest(path))} (base URL of the OpenAI API: {base})"


def nearest(path: str) -> str | None:
    """Return the path that was most likely meant; None where nothing is near."""
    if path in _INSTEAD:
        return _INSTEAD[path]
    near = difflib.get_close_matches(path[:_LONGEST].lower(), tuple(_METHODS), n=1, cutoff=0.6)
    return near[0] if near else None


def _instead_of(rest: str) -> str | None:
    return _INSTEAD.get(rest.partition("/")[0])


def _there_is(path: str | None) -> str:
    if path is None:
        return "there are POST /infer, the OpenAI API under /v1 (/v1/chat/completions, /v1/models), and GET /health"
    return f"the nearest is {_METHODS[path]} {path}"
