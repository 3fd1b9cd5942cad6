"""transformers' continuous batching, driven one step at a time from the caller's thread: the seam to its internals.

transformers 5.17 runs this loop in a thread of its own and hands results out through queues and callbacks. We run
the loop's body ourselves (`prepare_next_batch`, `_generation_step`, `update_batch`), for the thread only brings harm:
it keeps a process alive that wants to end, it dies silently of one bad step, its streaming copies the whole output of
every request at every token, and a cancelled request gets no last event. Nothing here knows of tickets, stop ids or
sampling: requests have keys, and `choose` sets the scores that the argmax is taken of.

Traps of 5.17 that this module keeps away from its callers:

- asynchronous batching may die with a KeyError when a request is cancelled at a block's border: off;
- prefix sharing replaces blocks under a running request, and makes prefill depend on what ran before: off;
- after a preemption no new request is admitted until one *finishes*; if the rest are cancelled instead, it stands still
  for ever: `end` lifts the block;
- the pool is sized from free memory by a guess: we pass every size. (The check of that guess needs psutil.)

The version is pinned (`>=5.17,<5.18`); tests/integration/test_transformers_cb.py is the contract.
"""

from __future__ import annotations

import importlib
import logging
import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

_LOGGER_NAME: Final = "ContinuousBatchingLogger"
Choose = Callable[["torch.Tensor", Sequence[str]], None]
"""Changes logits [rows, vocabulary] in place so that each row's argmax is the next token of the request of that key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """How much one engine holds: `blocks` of `block_tokens` each, and `chunk_tokens` at most in one step."""

    slots: int
    block_tokens: int
    blocks: int
    chunk_tokens: int

    def blocks_for(self, tokens: int) -> int:
        """Return how many blocks a sequence may take; its allocator rounds up to two blocks more than needed."""
        return -(-tokens // self.block_tokens) + 2

    @property
    def tokens(self) -> int:
        """Tokens of one sequence that is alone in the pool."""
        return (self.blocks - 2) * self.block_tokens


class StalledError(Exception):
    """Requests are waiting and nothing runs: it would stay so for ever."""


class ContinuousBatch:
    """A running batch: add and end requests at any time, and step."""

    def __init__(self, model: Any, pool: Pool, choose: Choose) -> None:  # noqa: ANN401 - transformers is badly typed
        transformers = untyped("transformers")
        _quieten()
        manager = model.init_continuous_batching(
            # An id of -1 never comes up: where a request ends is decided by its owner alone.
            generation_config=transformers.GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                block_size=pool.block_tokens,
                num_blocks=pool.blocks,
                max_batch_tokens=pool.chunk_tokens,
                max_requests_per_batch=pool.slots,
                allow_block_sharing=False,
                use_async_batching=False,
                use_cuda_graph=False,
            ),
        )
        _install(manager.logit_processor, choose)
        self._model: Any = model
        self._manager: Any = manager
        self._processor: Any = manager._create_batch_processor()  # noqa: SLF001 - see the module's docstring
        self._total_blocks = pool.blocks

    def add(self, key: str, ids: Sequence[int]) -> None:
        """Take a request in; `ids` is everything before its first new token. Keys are never used twice."""
        self._manager.add_request(list(ids), request_id=key, max_new_tokens=2**31 - 1)

    def end(self, key: str) -> None:
        """Drop a request, wherever it is; the next step has its blocks free."""
        self._manager.cancel_request(key)
        self._processor.scheduler.block_new_requests = False

    def step(self, *, is_anyone_live: bool) -> list[tuple[str, int]] | None:
        """Run one step and return (key, token) of those that got one (in a step of prefill alone, nobody).

        With nobody to run, only free what ended requests held, and return None.
        Raises whatever the model raises, and StalledError. After either the batch is of no more use.
        """
        import torch

        with torch.no_grad():
            if not self._processor.prepare_next_batch():
                self._raise_failures()
                if is_anyone_live:
                    raise StalledError("requests are waiting, but the scheduler runs none of them")
                return None
            self._processor._generation_step(self._model)  # noqa: SLF001 - see the module's docstring
            self._processor.update_batch()
        self._raise_failures()
        batch = self._processor.inputs_and_outputs.requests_in_batch
        return [(one.state.request_id, one.state.generated_tokens[-1]) for one in batch if one.has_new_token]

    def _raise_failures(self) -> None:
        """Raise what transformers hands out as a result: a request that it could not even schedule."""
        results: queue.Queue[Any] = self._manager.output_router.output_queue
        while not results.empty():
            result = results.get_nowait()
            if result.error is not None:
                raise RuntimeError(str(result.error))

    @property
    def running(self) -> int:
        """Requests that hold blocks."""
        return len(self._processor.scheduler.active_requests)

    def holds_blocks(self, key: str) -> bool:
        """Tell whether a request is running, rather than waiting or put back."""
        return key in self._processor.scheduler.active_requests

    @property
    def used_percent(self) -> int:
        """Share of the pool in use."""
        free: int = self._processor.cache.get_num_free_blocks()
        return round(100 * (self._total_blocks - free) / self._total_blocks)

    def close(self) -> None:
        """Let go of the pool; there is no thread to wait for."""
        self._processor = None
        self._manager = None
        self._model = None


def untyped(module: str) -> Any:  # noqa: ANN401 - this is the one door to what has no usable types
    """Import a module whose annotations no type checker can follow."""
    return importlib.import_module(module)


def _quieten() -> None:
    """Send this module's warnings to our log, and only those that an operator can act on."""
    untyped("transformers.generation.continuous_batching")  # adds a handler of its own when first imported
    logger = logging.getLogger(_LOGGER_NAME)
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.ERROR)


class _Hook:
    """Learns at the preparation of a step whose rows it will see, then lets `choose` set the scores."""

    supported_kwargs: Mapping[str, type] = {}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._keys: list[str] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Fill our line of the arguments, of which we use none."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
        """Remember who gets a token; the rows come in this order."""
        import torch

        self._keys = [request.state.request_id for request in requests_with_new_token]
        return torch.zeros(len(self._keys), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Set the scores. Rows beyond ours belong to prefill that goes on: nobody looks at their argmax."""
        if self._keys:
            self._choose(scores[: len(self._keys)], self._keys)
        return scores


def _install(processors: Any, choose: Choose) -> None:  # noqa: ANN401 - transformers is badly typed
    """Put our choice in the place of transformers' own processors (temperature, top-k … for all requests alike)."""
    base = untyped("transformers.generation.continuous_batching.cb_logits_processors")
    base.ContinuousBatchingLogitsProcessor.register(_Hook)
    processors.clear()
    processors.logits_processor.append(_Hook(choose))
    processors.tensors_required = 1
    processors.do_processing = True
