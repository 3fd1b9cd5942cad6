"""Load that goes on while a test does something to the fleet: each answer is known, and none may be wrong."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Final, Self

from support.stack import eventually
from support.streams import Expected
from zmqrt.client import AsyncClient

_AT_ONCE: Final = 6
_TOKENS: Final = 40


class Load:
    """Streams and unary requests from several clients, over and over, while in the `with` block."""

    def __init__(self, brokers: str, *, clients: int = 3) -> None:
        self.errors: list[str] = []
        self.answered = 0
        self._brokers = brokers
        self._clients = clients
        self._seed = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def wait_for_more(self, count: int = 12) -> None:
        """Wait until so many more answers have come, or something is wrong."""
        least = self.answered + count
        eventually(lambda: self.answered >= least or bool(self.errors), what="answers")

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._clients)))

    async def _client(self) -> None:
        async with AsyncClient(self._brokers, timeout_s=60) as client:
            await asyncio.gather(*(self._ask(client, is_stream=bool(n % 3)) for n in range(_AT_ONCE)))

    async def _ask(self, client: AsyncClient, *, is_stream: bool) -> None:
        while not self._is_over.is_set():
            self._seed += 1
            one = Expected(self._seed, _TOKENS, is_stream=is_stream)
            try:
                handle = client.submit(one.prompt, stream=is_stream, **one.options())
                ids: list[int] = []
                while is_stream and (chunk := await handle.next_chunk()) is not None:
                    assert chunk.index == len(ids), "a gap or a repeat"
                    ids += chunk.token_ids
                result = await handle.result()
                assert (result.token_ids, result.text) == (one.ids, one.text), "another answer"
                assert not is_stream or ids == one.ids
            except Exception as error:  # noqa: BLE001 - whatever it is, the test lists it
                self.errors.append(f"{one}: {type(error).__name__}: {error}")
            else:
                self.answered += 1
