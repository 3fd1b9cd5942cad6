"""The encoder engine says what plain transformers says, whatever stands beside a text, or refuses the model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from support import broken_models as broken
from support.engines import describe
from support.rows import embed, embed_item, outcome, vectors_of
from support.tiny import silent, tiny_model
from support.tiny_encoder import CONTEXT, WIDTH, PlainEncoder, add_modules, tiny_encoder
from zmqrt.worker.engines.base import CannotLoadError
from zmqrt.worker.engines.encoder.encoder_engine import EncoderEngine
from zmqrt.worker.engines.encoder.encoder_factory import factory

pytestmark = pytest.mark.integration
LABELS = {0: "sad", 1: "glad", 2: "neither"}


def load(folder: Path, **options: str) -> EncoderEngine:
    """Load one on the CPU."""
    return factory(describe(folder, engine="encoder", max_model_len=0, slots=0, options=options), silent)


def texts_of(count: int, seed: int = 7) -> list[str]:
    """Make texts of 1 to 40 words and letters; prints its seed by being in the name of what fails."""
    rnd = random.Random(seed)
    return [" ".join(rnd.choices(["a", "bc", "def", "42"], k=rnd.randint(1, 14))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder as sentence-transformers saves it: the mean, of length one."""
    return add_modules(tiny_encoder(tmp_path_factory.mktemp("encoders") / "bert"))


@pytest.fixture(scope="module")
def engine(model: Path) -> EncoderEngine:
    """Its engine."""
    return load(model)


@pytest.mark.parametrize(
    ("mode", "pooling", "is_normalised"),
    [
        ("mean_tokens", "mean", True),
        ("cls_token", "cls", False),
        ("lasttoken", "last", True),
        ("mean_tokens", "max", False),
    ],
)
def test_vectors_equal_plain_transformers(
    model: Path, tmp_path: Path, mode: str, pooling: str, *, is_normalised: bool
) -> None:
    """In whatever way they are pooled, in batches of other lengths, in the order of the texts."""
    folder = add_modules(broken.copy(model, tmp_path / "copy"), pooling=mode, is_normalised=is_normalised)
    plain, texts = PlainEncoder(folder), texts_of(20)
    expected = [plain.vector(text, pooling, is_normalised=is_normalised) for text in texts]

    found = vectors_of(load(folder, **({"pooling": "max"} if pooling == "max" else {})), texts)

    assert np.abs(np.array(expected) - found).max() < 1e-5


@pytest.mark.parametrize(
    "family",
    ["Roberta", "DistilBert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("MPNet", "ModernBert"))],
)
def test_other_families_equal_plain_transformers_up_to_their_longest_text(tmp_path: Path, family: str) -> None:
    """Some count positions from behind their padding, some know no second text; what is saved as a masked model too."""
    is_behind = family in {"Roberta", "MPNet"}
    extra = {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 64} if family == "DistilBert" else {}
    extra |= {"pad_token_id": 1} if is_behind else {}
    folder = tiny_encoder(tmp_path / "model", f"{family}Model", **extra)
    engine, plain = load(folder), PlainEncoder(folder)
    longest = "a " * (engine.capacity().context - 2)

    found = vectors_of(engine, [longest, "a b c"])

    assert engine.capacity().context == (CONTEXT - 2 if is_behind else CONTEXT)
    assert np.abs(np.array([plain.vector(longest), plain.vector("a b c")]) - found).max() < 1e-5


def test_a_model_with_a_head_that_it_was_trained_with_makes_the_same_vectors(tmp_path: Path) -> None:
    """What fills gaps is an encoder: the head is left alone."""
    folder = tiny_encoder(tmp_path / "filler", "BertForMaskedLM")

    assert np.abs(PlainEncoder(folder).vector("a b") - vectors_of(load(folder), ["a b"])).max() < 1e-5


def test_ranks_equal_transformers(tmp_path: Path) -> None:
    """One logit for a pair, as a number between 0 and 1; too long is an error, or the document is cut."""
    folder = tiny_encoder(tmp_path / "ranker", "BertForSequenceClassification", num_labels=1)
    engine, plain = load(folder), PlainEncoder(folder, "AutoModelForSequenceClassification")
    documents = [*texts_of(9), "b " * CONTEXT]
    logits = [float(plain.logits("a b c", text, truncation=True, max_length=CONTEXT)[0]) for text in documents]

    result = outcome(engine, {"task": "rerank", "query": "a b c", "documents": documents, "truncate": True})
    too_long = outcome(engine, {"task": "rerank", "query": "a b c", "documents": documents})
    endless = outcome(engine, {"task": "rerank", "query": "a" * (32 * CONTEXT + 1), "documents": ["a"]})
    no_room = outcome(engine, {"task": "rerank", "query": "a " * 62, "documents": ["a"], "truncate": True})

    assert engine.task == "rerank"
    assert result.body is not None
    assert np.allclose(result.body["scores"], 1 / (1 + np.exp(-np.array(logits))), atol=1e-5)
    assert too_long.refused == "context_length_exceeded"
    assert "documents[9] resulted in 70 tokens" in str(too_long.error)
    assert no_room.refused == "context_length_exceeded"
    assert "your query resulted in 64 tokens" in str(no_room.error)
    assert (endless.refused, "query: it has 2,049 characters" in str(endless.error)) == ("bad_request", True)


def test_classes_equal_transformers(tmp_path: Path) -> None:
    """Probabilities of all labels, by their names, and of several that may hold at once."""
    labels: dict[str, Any] = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}
    folder = tiny_encoder(tmp_path / "classifier", "BertForSequenceClassification", **labels)
    plain, texts = PlainEncoder(folder, "AutoModelForSequenceClassification"), texts_of(9)
    logits = np.array([plain.logits(text).numpy() for text in texts])
    engine = load(folder)

    one = outcome(engine, {"task": "classify", "input": texts}).body
    broken.edit_json(folder / "config.json", problem_type="multi_label_classification")
    several = outcome(load(folder), {"task": "classify", "input": texts}).body

    assert engine.task == "classify"
    assert one is not None
    assert several is not None
    assert one["labels"] == ["sad", "glad", "neither"]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(one["probabilities"], shares, atol=1e-5)
    assert np.allclose(several["probabilities"], 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_inputs_are_cut_or_refused_with_both_numbers(model: Path, engine: EncoderEngine) -> None:
    """To the context, or to fewer tokens, as transformers cuts; a text of megabytes is not cut into tokens for it."""
    plain, text = PlainEncoder(model), "a " * 100
    for asked, length in (({"truncate": True}, CONTEXT), ({"truncate_to": 9}, 9), ({"truncate_to": 999}, CONTEXT)):
        found = vectors_of(engine, ["b", text], **asked)
        assert np.abs(plain.vector(text, truncation=True, max_length=length) - found[1]).max() < 1e-5
        assert np.abs(plain.vector("b") - found[0]).max() < 1e-5

    refused = outcome(engine, {"task": "embed", "input": ["b", text]})
    huge = outcome(engine, {"task": "embed", "input": "a " * 5_000_000})

    assert (refused.refused, huge.refused) == ("context_length_exceeded", "context_length_exceeded")
    assert "64 tokens. However, your input[1] resulted in 102 tokens" in str(refused.error)
    assert outcome(engine, {"task": "embed", "input": "b", "truncate_to": 2}).refused == "bad_request"


def test_tokens_are_taken_as_they_are_and_vectors_shortened(model: Path, engine: EncoderEngine) -> None:
    """Ids that the model lacks, and dimensions that it lacks, are refused by name."""
    plain = PlainEncoder(model)
    ids: list[int] = plain.tokens("a b c")["input_ids"][0].tolist()
    whole = plain.vector("a b c")

    assert np.abs(vectors_of(engine, [ids, "a b c"]) - whole).max() < 1e-5
    assert np.abs(vectors_of(engine, "a b c", dimensions=8) - whole[:8] / np.linalg.norm(whole[:8])).max() < 1e-5
    assert "dimensions: the model has 32" in str(outcome(engine, embed("a", dimensions=33)).error)
    assert "no token 77" in str(outcome(engine, embed([[77]])).error)


def test_tokens_of_another_tokenizer_are_refused(model: Path, engine: EncoderEngine) -> None:
    """Their numbers are tokens here too, and the vectors would be of another text: what is around a text tells."""
    ids: list[int] = PlainEncoder(model).tokens("a b c")["input_ids"][0].tolist()

    for foreign in (ids[1:], ids[:-1], ids[1:-1], [9, 8]):
        result = outcome(engine, embed([foreign]))
        assert result.refused == "bad_request"
        assert "begin with [2] and end with [3]; those of another one" in str(result.error)


def test_tokens_are_cut_as_texts_are(model: Path, engine: EncoderEngine) -> None:
    """What the model needs behind a text stays there."""
    plain = PlainEncoder(model)
    ids: list[int] = plain.tokens("a b c d")["input_ids"][0].tolist()

    for most in (3, 4, 6, 999):
        expected = plain.vector("a b c d", truncation=True, max_length=min(most, CONTEXT))
        assert np.abs(vectors_of(engine, [ids], truncate_to=most) - expected).max() < 1e-5
    assert outcome(engine, embed([ids], truncate_to=2)).refused == "bad_request"


def test_one_row_that_is_no_number_fails_alone(engine: EncoderEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbours in the batch have their vectors."""
    model: Any = vars(engine)["_loaded"]  # nothing that a client may send makes such numbers
    kind = cast("Any", type(model))
    forward: Any = kind.forward

    def poisoned(loaded: Any, rows: list[Any]) -> Any:
        numbers: Any = forward(loaded, rows).clone()
        for at, row in enumerate(rows):
            if len(row.token_ids) == 5:
                numbers[at, 3] = float("nan")
        return numbers

    monkeypatch.setattr(kind, "forward", poisoned)
    rows = engine.divide(embed_item(["a b", "a b c", "a b c d"]))
    assert isinstance(rows, list)

    good, bad, fine = engine.run(rows)

    assert isinstance(good, bytes)
    assert isinstance(fine, bytes)
    assert isinstance(bad, ValueError)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encoder.layer.1.output.dense.weight", "embeddings.LayerNorm.bias"])
def test_a_missing_tensor_is_refused_by_name(model: Path, tmp_path: Path, name: str) -> None:
    """Transformers fills it with random numbers; nobody would see that."""
    folder = broken.copy(model, tmp_path / "broken")
    broken.drop(folder, name)

    with pytest.raises(CannotLoadError, match=rf"lacks 1 tensor .*{name}; random numbers"):
        load(folder)


def test_a_layer_behind_the_first_token_that_nobody_pools_by_may_be_missing(model: Path, tmp_path: Path) -> None:
    """Models of sentences are often saved without it."""
    folder = broken.copy(model, tmp_path / "broken")
    broken.drop(folder, "pooler.dense.weight", "pooler.dense.bias")

    assert load(folder).task == "embed"


def test_layers_that_the_configuration_has_not_are_refused_by_name(model: Path, tmp_path: Path) -> None:
    """And those that it asks for in vain."""
    folder = broken.copy(model, tmp_path / "broken")
    broken.edit_json(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(CannotLoadError, match=r"more layers than the 1 of its config\.json: encoder\.layer\.1\."):
        load(folder)

    broken.edit_json(folder / "config.json", num_hidden_layers=4)
    with pytest.raises(CannotLoadError, match=r"lacks layers .*4 of them.*: 2, 3;"):
        load(folder)


def test_what_depends_on_its_neighbours_is_refused(tmp_path: Path) -> None:
    """FNet has no mask: padding would change every vector in a batch."""
    folder = tiny_encoder(tmp_path / "fnet", "FNetModel")

    with pytest.raises(CannotLoadError, match="depends on the texts beside it"):
        load(folder)


def test_a_generator_is_no_encoder(tmp_path: Path) -> None:
    """Even if nobody looked before."""
    with pytest.raises(CannotLoadError, match="writes text, and is no encoder"):
        load(tiny_model(tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "median"}, "pooling=median: there are cls, mean, last, max"),
        ({"kv_mib": "3"}, "kv_mib: the encoder engine knows batch_tokens, memory_check, normalize, pooling, threads"),
        ({"normalize": "yes"}, "normalize=yes: it is 1 .on. or 0 .off."),
        ({"batch_tokens": "0"}, "batch_tokens=0"),
    ],
)
def test_options_that_are_none_are_named(model: Path, options: dict[str, str], words: str) -> None:
    """With those there are."""
    with pytest.raises(CannotLoadError, match=words):
        load(model, **options)
