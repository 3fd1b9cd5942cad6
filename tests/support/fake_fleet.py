"""A fleet that answers as it is told: for tests of what the bridge makes of answers, not of answering."""

import asyncio
from array import array
from collections.abc import Sequence
from typing import Any, Unpack

from support.snapshots import EMPTY
from zmqrt.client.calls import CallOptions
from zmqrt.client.response import Chunk, Embeddings, Result
from zmqrt.client.scoring import Classification, Ranking
from zmqrt.protocol.errors import ErrorKind, ZmqrtError, request_error
from zmqrt.protocol.snapshot import Snapshot
from zmqrt.protocol.tasks import Classify, Embed, Rerank, Usage


class FakeHandle:
    """One request: pieces of text, then the end; waits for `gate` first."""

    def __init__(self, pieces: Sequence[str], error: Exception | None, gate: asyncio.Event) -> None:
        self._pieces = list(pieces)
        self._text = "".join(pieces)
        self._error = error
        self._gate = gate
        self._index = 0
        self.given_up = asyncio.Event()
        self.is_done = False
        self.was_cancelled = False

    def cancel(self) -> None:
        """Remember that it was given up before its end."""
        self.was_cancelled = self.was_cancelled or not self.is_done
        self.given_up.set()

    def done(self) -> bool:
        """Say whether its end has been read."""
        return self.is_done

    async def result(self) -> Any:
        """End as told, or given up."""
        ends = [asyncio.ensure_future(event.wait()) for event in (self._gate, self.given_up)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        self.is_done = True
        if not self._gate.is_set():
            raise request_error(ErrorKind.CANCELLED, "cancelled here")
        if self._error is not None:
            raise self._error
        usage = Usage(prompt_tokens=1, completion_tokens=len(self._text))
        return Result(
            text=self._text,
            token_ids=[],
            finish_reason="stop",
            usage=usage,
            seed=0,
            model="m",
            revision="r",
            request_id="",
        )

    async def next_chunks(self) -> list[Chunk]:
        """Give one piece after the other, one token each."""
        if not self._pieces:
            await self.result()
            return []
        self._index += 1
        piece = self._pieces.pop(0)
        return [Chunk(text=piece, token_ids=[self._index], index=self._index - 1, pieces=[piece])]


class FakeWhole(FakeHandle):
    """An answer that comes whole: one vector, falling scores, two classes, whatever was asked."""

    def __init__(self, task: Embed | Rerank | Classify, error: Exception | None, gate: asyncio.Event) -> None:
        super().__init__((), error, gate)
        self._task = task

    async def result(self) -> Any:
        """End as told."""
        await super().result()
        said: Any = {
            "usage": Usage(prompt_tokens=1, completion_tokens=0),
            "model": "m",
            "revision": "r",
            "request_id": "",
        }
        match self._task:
            case Embed():
                return Embeddings(vectors=[array("f", [1.0])], **said)
            case Rerank(documents=documents):
                return Ranking(scores=[1 / (2 + at) for at in range(len(documents))][::-1], **said)
            case Classify(input=given):
                count = 1 if isinstance(given, str) else len(given)
                return Classification(labels=["bad", "good"], probabilities=[[0.25, 0.75]] * count, **said)


class FakeFleet:
    """Keeps what was asked, and hands out one handle for each request."""

    def __init__(
        self,
        *pieces: str,
        error: Exception | None = None,
        refuse: Exception | None = None,
        snapshot: Snapshot | ZmqrtError = EMPTY,
    ) -> None:
        self.pieces = pieces
        self.error = error
        self.refuse = refuse
        self.snapshot = snapshot
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[tuple[Any, bool, dict[str, Any]]] = []
        self.handles: list[FakeHandle] = []
        self.was_asked = asyncio.Event()
        self.status_calls = 0

    def submit_task(
        self, task: Any, *, stream: bool = False, rid: bytes | None = None, **options: Unpack[CallOptions]
    ) -> Any:
        """Take a request."""
        if self.refuse is not None:
            raise self.refuse
        self.asked.append((task, stream, {"rid": rid, **options}))
        if isinstance(task, Embed | Rerank | Classify):
            self.handles.append(FakeWhole(task, self.error, self.gate))
        else:
            self.handles.append(FakeHandle(self.pieces, self.error, self.gate))
        self.was_asked.set()
        return self.handles[-1]

    async def status(self) -> Snapshot:
        """Tell the state that was set."""
        self.status_calls += 1
        if isinstance(self.snapshot, ZmqrtError):
            raise self.snapshot
        return self.snapshot
