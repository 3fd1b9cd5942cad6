"""The client library: the same verbs for plain threads and for asyncio, over ZRT/1.

    from zmqrt.client import Client

    with Client("tcp://127.0.0.1:7555") as client:
        print(client.infer("What is the capital of France?").text)
        with client.stream("Tell me a story", max_tokens=200) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)

It needs no HTTP stack, no torch and no compiler, and it never imports broker or worker.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..protocol import errors
    from ..protocol.admin import AdminOutcome
    from ..protocol.errors import (
        BadRequestError,
        BusyError,
        CancelledError,
        ConfigurationError,
        ConflictError,
        ConnectError,
        DeadlineError,
        EngineError,
        NotFoundError,
        RequestError,
        TooLargeError,
        UnauthorizedError,
        UnavailableError,
        VersionError,
        WorkerLostError,
        ZmqrtError,
    )
    from ..protocol.request_trace import RequestTrace
    from ..protocol.snapshot import ServiceStatus, Snapshot
    from ..protocol.tasks import ChatMessage, Embed, Generate, TokenLogprobs, Usage
    from .aio import AsyncClient, AsyncHandle, AsyncStream
    from .calls import CallOptions, GenerateOptions
    from .config import ClientSettings
    from .results import Chunk, Embeddings, Result
    from .sync import Client, Handle, Stream

__all__ = [
    "AdminOutcome",
    "AsyncClient",
    "AsyncHandle",
    "AsyncStream",
    "BadRequestError",
    "BusyError",
    "CallOptions",
    "CancelledError",
    "ChatMessage",
    "Chunk",
    "Client",
    "ClientSettings",
    "ConfigurationError",
    "ConflictError",
    "ConnectError",
    "DeadlineError",
    "Embed",
    "Embeddings",
    "EngineError",
    "Generate",
    "GenerateOptions",
    "Handle",
    "NotFoundError",
    "RequestError",
    "RequestTrace",
    "Result",
    "ServiceStatus",
    "Snapshot",
    "Stream",
    "TokenLogprobs",
    "TooLargeError",
    "UnauthorizedError",
    "UnavailableError",
    "Usage",
    "VersionError",
    "WorkerLostError",
    "ZmqrtError",
    "errors",
]

_HOMES: Final = {
    "AdminOutcome": "..protocol.admin",
    "AsyncClient": "aio",
    "AsyncHandle": "aio",
    "AsyncStream": "aio",
    "CallOptions": "calls",
    "GenerateOptions": "calls",
    "ClientSettings": "config",
    "Chunk": "results",
    "Embeddings": "results",
    "Result": "results",
    "Client": "sync",
    "Handle": "sync",
    "Stream": "sync",
    "ServiceStatus": "..protocol.snapshot",
    "Snapshot": "..protocol.snapshot",
    "RequestTrace": "..protocol.request_trace",
    "ChatMessage": "..protocol.tasks",
    "Embed": "..protocol.tasks",
    "Generate": "..protocol.tasks",
    "TokenLogprobs": "..protocol.tasks",
    "Usage": "..protocol.tasks",
}
"""Where each name lives; an error lives with all the others."""


if not TYPE_CHECKING:  # or a checker would take every misspelt name for one of ours

    def __getattr__(name: str) -> object:
        """Import what is asked for when it is asked for: `zmqrt --help` needs no ZeroMQ, and no event loop."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "errors":
            return import_module("..protocol.errors", __name__)
        home = _HOMES.get(name, "..protocol.errors")
        return getattr(import_module(home if home.startswith(".") else f".{home}", __name__), name)
