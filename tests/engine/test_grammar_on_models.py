"""Grammars over a model's own tokens: both runners draw the same under them, and answers go on the same elsewhere."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from support.engines import describe, run, tokens_of
from support.tiny import silent, tiny_model
from zmqrt.protocol.tasks import Grammar
from zmqrt.worker.engines.base import SamplingParams, TokenRequest
from zmqrt.worker.engines.generate.device_runner import DeviceRunner
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.engines.generate.flash import plain
from zmqrt.worker.engines.generate.hf_loader import untyped
from zmqrt.worker.engines.generate.llama import LlamaDecoder
from zmqrt.worker.engines.generate.schedule import SchedulerLimits
from zmqrt.worker.engines.generate.torch_runner import TorchRunner
from zmqrt.worker.engines.grammar import Grammars
from zmqrt.worker.grammar_check import compile_grammar
from zmqrt.worker.tokenizer import load_tokenizer

pytestmark = pytest.mark.integration
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "hot": {"type": "boolean"}, "n": {"type": "integer"}},
    "required": ["city", "hot", "n"],
    "additionalProperties": False,
}
GRAMMAR = compile_grammar(Grammar(kind="json_schema", text=json.dumps(SCHEMA)))
KINDS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=3),
    SamplingParams(temperature=0.8, seed=4, top_k=9, logit_bias={40: 5.0, 41: -100.0}),
    SamplingParams(temperature=1.2, seed=5, top_p=0.9, repetition_penalty=1.3, presence_penalty=0.4),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the tiny model."""
    return tiny_model(tmp_path_factory.mktemp("models"))


def requests(count: int = 8) -> list[TokenRequest]:
    """Ask for answers of all kinds; every third one keeps to nothing."""
    return [
        TokenRequest(
            ticket=ticket,
            prompt_ids=[(7 * ticket + at) % 250 for at in range(5 + ticket)],
            max_new_tokens=24 if ticket % 3 == 2 else 60,
            ignore_eos=ticket % 3 == 2,
            grammar="" if ticket % 3 == 2 else GRAMMAR,
            sampling=KINDS[ticket % len(KINDS)],
        )
        for ticket in range(count)
    ]


def on(kind: str, folder: Path, **limits: Any) -> GenerateEngine:
    """Make an engine around either runner."""
    model: Any = untyped("transformers").AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    decoder, tokenizer = LlamaDecoder(model), load_tokenizer(folder)
    usual: dict[str, Any] = {"slots": 8, "context": 256, "chunk_tokens": 64, "depth": 1 if kind == "torch" else 2}
    bounds = SchedulerLimits(**{**usual, **limits})
    runner: TorchRunner | DeviceRunner
    if kind == "torch":
        runner = TorchRunner(decoder, 2048, bounds, dtype=torch.float32, device="cpu")
    else:
        runner = DeviceRunner(decoder, 2048, bounds, dtype=torch.float32, device="cpu", operation=plain)
    grammars = Grammars([tokenizer.spell(each) for each in range(decoder.vocabulary)], clock=time.thread_time)
    return GenerateEngine(runner, kv_tokens=2048, limits=bounds, eos_ids=tokenizer.eos_ids, grammars=grammars)


def test_answers_of_an_engine_as_it_is_loaded_are_valid(folder: Path) -> None:
    """Whole ones keep to the schema; what was cut short says so."""
    engine = factory(describe(folder), silent)
    tokenizer = load_tokenizer(folder)
    outcomes = run(engine, requests())
    engine.close()

    assert "grammar" in engine.capabilities
    whole = 0
    for request in requests():
        outcome = outcomes[request.ticket]
        if not request.grammar or outcome.finish_reason == "length":
            continue
        text = b"".join(tokenizer.spell(token) for token in outcome.token_ids).decode()
        assert set(json.loads(text)) == {"city", "hot", "n"}
        whole += 1
    assert whole >= 3


def test_both_runners_draw_the_same_and_neighbours_what_they_always_draw(folder: Path) -> None:
    """On a device constrained sequences take part in every second step; nobody's tokens change by that."""
    one, other = on("torch", folder), on("device", folder)
    free = [msgspec.structs.replace(each, ticket=100 + each.ticket) for each in requests() if not each.grammar]

    together = tokens_of(other, requests())
    alone = tokens_of(other, free)

    assert tokens_of(one, requests()) == together
    assert all(together[each.ticket - 100] == alone[each.ticket] for each in free)


@pytest.mark.parametrize("kind", ["torch", "device"])
@pytest.mark.parametrize("is_deterministic", [False, True])
def test_an_answer_goes_on_the_same_from_every_token(folder: Path, kind: str, *, is_deterministic: bool) -> None:
    """What was delivered elsewhere leads to the mask that it led to there."""
    engine = on(kind, folder, is_deterministic=is_deterministic, chunk_tokens=16 if is_deterministic else 64)
    request = requests()[1]
    whole = tokens_of(engine, [request])[1]

    for cut in range(1, len(whole)):
        assert tokens_of(engine, [msgspec.structs.replace(request, resume_ids=whole[:cut])])[1] == whole[cut:]


@pytest.mark.parametrize("decoder", ["Metaspace", "ByteLevel"])
def test_a_model_is_served_whatever_kind_its_tokenizer_is_of(folder: Path, tmp_path: Path, decoder: str) -> None:
    """One that names more tokens than there are rows, or that llguidance cannot read: with grammars all the same."""
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    file = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    if decoder == "Metaspace":
        file["decoder"] = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    rows = json.loads((copy / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    template = dict(file["added_tokens"][-1])
    file["added_tokens"] += [template | {"id": rows + more, "content": f"<more{more}>"} for more in range(2)]
    (copy / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    engine = factory(describe(copy), silent)
    engine.close()

    assert "grammar" in engine.capabilities


def test_a_model_is_served_without_grammars_where_they_cannot_be_had(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so."""

    def fail(*_: object, **_others: object) -> None:
        raise ValueError("no such tokens")

    monkeypatch.setattr(Grammars, "__init__", fail)
    engine = factory(describe(folder), silent)
    engine.close()

    assert "grammar" not in engine.capabilities
    assert "no such tokens" in engine.fallback
