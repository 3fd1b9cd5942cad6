"""How far an engine may be off before it is not believed: by a share of the numbers, as their type rounds."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.no_waiting import no_waiting
from zmqrt.worker.engines.base import TokenEvent
from zmqrt.worker.engines.generate.self_test import Reference, SelfTestError

pytestmark = pytest.mark.integration
VOCABULARY = 50


class Model:
    """Says the same of every text; `largest` is its largest logit."""

    def __init__(self, dtype: torch.dtype, largest: float) -> None:
        self.dtype = dtype
        self.device = "cpu"
        self.logits = torch.linspace(0.0, largest, VOCABULARY)

    def get_input_embeddings(self) -> Any:
        """Have as many ids as logits."""
        return SimpleNamespace(weight=torch.zeros(VOCABULARY, 1))

    def __call__(self, **_: Any) -> Any:
        """Say it."""
        return SimpleNamespace(logits=self.logits.view(1, 1, -1))


class Engine:
    """Says what the model does, off by something at one token."""

    def __init__(self, model: Model, off: float) -> None:
        self._logprobs = model.logits.log_softmax(dim=-1)
        self._off = off

    def submit(self, request: Any) -> None:
        """Take it."""

    def poll(self, timeout_s: float) -> list[TokenEvent]:
        """Draw both tokens at once."""
        report = {token: float(self._logprobs[token]) for token in range(VOCABULARY)}
        report[3] += self._off
        return [
            TokenEvent(
                ticket=0,
                token_ids=[VOCABULARY - 1] * 2,
                logprobs=[report, report],
                finish_reason="length",
            )
        ]


@pytest.mark.parametrize("largest", [0.5, 8.0, 120.0])
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 2e-2)])
def test_the_larger_the_logits_the_more_they_may_be_off(dtype: torch.dtype, share: float, largest: float) -> None:
    """A model of small numbers is not let off, and one of large ones not refused for how its type rounds."""
    model = Model(dtype, largest)
    reference = Reference(model, "a model")
    allowed = share * largest

    reference.check(Engine(model, 0.9 * allowed))  # type: ignore[arg-type]
    with pytest.raises(SelfTestError, match=r"off by .* at token 0 of 2, where .* is allowed"):
        reference.check(Engine(model, 1.2 * allowed + 1e-5))  # type: ignore[arg-type]


def test_a_mode_that_warns_breaks_nothing_and_does_not_stay_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch warns at each change of it, and here warnings are errors."""
    modes: list[str] = []

    def change(mode: str) -> None:
        warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=1)
        modes.append(mode)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", change)
    with pytest.raises(ValueError, match="inside"), no_waiting():
        raise ValueError("inside")

    assert modes == ["error", "default"]
