"""What a broker says to ADMIN: the body of STATUS in the schema "admin". Both ends must agree on it, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from .errors import ErrorKind, RequestError, request_error

SCHEMA: Final = "admin"
SCHEMA_VERSION: Final = 1


class AdminOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Whether it was done, in words, and why not.

    Attributes:
        reason: A value of `ErrorKind` where it was not done: forbidden, bad_request, model_not_found (no such node).
        deadline_s: When it is over at the latest; 0 = it is over now.
    """

    is_done: bool
    text: str
    reason: str = ""
    deadline_s: float = 0.0

    def error(self) -> RequestError | None:
        """Return what to raise where it was not done."""
        if self.is_done:
            return None
        try:
            kind = ErrorKind(self.reason)
        except ValueError:
            kind = ErrorKind.BAD_REQUEST
        return request_error(kind, self.text)


encode: Final[Callable[[AdminOutcome], bytes]] = msgspec.msgpack.Encoder().encode
decode: Final[Callable[[bytes], AdminOutcome]] = msgspec.msgpack.Decoder(AdminOutcome).decode
"""The body of a STATUS. `decode` raises msgspec.DecodeError."""
