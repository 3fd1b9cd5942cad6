"""Text from ids: exact for every cut, stop strings across borders, nothing quadratic."""

import random
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from support.cost import grows_by
from zmqrt.worker.detokenizer import ByteDetokenizer, Detokenizer, StopMatcher, TextStream, WindowDetokenizer
from zmqrt.worker.tokenizer import ByteTokenizer, FileTokenizer

CORPUS = ["the quick brown fox", "日本語のテキスト", "naïve café", "👩‍👩‍👧‍👦 🇫🇷 👍🏽", "क्षत्रिय", "\r\n\t {}()"]
SPECIALS = ["<|im_start|>", "<|im_end|>"]


def byte_level_tokenizer() -> Tokenizer:
    """Train a small byte-level BPE: some characters are one token, most are several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIALS],
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    cast("Any", tokenizer).add_tokens([AddedToken("<tool call>", normalized=False)])
    return tokenizer


def token(tokenizer: Tokenizer, text: str) -> int:
    """Return the id of a token that is there."""
    found = tokenizer.token_to_id(text)
    assert found is not None
    return found


TOKENIZER = byte_level_tokenizer()
VOCABULARY = FileTokenizer(TOKENIZER)
SIZE = TOKENIZER.get_vocab_size()


def whole(ids: list[int]) -> str:
    """Decode all ids in one go, as the tokenizers library does it."""
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def in_pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    """Step through the ids; the last piece is the tail."""
    return [*(detokenizer.step(token_id) for token_id in ids), detokenizer.flush()]


any_ids = st.lists(st.integers(0, SIZE - 1), max_size=60)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(CORPUS)


@given(any_ids)
def test_pieces_and_tail_make_one_decode_for_any_ids(ids: list[int]) -> None:
    """Also for ids that make no valid text: the replacement characters are the same ones."""
    assert "".join(in_pieces(VOCABULARY.detokenizer(), ids)) == whole(ids)


@given(texts)
def test_pieces_and_tail_make_the_text_that_was_encoded(text: str) -> None:
    """CJK, emoji, combining marks: whatever goes in comes out."""
    ids = VOCABULARY.encode(text, is_raw=False)

    assert "".join(in_pieces(VOCABULARY.detokenizer(), ids)) == text


@given(texts)
def test_no_piece_shows_half_a_character(text: str) -> None:
    """A replacement character is never given where a character was on its way."""
    ids = VOCABULARY.encode(text.replace("\ufffd", ""), is_raw=False)

    assert not any("\ufffd" in piece for piece in in_pieces(VOCABULARY.detokenizer(), ids))


@given(any_ids | texts.map(lambda text: VOCABULARY.encode(text, is_raw=False)), st.data())
def test_a_fresh_stream_goes_on_after_any_cut(ids: list[int], data: st.DataObject) -> None:
    """Stepping through the delivered ids and dropping the pieces leaves exactly the state of the lost node."""
    cut = data.draw(st.integers(0, len(ids)))
    stops = data.draw(st.lists(st.sampled_from(["the", "日本", "e c", "\n\t", "👍🏽"]), max_size=2))
    undisturbed, resumed = (TextStream(VOCABULARY.detokenizer(), stops) for _ in range(2))
    for token_id in ids[:cut]:
        undisturbed.step(token_id)
        resumed.step(token_id)

    for token_id in ids[cut:]:
        assert resumed.step(token_id) == undisturbed.step(token_id)
    assert resumed.finish() == undisturbed.finish()
    assert resumed.is_stopped == undisturbed.is_stopped


def test_special_tokens_have_no_text_and_added_ones_do() -> None:
    """Turn markers vanish; a token added by hand shows as it is written."""
    end, tool = token(TOKENIZER, "<|im_end|>"), token(TOKENIZER, "<tool call>")

    assert in_pieces(VOCABULARY.detokenizer(), [end, tool, end]) == ["", "<tool call>", "", ""]


def sentencepiece_tokenizer() -> Tokenizer:
    """Make a small vocabulary in the manner of Llama 2: leading spaces are marks, unknown bytes fall back to <0xNN>."""
    words = ["<unk>", "▁Hello", "▁world", "▁", "l", "é", "中", "!"]
    vocab = {word: index for index, word in enumerate(words + [f"<0x{value:02X}>" for value in range(256)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def test_a_window_keeps_spaces_and_joins_byte_tokens() -> None:
    """What a decoder does at the start of a text (dropping a space) happens once, not at every step."""
    tokenizer = sentencepiece_tokenizer()
    emoji = [token(tokenizer, f"<0x{value:02X}>") for value in "👍".encode()]
    ids = [1, 2, 3, *emoji, 5, 6, 7, *emoji[:2]]
    detokenizer = FileTokenizer(tokenizer).detokenizer()

    pieces = in_pieces(detokenizer, ids)

    assert isinstance(detokenizer, WindowDetokenizer)
    assert pieces == ["Hello", " world", " ", "", "", "", "👍", "é", "中", "!", "", "", "\ufffd\ufffd"]
    assert "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["half characters", "special tokens"])
def test_a_window_stays_small_whatever_comes(kind: str) -> None:
    """Thousands of ids that show no text do not make each step slower."""
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return "\ufffd" * (len(ids) if kind == "half characters" else 0)

    in_pieces(WindowDetokenizer(decode), list(range(2000)))

    assert longest < 200


def test_a_long_text_costs_as_much_per_token_as_a_short_one() -> None:
    """Four times the tokens take about four times as long, with stop strings and all."""
    rng = random.Random(1)
    ids = [rng.randrange(SIZE) for _ in range(40_000)]

    def read(count: int) -> None:
        stream = TextStream(VOCABULARY.detokenizer(), ["never to be found", "nor this"])
        for token_id in ids[:count]:
            stream.step(token_id)

    assert grows_by(8, read, 10_000, 40_000)


def cut_at_random(text: str, rng: random.Random) -> list[str]:
    """Cut a text into pieces, empty ones among them."""
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(6)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)
def test_a_stop_string_is_found_wherever_the_text_is_cut(text: str, stops: list[str], rng: random.Random) -> None:
    """The text ends before the match that ends first; without one, all of it comes out."""
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[0] + min(ends)[1]] if ends else text
    matcher = StopMatcher(stops)

    got = "".join([matcher.feed(piece) for piece in cut_at_random(text, rng)])

    assert got + matcher.flush() == expected
    assert (matcher.found is not None) == bool(ends)


def test_only_what_may_begin_a_stop_string_is_held() -> None:
    """Text that can no longer belong to a stop string is given at once."""
    matcher = StopMatcher(["</end>", "###"])

    assert matcher.feed("one <") == "one "
    assert matcher.feed("/e") == ""
    assert matcher.feed("lse #") == "</else "
    assert matcher.feed("#") == ""
    assert matcher.feed(" two") == "## two"
    assert matcher.feed(" ##") == " "
    assert matcher.feed("# three") == ""
    assert matcher.found == "###"
    assert matcher.flush() == ""


def test_stop_strings_do_not_count_before_min_tokens() -> None:
    """The first tokens pass unseen; a stop string after them ends the text."""
    stream = TextStream(ByteTokenizer().detokenizer(), ["."], min_tokens=3)

    pieces = [stream.step(ord(char)) for char in "a.b."]

    assert pieces == ["a", ".", "b", ""]
    assert stream.is_stopped
    assert stream.finish() == ""


def test_a_held_piece_is_the_tail_when_nothing_comes_of_it() -> None:
    """A stream that ends in half a stop string and half a character gives both at the end."""
    stream = TextStream(ByteTokenizer().detokenizer(), ["STOP"])

    pieces = [stream.step(value) for value in b"ok ST\xe2\x82"]

    assert pieces == ["o", "k", " ", "", "", "", ""]
    assert stream.finish() == "ST\ufffd"


@given(st.binary(max_size=40))
def test_bytes_decode_as_python_decodes_them_whole(data: bytes) -> None:
    """The byte tokenizer of the mock gives what one decode of all bytes gives."""
    detokenizer = ByteDetokenizer(lambda value: bytes([value]))

    assert "".join(in_pieces(detokenizer, list(data))) == data.decode("utf-8", "replace")


def test_the_corpus_is_not_one_token_per_character() -> None:
    """The tests above are worth something only if characters are really cut."""
    assert len(VOCABULARY.encode("日本語👍🏽", is_raw=False)) > 6
