"""What becomes of streams whose engine is killed on this device: how many go on exactly as they would have.

An engine in a process of its own answers so many streams undisturbed, then the same ones again, and gets `kill -9` half
way; a second process goes on with what had been delivered. A stream is bit-exact if its tokens are those of the first
answer. In 16 bits roundings differ with the size of a batch, so some choose another token of two about equally likely;
with `deterministic` none may. Whole nodes do the same over the network; here it is the engines' part of it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

import msgspec
from decode_steps import RandomModel, TooSlowError, use

from zmqrt.worker.engines.base import SamplingParams, TokenRequest
from zmqrt.worker.engines.generate.schedule import SchedulerLimits

_PROMPTS: Final = (16, 64)
_CHUNK: Final = 64
_END_S: Final = 5.0
Tokens = dict[int, list[int]]
"""What each stream has got, by its ticket."""


def serve(pipe: Connection, shape: str, device: str, context: int) -> None:
    """Answer requests over a pipe, until it ends: a list of them in, tokens as they are drawn out, then None."""
    use(device)
    model = RandomModel(shape, device, context)
    pipe.send(None)
    while True:
        try:
            is_deterministic, slots, encoded = pipe.recv()
        except EOFError:
            return
        requests = msgspec.msgpack.decode(encoded, type=list[TokenRequest])
        limits = SchedulerLimits(
            slots=slots,
            context=context,
            chunk_tokens=_CHUNK,
            depth=2,
            may_reuse=False,  # or what the first answer has left in the pool would make the second one exact
            is_deterministic=is_deterministic,
        )
        with model.running(limits) as running:
            for request in requests:
                running.engine.submit(request)
            left = len(requests)
            while left:
                events = running.engine.poll(0.1)
                pipe.send([(event.ticket, event.token_ids) for event in events])
                left -= sum(event.finish_reason is not None for event in events)
        pipe.send(None)


class EngineProcess:
    """An engine that may be killed."""

    def __init__(self, shape: str, device: str, context: int) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=serve, args=(theirs, shape, device, context), daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self, limit_s: float) -> None:
        """Wait for its model."""
        self._receive(time.monotonic() + limit_s)

    def answer(
        self,
        requests: Sequence[TokenRequest],
        *,
        slots: int,
        is_deterministic: bool,
        limit_s: float,
        kill_after: int | None = None,
    ) -> Tokens:
        """Return what it draws; it is killed once there are more than so many tokens."""
        self._pipe.send((is_deterministic, slots, msgspec.msgpack.encode(list(requests))))
        got: Tokens = {request.ticket: [] for request in requests}
        give_up_at = time.monotonic() + limit_s
        try:
            while (news := self._receive(give_up_at)) is not None:
                for ticket, token_ids in news:
                    got[ticket] += token_ids
                if kill_after is not None and sum(map(len, got.values())) > kill_after:
                    self._process.kill()  # and whatever it has still sent is read
        except (EOFError, OSError):
            if kill_after is None:
                raise
        return got

    def end(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.join(_END_S)
        self._pipe.close()

    def _receive(self, give_up_at: float) -> Any:  # noqa: ANN401 - what `serve` sends
        if not self._pipe.poll(max(0.0, give_up_at - time.monotonic())):
            raise TooSlowError("the engine's process did not come so far in time")
        return self._pipe.recv()


def make_requests(streams: int, tokens: int) -> list[TokenRequest]:
    """Make streams of different lengths; every other one is greedy."""
    low, high = _PROMPTS
    return [
        TokenRequest(
            ticket=ticket,
            prompt_ids=[(ticket * 131 + at * 37 + 11) % 499 for at in range(low + ticket * 7 % (high - low))],
            max_new_tokens=tokens,
            ignore_eos=True,
            sampling=SamplingParams(temperature=float(ticket % 2), seed=ticket),
        )
        for ticket in range(streams)
    ]


def measure(shape: str, device: str, *, streams: int, tokens: int, limit_s: float) -> Iterator[tuple[str, Any]]:
    """Yield how many streams went on bit-exact, as numbers may round and with `deterministic`."""
    requests = make_requests(streams, tokens)
    context = _PROMPTS[1] + tokens
    engines = [EngineProcess(shape, device, context) for _ in range(3)]  # each loads while the one before it works
    try:
        for engine in engines:
            engine.wait_until_ready(limit_s)
        for number, is_deterministic in enumerate((False, True)):
            first, second = engines[number : number + 2]
            order: dict[str, Any] = {"slots": streams, "is_deterministic": is_deterministic, "limit_s": limit_s}
            whole = first.answer(requests, **order)
            delivered = first.answer(requests, **order, kill_after=streams * tokens // 2)
            rest = [
                msgspec.structs.replace(request, resume_ids=delivered[request.ticket])
                for request in requests
                if len(delivered[request.ticket]) < tokens
            ]
            resumed = second.answer(rest, **order)
            cut = {ticket: delivered[ticket] + token_ids for ticket, token_ids in resumed.items()}
            yield ("deterministic" if is_deterministic else "as it is"), judge(requests, whole, delivered, cut)
    finally:
        for engine in engines:
            engine.end()


def judge(requests: Sequence[TokenRequest], whole: Tokens, delivered: Tokens, cut: Tokens) -> dict[str, Any]:
    """Count the streams that were cut off and went on as they would have."""
    exact = [request for request in requests if cut.get(request.ticket) == whole[request.ticket]]
    before = sum(delivered[ticket] == whole[ticket][: len(delivered[ticket])] for ticket in cut)
    return {
        "streams": len(requests),
        "cut": len(cut),
        "exact_until_the_kill": before,
        "exact": len(exact),
        "exact_greedy": sum(request.sampling.temperature == 0 for request in exact),
        "exact_sampled": sum(request.sampling.temperature > 0 for request in exact),
        "whole_length": sum(len(cut[ticket]) == len(whole[ticket]) for ticket in cut),
        "tokens_before": sum(map(len, delivered.values())),
    }
