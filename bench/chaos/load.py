"""The load: so many streams and unary requests at a time, from several clients, each answer handed to the judge."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Sequence
from typing import Final, Self

from zmqrt.client.aio import AsyncClient
from zmqrt.protocol.errors import RequestError, ZmqrtError
from zmqrt.protocol.limits import MAX_OUTSTANDING_BRIDGE

from .judge import Judge
from .plan import ChaosPlan
from .prompts import DrawPrompt

_AFTER_ERROR_S: Final = 0.2
"""A fleet that refuses everything is not asked as fast as it can refuse."""
_LOOK_S: Final = 0.05


class Load:
    """Asks in a thread of its own from `start` until `stop`; leaving the `with` block drops what is still open."""

    def __init__(self, endpoints: Sequence[str], draw: DrawPrompt, judge: Judge, plan: ChaosPlan) -> None:
        self._endpoints = list(endpoints)
        self._draw = draw
        self._judge = judge
        self._plan = plan
        self._begun = 0.0
        self._is_stopping = False
        self._is_dropped = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="load", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping = self._is_dropped = True
        if self._thread.ident is not None:
            self._thread.join(10.0)

    def start(self, begun: float) -> None:
        """Begin to ask. The judge gets times in seconds since `begun`, on the monotonic clock."""
        self._begun = begun
        self._thread.start()

    def stop(self) -> None:
        """Ask nothing more; what is open goes on."""
        self._is_stopping = True

    @property
    def has_ended(self) -> bool:
        """Whether every request has had its end. Raises what went wrong in the load itself."""
        if self._failure is not None:
            raise self._failure
        return self._thread.ident is not None and not self._thread.is_alive()

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody looks
            self._failure = error

    async def _run(self) -> None:
        plan = self._plan
        async with contextlib.AsyncExitStack() as stack:
            clients: list[AsyncClient] = []
            for number in range(plan.clients):
                # Every other client begins with the other broker, so that each of them has work to lose.
                first = number % len(self._endpoints)
                order = self._endpoints[first:] + self._endpoints[:first]
                client = AsyncClient(
                    order,
                    keys=plan.keys,
                    insecure=plan.insecure,
                    timeout_s=plan.timeout_s,
                    max_outstanding=MAX_OUTSTANDING_BRIDGE,
                    name=f"chaos-{number}",
                )
                clients.append(await stack.enter_async_context(client))
            slots = [
                asyncio.create_task(self._keep_asking(clients[number % len(clients)], number))
                for number in range(plan.streams + plan.unary)
            ]
            pending = set(slots)
            while pending and not self._is_dropped:
                done, pending = await asyncio.wait(pending, timeout=_LOOK_S)
                for slot in done:
                    slot.result()
            for slot in pending:
                slot.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            self._judge.give_up(self._now_s())

    async def _keep_asking(self, client: AsyncClient, number: int) -> None:
        rng = random.Random(f"{self._plan.seed}/{number}")
        is_stream = number < self._plan.streams
        while not self._is_stopping:
            if not await self._ask(client, rng, is_stream=is_stream):
                await asyncio.sleep(_AFTER_ERROR_S)

    async def _ask(self, client: AsyncClient, rng: random.Random, *, is_stream: bool) -> bool:
        prompt, judge = self._draw(rng, is_stream), self._judge
        request = judge.ask(prompt.right_ids, prompt.right_text, is_stream=is_stream, now_s=self._now_s())
        try:
            handle = client.submit(prompt.prompt, stream=is_stream, **prompt.options)
            if is_stream:
                async for chunk in handle:
                    judge.units(request, chunk.index, chunk.token_ids, self._now_s())
            result = await handle.result()
        except ZmqrtError as error:
            kind = error.kind.value if isinstance(error, RequestError) else type(error).__name__
            judge.fail(request, kind, str(error))
            return False
        judge.end(request, result.token_ids, result.text)
        return True

    def _now_s(self) -> float:
        return time.monotonic() - self._begun
