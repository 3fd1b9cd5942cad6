"""Before an engine serves: does it say what transformers' own code says of the same weights?

Two tokens are enough to go through a prompt, a decode step, whatever is recorded for it, and the sampler. A model that
is a little unlike its family, a kernel that is wrong on this device: found while loading, not by users.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from ..base import EngineFatalError, SamplingParams, TokenEngine, TokenEvent, TokenRequest
from ..oom import explain
from .loaded_check import check_logits

_PROMPT_TOKENS: Final = 24
_LIKELIEST: Final = 20
_TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Log probabilities may differ so much, by the largest logit of their row: a type rounds by a share of a number, and a
model whose logits are ten times as large is off by ten times as much. SmolLM2-135M on a CPU, whose 30 layers round in
another order when they are fused, is off by 7e-7, 1e-3 and 5e-3; what is wrong is off by a tenth or more."""


class SelfTestError(Exception):
    """The engine does not compute what it should."""


class Reference:
    """What transformers computes; made before an engine takes the weights."""

    @torch.inference_mode()
    def __init__(self, model: Any, where: str) -> None:  # noqa: ANN401 - transformers' models are untyped
        """Run the model once or twice. Raises CannotLoadError if nothing that makes sense comes out of it."""
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._prompt = [(number * 7919 + 11) % vocabulary for number in range(_PROMPT_TOKENS)]
        self._likeliest = min(_LIKELIEST, vocabulary)
        self._ids: list[int] = []
        self._logprobs: list[torch.Tensor] = []
        self._allowed: list[float] = []
        for _ in range(2):
            ids = torch.tensor([[*self._prompt, *self._ids]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, -1]
            check_logits(logits, where)
            logprobs = logits.float().log_softmax(dim=-1).cpu()
            self._logprobs.append(logprobs)
            self._allowed.append(_TOLERANCE[model.dtype] * float(logits.abs().max()))
            self._ids.append(int(logprobs.argmax()))

    def check(self, engine: TokenEngine) -> None:
        """Let the engine draw the same tokens. Raises SelfTestError if it is far off, or fails."""
        try:
            events = _run(engine, self._prompt, self._likeliest)
        except EngineFatalError as error:
            if explain(error, "") is not None:
                raise
            raise SelfTestError(f"the self-test failed: {str(error)[:200]}") from error
        reports = [report for event in events for report in event.logprobs or ()]
        drawn = [token for event in events for token in event.token_ids]
        if len(reports) < 2:
            raise SelfTestError(f"the self-test ended early: {events[-1].error or events[-1].finish_reason}")
        for at, (right, report) in enumerate(zip(self._logprobs, reports, strict=True)):
            worst = max(abs(float(right[token]) - value) for token, value in report.items())
            if not worst <= self._allowed[at]:
                allowed = f"where {self._allowed[at]:.2g} is allowed"
                raise SelfTestError(f"the self-test is off by {worst:.3g} at token {at} of 2, {allowed}")
            if drawn[at] != self._ids[at]:
                return  # two tokens were as likely as each other, and from here on the texts differ


def _run(engine: TokenEngine, prompt: list[int], likeliest: int) -> list[TokenEvent]:
    sampling = SamplingParams(temperature=0.0, logprobs=likeliest)
    engine.submit(TokenRequest(ticket=0, prompt_ids=prompt, max_new_tokens=2, ignore_eos=True, sampling=sampling))
    events: list[TokenEvent] = []
    while not events or events[-1].finish_reason is None:
        events += engine.poll(0.1)
    return events
