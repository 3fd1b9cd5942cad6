"""What may follow in an answer that keeps to a grammar: masks, ends, resumes, and the engine that draws under them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from support.engines import run
from zmqrt.protocol.tasks import Grammar
from zmqrt.worker.engines.base import Capacity, RequestRefusedError, SamplingParams, TokenRequest
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.schedule import SchedulerLimits
from zmqrt.worker.engines.grammar import Grammars, Matcher, words_of
from zmqrt.worker.engines.mock import MockEngine
from zmqrt.worker.engines.mock_tokens import EOS, VOCABULARY
from zmqrt.worker.grammar_check import compile_grammar
from zmqrt.worker.tokenizer import FileTokenizer, byte_alphabet, load_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def schema(value: object) -> str:
    """Compile a JSON schema."""
    return compile_grammar(Grammar(kind="json_schema", text=json.dumps(value)))


def ask(grammar: str, ticket: int = 1, tokens: int = 300, **fields: Any) -> TokenRequest:
    """Ask for an answer that keeps to a grammar."""
    sampling = SamplingParams(temperature=1.0, seed=ticket)
    plain = TokenRequest(
        ticket=ticket, prompt_ids=list(b"who?"), max_new_tokens=tokens, grammar=grammar, sampling=sampling
    )
    return msgspec.structs.replace(plain, **fields)


def text_of(ids: list[int]) -> str:
    """Read the bytes of an answer."""
    return bytes(token for token in ids if token < 256).decode()


def allowed(matcher: Matcher) -> set[int]:
    """Return what a mask allows."""
    bits = int.from_bytes(matcher.mask, "little")
    return {token for token in range(VOCABULARY) if bits >> token & 1}


@pytest.fixture(scope="module")
def bytewise() -> Grammars:
    """Know the tokens of the mock."""
    return Grammars.of_bytes(VOCABULARY, clock=time.thread_time)


def test_only_what_the_grammar_allows_may_come_and_the_end_where_it_is_fulfilled(bytewise: Grammars) -> None:
    """Stop ids of the request end it, not the one that the model's tokenizer names."""
    matcher = bytewise.matcher(compile_grammar(Grammar(kind="regex", text="ab?")), [], [260, 10**6])

    assert allowed(matcher) == {ord("a")}
    matcher.take(ord("a"))
    assert allowed(matcher) == {ord("b"), 260}
    matcher.take(ord("b"))
    assert matcher.is_over
    assert allowed(matcher) == set()


def test_a_stop_id_ends_what_might_go_on(bytewise: Grammars) -> None:
    """And nothing is taken after it."""
    matcher = bytewise.matcher(compile_grammar(Grammar(kind="regex", text="a+")), list(b"aa"), [EOS])

    assert allowed(matcher) == {ord("a"), EOS}
    matcher.take(EOS)
    matcher.take(ord("z"))
    assert matcher.is_over
    assert not matcher.error


def test_a_token_that_the_grammar_forbids_is_an_error_that_says_so(bytewise: Grammars) -> None:
    """Tokens that were delivered elsewhere may be of another grammar."""
    matcher = bytewise.matcher(compile_grammar(Grammar(kind="regex", text="a+")), list(b"ab"), [EOS])

    assert "token 98" in matcher.error
    assert not matcher.is_over


def test_masks_go_to_devices_in_words_of_64_bits() -> None:
    """The last one filled up with zeros; the highest bit is the sign."""
    assert list(words_of([b"\x01\0\0\0\0\0\0\x80\x03\0\0\0", b"\x05"])) == [-(2**63) + 1, 3, 5]


@pytest.mark.parametrize("depth", [1, 2])
def test_every_answer_is_valid_and_a_resumed_one_goes_on_the_same(depth: int) -> None:
    """From every token on, beside others that run without a grammar and draw what they always draw."""
    grammar = schema(PERSON)
    others = [ask("", ticket, 40) for ticket in (50, 51)]
    alone = run(MockEngine(depth=depth), others)
    outcomes = run(MockEngine(depth=depth), [*(ask(grammar, ticket) for ticket in range(1, 21)), *others])

    for ticket in range(1, 21):
        outcome = outcomes[ticket]
        person = json.loads(text_of(outcome.token_ids))
        assert outcome.finish_reason == "stop"
        assert set(person) == {"name", "age", "tags"}
        assert 0 <= person["age"] <= 150
        assert " " not in text_of(outcome.token_ids).replace(person["name"], "")
    assert [outcomes[each.ticket] for each in others] == [alone[each.ticket] for each in others]

    whole = outcomes[1].token_ids
    for cut in range(len(whole) + 1):
        rest = run(MockEngine(depth=depth), [ask(grammar, resume_ids=whole[:cut])])[1]
        assert whole[:cut] + rest.token_ids == whole
        assert rest.finish_reason == "stop"


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_a_grammar_holds_in_every_schedule(*, is_deterministic: bool) -> None:
    """Where what was made elsewhere is fed token by token, too."""
    engine = MockEngine(depth=2, is_deterministic=is_deterministic, chunk_tokens=4)
    pattern = "(ab|ba){3,9}"
    grammar = compile_grammar(Grammar(kind="regex", text=pattern))
    requests = [ask(grammar, ticket, resume_ids=list(b"abba")[: 2 * (ticket % 3)]) for ticket in range(1, 9)]

    for request, outcome in zip(requests, run(engine, requests).values(), strict=True):
        assert re.fullmatch(pattern, text_of(request.resume_ids + outcome.token_ids))


def test_what_is_cut_short_says_so() -> None:
    """By `length`: what is there begins a valid answer."""
    (outcome,) = run(MockEngine(), [ask(schema(PERSON), tokens=5)]).values()

    assert (outcome.finish_reason, len(outcome.token_ids)) == ("length", 5)
    assert text_of(outcome.token_ids).startswith('{"nam')


def test_an_answer_whose_end_nobody_may_draw_ends_all_the_same() -> None:
    """`ignore_eos` leaves no id that ends it; the grammar does where nothing may follow."""
    (outcome,) = run(MockEngine(), [ask(schema({"const": "yes"}), ignore_eos=True)]).values()

    assert (text_of(outcome.token_ids), outcome.finish_reason) == ('"yes"', "stop")


def test_tokens_of_another_grammar_end_one_request_with_the_reason() -> None:
    """Its neighbour's answer comes."""
    grammar = compile_grammar(Grammar(kind="regex", text="[0-9]{4}"))
    outcomes = run(MockEngine(), [ask(grammar, 1, resume_ids=list(b"12x")), ask(grammar, 2)])

    assert outcomes[1].finish_reason == "error"
    assert "cannot be kept to" in (outcomes[1].error or "")
    assert text_of(outcomes[2].token_ids).isdecimal()


def test_an_engine_without_the_tokens_of_its_model_refuses_grammars() -> None:
    """It does not claim that it can, and says why if it is asked all the same."""
    mock = MockEngine()
    bounds = SchedulerLimits(slots=1, context=64, chunk_tokens=8)
    engine = GenerateEngine(mock.runner, kv_tokens=64, limits=bounds)

    assert "grammar" in mock.capabilities
    assert "grammar" not in engine.capabilities
    assert engine.capacity() == Capacity(slots=1, context=64, kv_tokens=64)
    with pytest.raises(RequestRefusedError, match=r"^grammar: "):
        engine.submit(ask(schema(True), tokens=3))


def test_what_no_parser_understands_is_refused_by_the_engine_too(bytewise: Grammars) -> None:
    """Agents look first; an engine believes nobody."""
    with pytest.raises(RequestRefusedError, match=r"^grammar: "):
        bytewise.matcher('{"grammars": [{"lark_grammar": "start: nothing"}]}', [], [])


def test_an_id_that_ends_answers_does_so_only_where_the_grammar_is_fulfilled(bytewise: Grammars) -> None:
    """It may be an ordinary token that a caller named: within a string it would leave half a JSON that says "stop"."""
    words = schema({"type": "string", "maxLength": 20})
    matcher = bytewise.matcher(words, list(b'"'), [ord("e"), EOS])

    assert {ord("d"), ord("f")} <= allowed(matcher)
    assert not {ord("e"), EOS} & allowed(matcher)
    for ticket in range(1, 9):
        (outcome,) = run(MockEngine(), [ask(words, ticket, stop_ids=[ord("e")])]).values()
        assert outcome.finish_reason == "stop"
        assert isinstance(json.loads(text_of(outcome.token_ids)), str)


@pytest.mark.parametrize("pattern", ["[a&&b]", r"[^\x00-\x{10FFFF}]"])
def test_what_nothing_can_keep_to_is_refused_and_breaks_nothing(bytewise: Grammars, pattern: str) -> None:
    """It is the caller's mistake, whatever tokens the model has."""
    with pytest.raises(RequestRefusedError, match="grammar: it cannot be kept to"):
        bytewise.matcher(compile_grammar(Grammar(kind="regex", text=pattern)), [], [EOS])


def test_a_grammar_that_is_fulfilled_by_nothing_ends_before_a_token() -> None:
    """An answer without a text is one."""
    (outcome,) = run(MockEngine(), [ask(compile_grammar(Grammar(kind="regex", text="(a{0}|b{0})")))]).values()

    assert (outcome.token_ids, outcome.finish_reason) == ([], "stop")


def test_what_takes_the_time_of_the_whole_batch_ends_with_an_error() -> None:
    """Its neighbours wait for each of its masks. One that is dear now and then goes on."""
    times = [0.0]
    grammars = Grammars.of_bytes(VOCABULARY, clock=times.pop)
    cheap, dear = (grammars.matcher(compile_grammar(Grammar(kind="regex", text="a+")), [], [EOS]) for _ in range(2))
    for cost in [0.5, *[0.004] * 200]:
        times[:] = [cost, 0.0]
        cheap.take(ord("a"))
    for _ in range(100):
        times[:] = [0.05, 0.0]
        dear.take(ord("a"))

    assert not cheap.error
    assert "too much of the time" in dear.error


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "a{99999999}"),
        ("regex", "(a{5000}){5000}b"),
        ("lark", 'start: "a"~99999999'),
        ("json_schema", json.dumps({"type": "string", "pattern": "^a{99999999}$"})),
    ],
)
def test_what_must_follow_is_not_spelled_to_its_end_with_each_mask(bytewise: Grammars, kind: Any, text: str) -> None:
    """It is as long as a stranger likes: half a second for the first mask, and an error at the second."""
    matcher = bytewise.matcher(compile_grammar(Grammar(kind=kind, text=text)), [], [EOS])
    for letter in b'"aaaaaaaa' if kind == "json_schema" else b"aaaaaaaa":
        assert letter in allowed(matcher)
        matcher.take(letter)

    assert not matcher.error


def pieces(decoder: Any) -> Any:
    """Make a vocabulary as SentencePiece has it: single bytes for what has no word, and a space in front of words."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "▁", "a", "b", "ab", "▁a", "é"]
    vocabulary = {word: token_id for token_id, word in enumerate(words)}
    made: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoder
    made.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    return made


def unigram() -> Any:
    """Make a vocabulary of words with a likelihood each, as T5 has it."""
    words = [("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("▁a", -2.5), ("b", -3.0)]
    made: Any = Tokenizer(models.Unigram(words, 0, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made


def with_holes() -> Any:
    """Make a vocabulary of bytes in which not every id is taken."""
    vocabulary = {char: token_id for token_id, char in enumerate(byte_alphabet())} | {"<eos>": 300, "ab": 310}
    made: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>"])
    return made


_SENTENCEPIECE = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


@pytest.mark.parametrize("rows_more", [-2, 0, 70])
@pytest.mark.parametrize(
    "made",
    [pieces(decoders.Sequence(_SENTENCEPIECE)), pieces(decoders.Metaspace()), unigram(), with_holes()],
    ids=["llama-2", "metaspace", "unigram", "holes"],
)
def test_every_kind_of_vocabulary_keeps_to_grammars(tmp_path: Path, made: Any, rows_more: int) -> None:
    """Also one that names more tokens than its model has rows, and one that names fewer."""
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer: FileTokenizer = load_tokenizer(tmp_path)
    rows = max(made.get_vocab().values()) + 1 + rows_more
    said = [tokenizer.spell(token_id) for token_id in range(rows)]
    matcher = Grammars(said, clock=time.thread_time).matcher(
        compile_grammar(Grammar(kind="regex", text="a b?[ab]{2}")), [], []
    )
    text = b""
    while not matcher.is_over:
        bits = int.from_bytes(matcher.mask, "little")
        token_id = max(token_id for token_id in range(rows) if bits >> token_id & 1)
        text += said[token_id]
        matcher.take(token_id)

    assert not matcher.error
    assert re.fullmatch(b"a b?[ab]{2}", text)


def optional(count: int) -> dict[str, Any]:
    """Make the schema of an object, all of whose properties may be left out."""
    return {
        "type": "object",
        "properties": {f"p{number}": {"type": "integer"} for number in range(count)},
        "additionalProperties": False,
    }


def test_as_many_properties_may_be_left_out_as_an_object_may_have(bytewise: Grammars) -> None:
    """All that are let in: a schema that is taken is kept to. More at one place are an error in words."""
    matcher = bytewise.matcher(schema(optional(1000)), [], [EOS])
    for byte in b'{"p999":2}':
        matcher.take(byte)
    assert matcher.is_over

    too_many = bytewise.matcher(schema({"anyOf": [{"anyOf": [optional(700)]}, optional(600)]}), [], [])
    for byte in b'{"p':
        too_many.take(byte)
    assert "let fewer properties be left out" in too_many.error
