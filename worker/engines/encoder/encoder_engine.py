"""Computes batches of rows with one encoder; what rows are of, and what becomes of the numbers, its task knows."""

from __future__ import annotations

import logging
from typing import Any, cast

import torch

from ..adapters import describe
from ..base import Capacity, EngineFatalError, Item, ItemResult, RequestRefusedError, Row, TaskName
from .encoder_loader import LoadedEncoder
from .encoder_tasks import EncoderTask
from .text_rows import InputTooLongError

log = logging.getLogger(__name__)


class EncoderEngine:
    """A RowEngine over an encoder."""

    def __init__(
        self, loaded: LoadedEncoder, work: EncoderTask, *, model: str, revision: str, slots: int, batch_tokens: int
    ) -> None:
        self.task: TaskName = work.name
        self.revision = revision
        self.batch_tokens = batch_tokens
        self._loaded = loaded
        self._work = work
        self._model = model
        self._slots = slots

    def divide(self, item: Item) -> list[Row] | ItemResult:
        """Cut the texts of an item into tokens."""
        try:
            return self._work.divide(item.task)
        except InputTooLongError as error:
            return ItemResult(ticket=item.ticket, error=str(error), refused="context_length_exceeded")
        except RequestRefusedError as error:
            return ItemResult(ticket=item.ticket, error=str(error), refused="bad_request")

    def run(self, rows: list[Row]) -> list[bytes | Exception]:
        """Compute them side by side. A device that fails for another reason than memory is broken for good."""
        try:
            numbers = self._loaded.forward(rows)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise
        except RuntimeError as error:
            if self._loaded.device == "cpu":
                raise
            raise EngineFatalError(describe(error)) from error
        finite = cast("Any", numbers.isfinite().all(1))
        return [
            row.numpy().tobytes() if good else ValueError("the model computed numbers for it that are not finite")
            for row, good in zip(numbers, finite.tolist(), strict=True)
        ]

    def unite(self, item: Item, rows: list[Row], numbers: list[bytes]) -> dict[str, Any]:
        """Let the task make its body, and say of what and by whom it is."""
        tokens = sum(len(row.token_ids) for row in rows)
        return self._work.unite(item.task, numbers) | {
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0},
            "model": self._model,
            "revision": self.revision,
        }

    def capacity(self) -> Capacity:
        """Tell how many items wait and run at once, and how long a text may be."""
        vocabulary = self._loaded.vocabulary if self.task == "embed" else 0  # the other tasks have no ids as input
        return Capacity(slots=self._slots, context=self._loaded.context, vocabulary=vocabulary)

    def close(self) -> None:
        """Nothing to free: the process ends."""
