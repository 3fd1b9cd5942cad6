"""Text that is cut anywhere and goes on elsewhere: scripts and emoji whose characters are several tokens each.

Every cut of every text, with the bytes of the mock, a byte-level file, and the tokenizer of SmolLM2.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer as HfTokenizer

from support.tiny import tiny_model
from zmqrt.worker.detokenizer import TextStream
from zmqrt.worker.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

TEXTS = {
    "chinese": "床前明月光、疑是地上霜。",
    "japanese": "カタカナと漢字、ﾊﾝｶｸ。",
    "korean": "안녕 \u1112\u1161\u11ab\u1100\u1173\u11af 각",
    "beyond the first plane": "𠮷野家 𒀀𒀁 🀄",
    "families": "a 👩\u200d👩\u200d👧\u200d👦 and 🧑\u200d🚀 and 🏳\ufe0f\u200d🌈.",
    "skin tones": "👍🏽👋🏿 👩🏾\u200d🚒 ok",
    "flags and keycaps": "🇫🇷🇯🇵 1\ufe0f\u20e3#\ufe0f\u20e3",
    "combining marks": "e\u0301 n\u0303 Z\u0351\u036b\u0343a\u0363 \u1e69 s\u0323\u0307",
    "devanagari": "क्षत्रिय नमस्ते",
    "thai and arabic": "สวัสดี \u0671\u0644\u0633\u0651\u064e\u0644\u064e\u0627\u0645\u064f",
}
KINDS = ["bytes", "file", pytest.param("smollm2", marks=pytest.mark.realmodel)]


@cache
def known(kind: str) -> tuple[Tokenizer, Callable[[Sequence[int]], str]]:
    """Return a vocabulary, and what decodes all ids at once without any of our code."""
    if kind == "bytes":
        return ByteTokenizer(), lambda ids: bytes(one for one in ids if one < 256).decode("utf-8", "replace")
    if kind == "file":
        with tempfile.TemporaryDirectory() as folder:
            return of_files(tiny_model(Path(folder)))
    from zmqrt.worker.model_sources import resolve

    return of_files(resolve("smollm2-135m", progress=lambda _phase, _percent: None).path)


def of_files(folder: Path) -> tuple[Tokenizer, Callable[[Sequence[int]], str]]:
    """Read a model's tokenizer."""
    tokenizer: HfTokenizer = HfTokenizer.from_file(str(folder / "tokenizer.json"))
    return load_tokenizer(folder), lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def go_on(kind: str, ids: Sequence[int], cut: int, stops: Sequence[str] = ()) -> tuple[list[str], bool]:
    """Return the pieces from `cut` on, the tail behind them, and whether a stop string ended it."""
    stream = TextStream(known(kind)[0].detokenizer(), stops)
    pieces: list[str] = []
    for at, token_id in enumerate(ids):
        piece = stream.step(token_id)
        if at >= cut:
            pieces.append(piece)
        if stream.is_stopped:
            break
    return [*pieces, stream.finish()], stream.is_stopped


def as_a_model_might(kind: str, text: str) -> list[list[int]]:
    """Tokens of a text: as the tokenizer has them, character by character, and in an order that makes no text."""
    vocabulary = known(kind)[0]
    whole = vocabulary.encode(text, is_raw=False)
    by_character = [token_id for char in text for token_id in vocabulary.encode(char, is_raw=False)]
    return [whole, by_character, random.Random(text).sample(whole, len(whole))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_cut_anywhere_the_pieces_make_one_decode_of_all_ids(kind: str, text: str) -> None:
    """What was delivered before the cut and what a fresh stream gives after it: nothing twice, nothing lost."""
    decode = known(kind)[1]
    for ids in as_a_model_might(kind, text):
        undisturbed, _ = go_on(kind, ids, 0)
        assert "".join(undisturbed) == decode(ids)
        for cut in range(len(ids) + 1):
            resumed, _ = go_on(kind, ids, cut)
            assert undisturbed[:cut] + resumed == undisturbed, f"cut after {cut} of {len(ids)}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_stop_string_is_found_across_every_border(kind: str, text: str) -> None:
    """Three code points from anywhere, half of them delivered before the cut or none: the text ends before them."""
    vocabulary, decode = known(kind)
    ids = vocabulary.encode(text, is_raw=False)
    whole = decode(ids)
    assert whole == text
    for begin in range(len(text) - 2):
        stop = text[begin : begin + 3]
        undisturbed, is_stopped = go_on(kind, ids, 0, [stop])
        assert is_stopped
        assert "".join(undisturbed) == whole[: whole.find(stop)]
        for cut in range(len(undisturbed) - 1):
            assert go_on(kind, ids, cut, [stop]) == (undisturbed[cut:], True), f"{stop!r} cut after {cut}"


@pytest.mark.parametrize("kind", KINDS)
def test_these_texts_have_characters_of_several_tokens(kind: str) -> None:
    """The tests above are worth something only if most cuts fall inside of one."""
    vocabulary = known(kind)[0]
    for name, text in TEXTS.items():
        inside = sum(len(vocabulary.encode(char, is_raw=False)) > 1 for char in text)
        print(f"{name}: {inside} of {len(text)} code points are more than one token")
        assert inside > 0
