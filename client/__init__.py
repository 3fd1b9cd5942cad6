"""The client library: the same verbs for plain threads and for asyncio, over ZRT/1.

    from zmqrt.client import Client

    with Client("tcp://127.0.0.1:7555") as client:
        print(client.infer("What is the capital of France?").text)
        with client.stream("Tell me a story", max_tokens=200) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)

It needs no HTTP stack, no torch and no compiler, and it never imports broker or worker.
"""

from ..protocol import errors
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
from ..protocol.snapshot import ServiceStatus, Snapshot
from ..protocol.tasks import ChatMessage, Embed, Generate, TokenLogprobs, Usage
from .aio import AsyncClient, AsyncHandle, AsyncStream
from .calls import CallOptions, GenerateOptions
from .config import ClientSettings
from .results import Chunk, Embeddings, Result
from .sync import Client, Handle, Stream

__all__ = [
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
