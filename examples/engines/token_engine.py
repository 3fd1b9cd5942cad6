"""A model that makes tokens, for many requests at once: each poll is one step of the whole batch.

zmqrt-worker --engine token_engine:factory          (with this folder on PYTHONPATH)

zmqrt owns text, stop strings and limits of length; an engine sees ids alone. Without --model, an id is a byte.
"""

import time

from zmqrt.worker.engines.base import Capacity, EngineSpec, EngineStats, Progress, TokenEvent, TokenRequest


class Backwards:
    """Says the prompt backwards, one token a step."""

    def __init__(self) -> None:
        self._left: dict[int, list[int]] = {}
        self._steps = 0

    def submit(self, request: TokenRequest) -> None:
        """Take a request; `resume_ids` were said before, by another node."""
        said = len(request.resume_ids)
        answer = request.prompt_ids[::-1][: request.max_new_tokens]
        self._left[request.ticket] = answer[said:]

    def cancel(self, ticket: int) -> None:
        """Say nothing more of it than that it has ended."""
        if ticket in self._left:
            self._left[ticket] = []

    def poll(self, timeout_s: float) -> list[TokenEvent]:
        """Make one step: a token for each request, or its end."""
        if not self._left:
            time.sleep(min(timeout_s, 0.001))
        self._steps += bool(self._left)
        return [self._step(ticket) for ticket in list(self._left)]

    def _step(self, ticket: int) -> TokenEvent:
        left = self._left[ticket]
        if left:
            return TokenEvent(ticket=ticket, token_ids=[left.pop(0)])
        del self._left[ticket]
        return TokenEvent(ticket=ticket, finish_reason="stop")

    def capacity(self) -> Capacity:
        """Sixteen beside each other, each of at most 1,000 tokens."""
        return Capacity(slots=16, context=1000)

    def stats(self) -> EngineStats:
        """Tell how busy it is."""
        return EngineStats(running=len(self._left), steps=self._steps)

    def close(self) -> None:
        """Nothing to free."""


def factory(spec: EngineSpec, progress: Progress) -> Backwards:
    """Build one for each device; a model would be loaded here, and `progress("loading", 40.0)` tells how far it is."""
    return Backwards()
