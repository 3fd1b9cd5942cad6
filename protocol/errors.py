"""Every way a request can fail, in one table; and the exceptions that carry them to people.

    ZmqrtError
    ├── ProtocolError          bytes that are not ZRT/1 (never leaves a role; counted as a strike)
    ├── ConfigurationError     a setting is wrong or unsafe: exit 78
    ├── ConnectError           nobody usable answers at the endpoint: exit 69 (77 when keys are the cause)
    └── RequestError           a request ended without a result; `.kind` is its row in the table
        ├── BadRequestError 400 · UnauthorizedError 401/403 · NotFoundError 404 · ConflictError 409
        ├── TooLargeError 413 · VersionError 426 · BusyError 429 · CancelledError 499
        └── EngineError 500 · WorkerLostError 502 · UnavailableError 503 · DeadlineError 504

Peers get a code, a reason and a sentence, never a traceback.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from .limits import MAX_TEXT_CHARS

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 69
EXIT_TRY_AGAIN: Final = 75
EXIT_NOT_AUTHORISED: Final = 77
EXIT_CONFIGURATION: Final = 78
EXIT_INTERRUPTED: Final = 130
EXIT_READER_GONE: Final = 141
"""As of any program in a pipe that SIGPIPE ends: no failure of its own."""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """What one kind of failure means to each layer.

    Attributes:
        code: Wire code of the ERROR message.
        redispatch: May the broker give the request to another node?
        resend: May the client send it again by itself? (`retryable` on the wire)
        infer_status: HTTP status on /infer.
        openai_status: HTTP status on /v1 paths.
        exit_code: Exit code of the command line.
        openai_type: `error.type` on /v1 paths.
    """

    code: int
    redispatch: bool
    resend: bool
    infer_status: int
    openai_status: int
    exit_code: int
    openai_type: str


class ErrorKind(enum.Enum):
    """A failure by name: the value is the sub-reason that travels beside the code."""

    BAD_REQUEST = "bad_request"
    CONTEXT_EXCEEDED = "context_length_exceeded"
    WRONG_TASK = "wrong_task"
    UNAUTHORIZED = "unauthorized"
    NO_SESSION = "no_session"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "model_not_found"
    CONFLICT = "request_id_reused"
    TOO_LARGE = "too_large"
    VERSION = "version"
    QUEUE_FULL = "queue_full"
    NO_SLOT = "no_slot"
    RATE_LIMITED = "rate_limited"
    MEMORY_FULL = "memory_full"
    CANCELLED = "cancelled"
    SLOW_READER = "slow_reader"
    MODEL_RAISED = "model_raised"
    WORKER_LOST = "worker_lost"
    POISON = "poison"
    NOT_RESUMABLE = "not_resumable"
    OUTCOME_UNKNOWN = "outcome_unknown"
    NO_WORKER = "no_worker"
    STARTING = "starting"
    DRAINING = "draining"
    BROKER_LOST = "broker_lost"
    ENGINE_RESTARTED = "engine_restarted"
    DEADLINE = "deadline_exceeded"
    STALLED = "stalled"


_INVALID = "invalid_request_error"
_SERVER = "server_error"

TABLE: Final[dict[ErrorKind, ErrorRow]] = {
    #                            code  redisp resend infer openai exit
    ErrorKind.BAD_REQUEST: ErrorRow(400, False, False, 422, 400, EXIT_USAGE, _INVALID),
    ErrorKind.CONTEXT_EXCEEDED: ErrorRow(400, False, False, 422, 400, EXIT_USAGE, _INVALID),
    ErrorKind.WRONG_TASK: ErrorRow(400, False, False, 422, 400, EXIT_USAGE, _INVALID),
    ErrorKind.UNAUTHORIZED: ErrorRow(401, False, False, 401, 401, EXIT_NOT_AUTHORISED, "authentication_error"),
    ErrorKind.NO_SESSION: ErrorRow(401, False, True, 503, 503, EXIT_TRY_AGAIN, _SERVER),
    ErrorKind.FORBIDDEN: ErrorRow(403, False, False, 401, 403, EXIT_NOT_AUTHORISED, "permission_error"),
    ErrorKind.NOT_FOUND: ErrorRow(404, False, False, 503, 404, EXIT_USAGE, _INVALID),
    ErrorKind.CONFLICT: ErrorRow(409, False, False, 409, 409, EXIT_FAILED, _INVALID),
    ErrorKind.TOO_LARGE: ErrorRow(413, False, False, 413, 413, EXIT_USAGE, _INVALID),
    ErrorKind.VERSION: ErrorRow(426, False, False, 503, 503, EXIT_FAILED, _SERVER),
    ErrorKind.QUEUE_FULL: ErrorRow(429, False, True, 429, 429, EXIT_TRY_AGAIN, "rate_limit_error"),
    ErrorKind.NO_SLOT: ErrorRow(429, True, True, 429, 429, EXIT_TRY_AGAIN, "rate_limit_error"),
    ErrorKind.RATE_LIMITED: ErrorRow(429, False, True, 429, 429, EXIT_TRY_AGAIN, "rate_limit_error"),
    ErrorKind.MEMORY_FULL: ErrorRow(429, False, True, 429, 429, EXIT_TRY_AGAIN, "rate_limit_error"),
    ErrorKind.CANCELLED: ErrorRow(499, False, False, 499, 499, EXIT_INTERRUPTED, _SERVER),
    ErrorKind.SLOW_READER: ErrorRow(499, False, False, 499, 499, EXIT_FAILED, _SERVER),
    ErrorKind.MODEL_RAISED: ErrorRow(500, False, False, 500, 500, EXIT_FAILED, _SERVER),
    ErrorKind.WORKER_LOST: ErrorRow(502, False, True, 503, 502, EXIT_TRY_AGAIN, _SERVER),
    ErrorKind.POISON: ErrorRow(502, False, False, 503, 502, EXIT_FAILED, _SERVER),
    ErrorKind.NOT_RESUMABLE: ErrorRow(502, False, False, 503, 502, EXIT_FAILED, _SERVER),
    ErrorKind.OUTCOME_UNKNOWN: ErrorRow(502, False, False, 503, 502, EXIT_FAILED, _SERVER),
    ErrorKind.NO_WORKER: ErrorRow(503, False, True, 503, 503, EXIT_TRY_AGAIN, _SERVER),
    ErrorKind.STARTING: ErrorRow(503, False, True, 503, 503, EXIT_TRY_AGAIN, _SERVER),
    ErrorKind.DRAINING: ErrorRow(503, True, True, 503, 503, EXIT_TRY_AGAIN, _SERVER),
    ErrorKind.BROKER_LOST: ErrorRow(503, False, True, 503, 503, EXIT_TRY_AGAIN, _SERVER),
    ErrorKind.ENGINE_RESTARTED: ErrorRow(503, True, True, 503, 503, EXIT_TRY_AGAIN, _SERVER),
    ErrorKind.DEADLINE: ErrorRow(504, False, False, 504, 504, EXIT_TRY_AGAIN, _SERVER),
    ErrorKind.STALLED: ErrorRow(504, False, False, 504, 504, EXIT_TRY_AGAIN, _SERVER),
}

_DEFAULT_OF_CODE: Final[dict[int, ErrorKind]] = {}
for _kind, _row in TABLE.items():
    _DEFAULT_OF_CODE.setdefault(_row.code, _kind)


def kind_of(code: int, reason: str) -> ErrorKind:
    """Name the failure a peer reports; one we do not know falls back on its code, then on MODEL_RAISED."""
    try:
        kind = ErrorKind(reason)
    except ValueError:
        return _DEFAULT_OF_CODE.get(code, ErrorKind.MODEL_RAISED)
    return kind if TABLE[kind].code == code else _DEFAULT_OF_CODE.get(code, ErrorKind.MODEL_RAISED)


def clip(text: str) -> str:
    """Shorten words for a header field; lone surrogates would not encode."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def too_long(what: str, tokens: int | str, context: int) -> str:
    """Say that a prompt (`what` the client calls it) does not fit a context.

    The first sentences are OpenAI's own: litellm looks for them, to fall back on a model with a longer context.
    LangChain looks for "prompt is too long", since OpenAI's SDK does not show it the code.
    """
    return (
        f"This model's maximum context length is {context} tokens. However, your {what} resulted in {tokens} tokens. "
        f"The prompt is too long: please reduce the length of the {what}."
    )


class PortableError(Exception):
    """An exception that can be pickled and copied, whatever its constructor asks for: process pools and queues do so.

    Python's own way calls the constructor with `args`, which here are but the sentence.
    """

    def __reduce__(self) -> tuple[object, ...]:
        """Take along the fields, and what it came from."""
        state = {**self.__dict__, "__cause__": _portable(self.__cause__)}
        return _bare, (type(self), self.args), {**state, "__suppress_context__": self.__suppress_context__}


def _bare(made: type[BaseException], args: tuple[object, ...]) -> BaseException:
    return made.__new__(made, *args)  # sets `args` and calls no constructor; the fields follow


def _portable(cause: BaseException | None) -> BaseException | None:
    """Return a cause as it is where it surely can be pickled, else its words."""
    if cause is None or isinstance(cause, PortableError) or type(cause).__module__ == "builtins":
        return cause
    return RuntimeError(f"{type(cause).__module__}.{type(cause).__qualname__}: {cause}")


class ZmqrtError(PortableError):
    """Anything zmqrt raises on purpose. `exit_code` is what the command line ends with."""

    exit_code: int = EXIT_FAILED


class ProtocolError(ZmqrtError):
    """An envelope that is not ZRT/1. `peer_major` is set when only the major version is wrong (answer it with 426).

    `is_foreign` means that it does not even begin like ZRT: whoever sent it would not understand an answer.
    """

    def __init__(self, text: str, *, peer_major: int | None = None, is_foreign: bool = False) -> None:
        super().__init__(text)
        self.peer_major = peer_major
        self.is_foreign = is_foreign


class ConfigurationError(ZmqrtError):
    """A setting is wrong, contradictory or unsafe; the message says which and what to do."""

    exit_code = EXIT_CONFIGURATION


class ConnectError(ZmqrtError):
    """No usable broker at the endpoints. `not_authorised` when the keys are the cause."""

    def __init__(self, text: str, *, endpoint: str = "", not_authorised: bool = False) -> None:
        super().__init__(text)
        self.endpoint = endpoint
        self.not_authorised = not_authorised
        self.exit_code = EXIT_NOT_AUTHORISED if not_authorised else EXIT_UNREACHABLE


class RequestError(ZmqrtError):
    """A request ended without a result.

    Attributes:
        kind: Its row in TABLE.
        text: What happened and what to do.
        request_id: Hex rid, where known.
        retry_after_s: When to try again (0 = no advice).
        resume_n: Units delivered before the end.
    """

    def __init__(
        self, kind: ErrorKind, text: str, *, request_id: str = "", retry_after_s: float = 0.0, resume_n: int = 0
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.resume_n = resume_n
        self.exit_code = self.row.exit_code

    @property
    def row(self) -> ErrorRow:
        """What this failure means to each layer."""
        return TABLE[self.kind]

    @property
    def code(self) -> int:
        """Wire code."""
        return self.row.code

    @property
    def retryable(self) -> bool:
        """Whether sending the request again may help."""
        return self.row.resend

    def __str__(self) -> str:
        """Give the sentence, and which request it is about."""
        return f"{self.text} (request {self.request_id})" if self.request_id else self.text


class BadRequestError(RequestError):
    """400: the request itself is wrong."""


class UnauthorizedError(RequestError):
    """401, 403: the key is missing, wrong, or not allowed to do this."""


class NotFoundError(RequestError):
    """404: no such service, or no such node."""


class ConflictError(RequestError):
    """409: the request id was used before with another body."""


class TooLargeError(RequestError):
    """413: over a size limit."""


class VersionError(RequestError):
    """426: no common protocol version."""


class BusyError(RequestError):
    """429: queue or rate limit; `retry_after_s` says when."""


class CancelledError(RequestError):
    """499: given up by its client, or by the broker because its reader stalled."""


class EngineError(RequestError):
    """500: the model raised."""


class WorkerLostError(RequestError):
    """502: its node was lost, and it cannot go on elsewhere."""


class UnavailableError(RequestError):
    """503: no healthy node now."""


class DeadlineError(RequestError):
    """504: time is up."""


_CLASS_OF_CODE: Final[dict[int, type[RequestError]]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    426: VersionError,
    429: BusyError,
    499: CancelledError,
    500: EngineError,
    502: WorkerLostError,
    503: UnavailableError,
    504: DeadlineError,
}


def request_error(
    kind: ErrorKind, text: str, *, request_id: str = "", retry_after_s: float = 0.0, resume_n: int = 0
) -> RequestError:
    """Build the exception class that fits the kind."""
    made = _CLASS_OF_CODE[TABLE[kind].code]
    return made(kind, text, request_id=request_id, retry_after_s=retry_after_s, resume_n=resume_n)
