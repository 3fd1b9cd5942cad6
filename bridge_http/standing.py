"""What becomes known of one HTTP request on its way: what is left of its limits, which model answers, how many tokens.

It goes along with the request, for the head of its answer and for its line in the audit log.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from starlette.types import Message, Send

from .ledger import Left, Settlement, Verdict

_MINUTE: Final = 60


class Standing:
    """The standing of one request."""

    __slots__ = ("completion_tokens", "model", "prompt_tokens", "verdict")

    def __init__(self) -> None:
        self.verdict: Verdict | None = None
        self.model = ""
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def judge(self, verdict: Verdict) -> None:
        """Note what was decided on it."""
        self.verdict = verdict

    def add(self, ended: Settlement) -> None:
        """Note what an answer to it took."""
        self.model = ended.model or self.model
        self.prompt_tokens += ended.prompt_tokens
        self.completion_tokens += ended.completion_tokens

    def headers(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what is left of a minute, as OpenAI tells it."""
        if self.verdict is not None:
            for name, left in ((b"requests", self.verdict.requests), (b"tokens", self.verdict.tokens)):
                if left is not None:
                    yield from _headers(name, left)

    def signing(self, send: Send) -> Send:
        """Return a `send` that adds these headers to the head of an answer."""

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers()]
            await send(message)

        return signed


def _headers(name: bytes, left: Left) -> Iterator[tuple[bytes, bytes]]:
    yield b"x-ratelimit-limit-" + name, b"%d" % left.limit
    yield b"x-ratelimit-remaining-" + name, b"%d" % left.left
    yield b"x-ratelimit-reset-" + name, _duration(left.reset_s).encode()


def _duration(seconds: float) -> str:
    """Write a time as OpenAI does: 6m0s, 1s, 20ms."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), _MINUTE)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
