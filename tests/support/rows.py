"""Run tasks on a row engine through its adapter, as the loop of an engine process does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zmqrt.worker.engines.adapters import Outbox
from zmqrt.worker.engines.base import Item, ItemResult, RowEngine
from zmqrt.worker.engines.batcher import Batcher, within_a_quarter
from zmqrt.worker.engines.ipc import SubmitTask
from zmqrt.worker.engines.row_adapter import RowAdapter

Vectors = npt.NDArray[np.float32]


def adapter_of(engine: RowEngine, out: Outbox, *, max_size: int = 8) -> RowAdapter:
    """Put an adapter around an engine, as `process.make_adapter` does."""
    batcher = Batcher(max_size=max_size, max_latency_s=0.05, max_tokens=engine.batch_tokens, pad=within_a_quarter)
    return RowAdapter(engine, out, batcher)


def outcomes(engine: RowEngine, tasks: Sequence[dict[str, Any]], *, max_size: int = 8) -> dict[int, ItemResult]:
    """Run tasks, as many beside each other as the engine holds; return their results by number."""
    out = Outbox()
    adapter = adapter_of(engine, out, max_size=max_size)
    sent = 0
    while sent < len(tasks) or adapter.is_busy:
        while sent < len(tasks) and sent - len(out.results) < engine.capacity().slots:
            adapter.submit(SubmitTask("", sent, tasks[sent], 10))
            sent += 1
        adapter.advance(0.0)
    assert not out.messages, f"{len(out.messages)} were refused"
    return {result.ticket: result for result in out.results}


def outcome(engine: RowEngine, task: dict[str, Any]) -> ItemResult:
    """Run one task."""
    return outcomes(engine, [task])[0]


def embed(given: object, **fields: object) -> dict[str, Any]:
    """Make the body of an embedding."""
    return {"task": "embed", "input": given, **fields}


def embed_item(given: object) -> Item:
    """Make an item of it."""
    return Item(ticket=1, task=embed(given), length=10)


def vectors_of(engine: RowEngine, given: object, **fields: object) -> Vectors:
    """Embed; return the vectors, a row for each input."""
    result = outcome(engine, embed(given, **fields))
    assert result.body is not None, result
    return read_vectors(result.body)


def read_vectors(body: dict[str, Any]) -> Vectors:
    """Read the vectors of a FINAL body."""
    tensor = body["vectors"]
    return np.frombuffer(tensor["data"], dtype="<f4").reshape(tensor["shape"])
