"""The public names of the library. `zmqrt.client` hands them on, and imports this when the first one is asked for."""

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
from ..protocol.markup import AnswerParser, CalledTool, Content, Reasoning
from ..protocol.request_trace import RequestTrace
from ..protocol.snapshot import ServiceStatus, Snapshot
from ..protocol.tasks import ChatMessage, Classify, Embed, Generate, Rerank, TokenLogprobs, Tool, ToolCall, Usage
from .aio import AsyncClient, AsyncHandle, AsyncStream
from .calls import CallOptions, GenerateOptions
from .config import ClientSettings
from .queue_place import QueuePlace
from .response import Chunk, Embeddings, Result
from .scoring import Classification, RankedDocument, Ranking
from .sync import Client, Handle, Stream

__all__ = [
    "AdminOutcome",
    "AnswerParser",
    "AsyncClient",
    "AsyncHandle",
    "AsyncStream",
    "BadRequestError",
    "BusyError",
    "CallOptions",
    "CalledTool",
    "CancelledError",
    "ChatMessage",
    "Chunk",
    "Classification",
    "Classify",
    "Client",
    "ClientSettings",
    "ConfigurationError",
    "ConflictError",
    "ConnectError",
    "Content",
    "DeadlineError",
    "Embed",
    "Embeddings",
    "EngineError",
    "Generate",
    "GenerateOptions",
    "Handle",
    "NotFoundError",
    "QueuePlace",
    "RankedDocument",
    "Ranking",
    "Reasoning",
    "RequestError",
    "RequestTrace",
    "Rerank",
    "Result",
    "ServiceStatus",
    "Snapshot",
    "Stream",
    "TokenLogprobs",
    "TooLargeError",
    "Tool",
    "ToolCall",
    "UnauthorizedError",
    "UnavailableError",
    "Usage",
    "VersionError",
    "WorkerLostError",
    "ZmqrtError",
    "errors",
]
