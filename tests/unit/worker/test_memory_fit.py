"""Whether a model fits a device, judged from its files: made-up models on made-up devices."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from zmqrt.worker.memory_fit import CATALOGUE, DeviceMemory, ServingPlan, judge, measure
from zmqrt.worker.model_directory import ModelDirectory
from zmqrt.worker.model_files import Stored
from zmqrt.worker.model_sources import PACKAGES
from zmqrt.worker.weights import llama_shapes

GIB = 1 << 30
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
}
PARAMETERS = 8_030_261_248
GPU = ServingPlan(dtype="bfloat16", is_mapped=False, spare_bytes=GIB)
CPU = ServingPlan(dtype="float32", is_mapped=True)


def stored(shapes: dict[str, tuple[int, ...]], dtype: str = "BF16", item_bytes: int = 2) -> dict[str, Stored]:
    """Lay tensors out as a file has them."""
    found: dict[str, Stored] = {}
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * item_bytes
        found[name] = Stored(dtype, shape, (at, end))
        at = end
    return found


def llama(**changes: Any) -> ModelDirectory:
    """Describe Llama 3 8B, or a variant."""
    config = {**LLAMA_8B, **changes}
    head = {"lm_head.weight": (config["vocab_size"], config["hidden_size"])}
    return ModelDirectory(config, stored({**llama_shapes(config), **head}))


def room(free_gib: float, total_gib: float = 0.0, *, limit: str = "") -> DeviceMemory:
    """Describe a device."""
    total = int(max(free_gib, total_gib) * GIB)
    return DeviceMemory(device="cuda:0", free_bytes=int(free_gib * GIB), total_bytes=total, limit=limit)


def test_what_is_counted_is_what_a_model_has() -> None:
    """Parameters, type, and keys and values of one sequence (128 KiB a token for this one)."""
    need = measure(llama(), GPU)

    assert need.weights_bytes == 2 * PARAMETERS
    assert (need.kv_token_bytes, need.tokens) == (131_072, 64)
    assert measure(llama(), ServingPlan(dtype="float32", is_mapped=False)).weights_bytes == 4 * PARAMETERS


@pytest.mark.parametrize(
    ("free", "total", "plan", "kind"),
    [
        (80.0, 80.0, GPU, "fits"),
        (17.0, 24.0, GPU, "close"),  # 15.0 GiB of weights, 1 GiB to compute in: it may fit
        (15.5, 24.0, GPU, "busy"),  # somebody else holds the rest
        (15.5, 16.0, GPU, "busy"),
        (11.5, 12.0, GPU, "too_small"),
        (29.0, 64.0, CPU, "busy"),  # float32 takes 29.9
        (29.0, 29.5, CPU, "too_small"),
        (31.0, 31.0, CPU, "close"),
        (64.0, 64.0, CPU, "fits"),
        (12.0, 16.0, ServingPlan(dtype="bfloat16", is_mapped=True), "close"),  # its file need not lie in memory
    ],
)
def test_verdicts_of_a_model_of_eight_billion(free: float, total: float, plan: ServingPlan, kind: str) -> None:
    """On cards and machines as there are."""
    assert judge("llama-8b", llama(), plan, room(free, total)).kind == kind


def test_a_refusal_names_need_and_room_and_what_fits() -> None:
    """All of it in one sentence, with the way to go on."""
    words = judge("llama-8b", llama(), CPU, room(24.0, limit="ulimit -v")).words

    assert words == (
        "there is too little memory to load llama-8b: it needs 29.9 GiB (weights as float32 29.9 GiB, keys and values "
        "of 64 tokens 16 MiB); 24.0 GiB of 24.0 GiB are free on cuda:0, bounded by ulimit -v; with --dtype bfloat16 "
        "(15.0 GiB) it fits; models of up to 11.7 billion parameters fit as bfloat16; smollm2-135m does; to have it "
        "tried all the same: --engine-opt memory_check=0"
    )


@pytest.mark.parametrize(
    ("plan", "free", "words"),
    [
        (ServingPlan(dtype="bfloat16", is_mapped=False, max_model_len=131_072), 24.0, "with --max-model-len 56192 it"),
        (
            ServingPlan(dtype="float32", is_mapped=False, max_model_len=131_072),
            24.0,
            "--dtype bfloat16 and --max-model-len",
        ),
        (ServingPlan(dtype="bfloat16", is_mapped=False, kv_bytes=20 * GIB), 24.0, "with --engine-opt kv_mib=70"),
        (
            ServingPlan(dtype="bfloat16", is_mapped=False, kv_bytes=64 * GIB, slots=64, max_model_len=8192),
            24.0,
            "or --slots 6",
        ),
    ],
)
def test_what_would_fit_is_named(plan: ServingPlan, free: float, words: str) -> None:
    """A shorter context, a smaller type, a smaller pool, fewer slots."""
    verdict = judge("llama-8b", llama(), plan, room(free, 80.0))

    assert verdict.kind == "busy"
    assert words in verdict.words


def test_what_is_said_to_fit_does() -> None:
    """The bounds that a refusal names, taken at their word, are not refused."""
    asked = ServingPlan(dtype="bfloat16", is_mapped=False, max_model_len=131_072, spare_bytes=GIB)
    words = judge("llama-8b", llama(), asked, room(20.0)).words
    length = int(words.partition("--max-model-len ")[2].split()[0])
    shorter = ServingPlan(dtype="bfloat16", is_mapped=False, max_model_len=length, spare_bytes=GIB)

    assert judge("llama-8b", llama(), shorter, room(20.0)).kind == "fits"


@pytest.mark.parametrize(
    ("changes", "extra", "weights"),
    [
        ({"tie_word_embeddings": True}, {}, 2 * (PARAMETERS - 128_256 * 4096)),
        ({"tie_word_embeddings": None}, {}, 2 * (PARAMETERS - 128_256 * 4096)),
        ({}, {"model.layers.0.self_attn.rotary_emb.inv_freq": (1 << 30,)}, 2 * PARAMETERS),
        ({"text_config": {"hidden_size": 4096}}, {"vision_tower.patch": (1 << 30,)}, 0),
        ({"quantization_config": {"quant_method": "gptq"}}, {}, 2 * PARAMETERS),
    ],
)
def test_what_may_not_be_loaded_is_not_counted(
    changes: dict[str, Any], extra: dict[str, tuple[int, ...]], weights: int
) -> None:
    """A head that is tied, buffers, eyes; weights in fewer bits as they are stored."""
    model = llama(**changes)
    model.tensors.update(stored(extra))

    assert measure(model, GPU).weights_bytes == weights


@pytest.mark.parametrize(("quantize", "bits"), [("int8", 8), ("fp8", 8), ("int4", 4)])
def test_weights_of_layers_are_counted_in_their_bits(quantize: str, bits: int) -> None:
    """Embedding, head and norms keep their type; nothing of the layers stays in the file."""
    outer, norms = 2 * 128_256 * 4096, 65 * 4096
    layers = PARAMETERS - outer - norms

    need = measure(llama(), ServingPlan(dtype="bfloat16", is_mapped=False, quantize=quantize))
    assert need.weights_bytes == layers * bits // 8 + 2 * (outer + norms)
    need = measure(llama(), ServingPlan(dtype="bfloat16", is_mapped=True, quantize=quantize))
    assert (need.weights_bytes, need.mapped_bytes) == (layers * bits // 8, 2 * (outer + norms))


@pytest.mark.parametrize(
    ("plan", "free", "words"),
    [
        (GPU, 12.0, "too little memory to load llama-8b: .*; with --quantize int8 .9.5 GiB. it fits; "),
        (GPU, 8.0, "with --quantize int4 .6.2 GiB. it fits; "),
        (CPU, 11.0, "with --dtype bfloat16 and --quantize int8 .8.5 GiB. it fits; "),
        (replace(GPU, quantize="int8"), 6.0, r"needs 9.5 GiB .weights as int8 and bfloat16 8.5 GiB, (?!.*--quantize)"),
    ],
)
def test_fewer_bits_are_named_where_nothing_else_helps(plan: ServingPlan, free: float, words: str) -> None:
    """Eight if they do, else four; not to somebody who has asked for some, nor for weights that are in few bits."""
    assert re.search(words, judge("llama-8b", llama(), plan, room(free)).words)
    already = llama(quantization_config={"quant_method": "gptq"})
    assert "--quantize" not in judge("llama-8b", already, plan, room(free)).words


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"n_layer": 12, "n_head": 12},
        {"num_attention_heads": "many"},
        {"num_hidden_layers": 10**400, "num_attention_heads": 2, "hidden_size": 8},
    ],
)
def test_a_configuration_that_says_little_is_no_reason_to_refuse(config: dict[str, Any]) -> None:
    """Then the weights alone count."""
    model = ModelDirectory(config, stored({"wte.weight": (10, 10)}))
    need = measure(model, GPU)

    assert judge("gpt2", model, GPU, room(8.0)).kind == "fits"
    assert (need.weights_bytes, need.kv_bytes) == (200, 0)


def test_the_catalogue_has_every_generator_that_can_be_fetched() -> None:
    """Else a refusal would not name it."""
    assert set(CATALOGUE) == set(PACKAGES) - {"minilm-l6"}
