"""From text to token ids and back for one model: what the agent needs of a tokenizer, whichever it is.

Two kinds: `FileTokenizer` reads a model directory (`tokenizer.json` and its configuration) through the `tokenizers`
library; `ByteTokenizer` needs no file and serves the mock. Neither imports torch or transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import msgspec

from ..protocol import thoughts
from ..protocol.errors import ErrorKind, PortableError, request_error
from ..protocol.tasks import ChatMessage, Rendering, Tool
from .detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from .model_files import ModelError, entry, read_json_object
from .special_tokens import complete, end_ids, read_tokenizer_config, special_tokens
from .tool_prompt import in_words, is_in_words, unescaped

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

    from .chat_template import ChatTemplate


_LONG_CHARS: Final = 64 << 10
"""From here on it is worth its while to look whether a text can fit at all."""
_USUAL: Final = Rendering()
NO_MARKS: Final[frozenset[str]] = frozenset()
"""Of what is said, and nothing else."""
ANY: Final = 1 << 62
"""As many tokens as there may be."""


class TooLongError(PortableError):
    """A text is so long that it has too many tokens, whatever they are; at least so many."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"at least {tokens} tokens")
        self.tokens = tokens


class Tokenizer(Protocol):
    """Text <-> ids of one model."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        ...

    @property
    def has_template(self) -> bool:
        """Whether the model knows conversations; without a template a prompt is plain text to go on from."""
        ...

    def encode(self, text: str, *, is_raw: bool, most: int = ANY) -> list[int]:
        """Encode plain text. `is_raw`: the caller speaks the model's own language, special tokens included.

        Raises TooLongError, without encoding it, if it is plain that there are more than `most` tokens in it.
        """
        ...

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        *,
        rendering: Rendering = _USUAL,
        most: int = ANY,
    ) -> list[int]:
        """Render a conversation and encode it; special tokens come from the template alone. Raises TooLongError."""
        ...

    def detokenizer(self, marks: frozenset[str] = NO_MARKS) -> Detokenizer:
        """Return a fresh detokenizer for one stream; special tokens that are among the `marks` have their text."""
        ...

    def spell(self, token_id: int) -> bytes:
        """Return the bytes of one token by itself; none for a special one."""
        ...

    def is_known(self, token_id: int) -> bool:
        """Whether the model has a token of this id."""
        ...


class ByteTokenizer:
    """One token per byte (0..255), then BOS, EOS and a marker per role. Markers have no text, so none can be forged."""

    BOS = 256
    EOS = 257
    MARKERS: Final = {"system": 258, "user": 259, "assistant": 260, "tool": 261, "developer": 258}
    SIZE = 262

    has_template = True
    eos_ids = frozenset({EOS})

    def encode(self, text: str, *, is_raw: bool, most: int = ANY) -> list[int]:  # noqa: ARG002 - nothing is special in bytes
        """BOS, then the bytes."""
        if len(text) > max(most, _LONG_CHARS):
            raise TooLongError(1 + len(text))
        return [self.BOS, *_utf8(text)]

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        *,
        rendering: Rendering = _USUAL,
        most: int = ANY,
    ) -> list[int]:
        """BOS; for each turn the marker of its role, its bytes and EOS; then the assistant's marker."""
        messages = in_words(messages, tools)
        least = 2 + sum(2 + len(message.content) for message in messages)
        if least > max(most, _LONG_CHARS):
            raise TooLongError(least)
        ids = [self.BOS]
        for message in messages:
            ids += (self.MARKERS[message.role], *_utf8(message.content), self.EOS)
        if rendering.continue_final_message:
            return ids[:-1]
        return [*ids, self.MARKERS["assistant"]] if rendering.add_generation_prompt else ids

    def detokenizer(self, marks: frozenset[str] = NO_MARKS) -> Detokenizer:  # noqa: ARG002 - nothing is special in bytes
        """Bytes as they are; markers have no text."""
        return ByteDetokenizer(self.spell)

    def spell(self, token_id: int) -> bytes:
        """Return its byte."""
        return _BYTES[token_id] if token_id < 256 else b""

    def is_known(self, token_id: int) -> bool:
        """Whether the id is a byte or a marker."""
        return 0 <= token_id < self.SIZE


_BYTES: Final = [bytes([value]) for value in range(256)]


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


class FileTokenizer:
    """A tokenizer of the `tokenizers` library with its model's chat template and EOS ids."""

    def __init__(
        self,
        tokenizer: HfTokenizer,
        *,
        template: ChatTemplate | None = None,
        eos_ids: frozenset[int] = frozenset(),
        rows: int = 0,
        has_template: bool | None = None,
    ) -> None:
        """`rows`: how many ids the model has, if that is known; a tokenizer may name more than were ever trained."""
        from tokenizers import Tokenizer as HfTokenizer

        from .chat_template import Shield

        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()  # an embedding model's file truncates silently
        self._tokenizer.no_padding()
        self._ordinary: HfTokenizer = HfTokenizer.from_str(tokenizer.to_str())
        """The same vocabulary, blind to special tokens. A copy: the switch would be shared state between threads."""
        self._ordinary.encode_special_tokens = True
        self._template = template
        self._has_template = template is not None if has_template is None else has_template
        self.eos_ids = eos_ids
        added = tokenizer.get_added_tokens_decoder()
        self.markers: dict[int, str] = {token_id: token.content for token_id, token in added.items() if token.special}
        """Special tokens by what they are called; in a text they say nothing."""
        self._special_ids = frozenset(self.markers)
        self._added = {token.content: token_id for token_id, token in added.items()}
        self._marks: dict[frozenset[str], dict[int, bytes]] = {}
        """What tokens say that are marks, by which marks are wanted: most are special, and silent otherwise."""
        self._shield = Shield(self.markers.values())
        self._is_byte_level = _is_byte_level(tokenizer)
        self._keeps_bytes = cast("dict[str, Any]", json.loads(tokenizer.to_str())).get("normalizer") is None
        self._bytes: dict[int, bytes] = {}
        named = max([tokenizer.get_vocab_size(with_added_tokens=True), *(token_id + 1 for token_id in added)])
        self._size = min(named, rows) if rows else named

    @property
    def has_template(self) -> bool:
        """Whether the model directory has a chat template."""
        return self._has_template

    @property
    def knows_tools(self) -> bool:
        """Whether the chat template tells the model of tools; else it is told in words."""
        return self._template is not None and self._template.knows_tools

    def is_known(self, token_id: int) -> bool:
        """Whether the id is in the vocabulary."""
        return 0 <= token_id < self._size

    def encode(self, text: str, *, is_raw: bool, most: int = ANY) -> list[int]:
        """Encode with the model's own prefix (BOS where it has one)."""
        self._check_size(text, most)
        return _encode(self._tokenizer if is_raw else self._ordinary, text, add_special_tokens=True)

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        *,
        rendering: Rendering = _USUAL,
        most: int = ANY,
    ) -> list[int]:
        """Render and encode; what a user wrote never becomes a special token."""
        if self._template is None:
            raise request_error(
                ErrorKind.BAD_REQUEST, "messages: this model has no chat template; send a prompt instead"
            )
        if tools or not is_in_words(messages):
            messages, tools = unescaped(messages, tools)
            if not self._template.knows_tools:
                messages, tools = in_words(messages, tools), ()
        if not self._shield.is_needed(messages, tools, rendering):
            text = self._template.render(messages, tools, rendering)
            self._check_size(text, most)
            return _encode(self._tokenizer, text, add_special_tokens=False)
        broken, broken_tools, rendering, mark = self._shield.mark(messages, tools, rendering)
        text = self._template.render(broken, broken_tools, rendering)
        self._check_size(text.replace(mark, ""), most)
        return self._encode_marked(text, mark)

    def _check_size(self, text: str, most: int) -> None:
        """Refuse a text that is too long even if it were made of the longest tokens alone."""
        if len(text) < _LONG_CHARS or not self._is_byte_level or not self._keeps_bytes:
            return
        longest = max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)))  # of bytes, each is a character here
        least = len(text) // longest
        if least > most:
            raise TooLongError(least)

    def _encode_marked(self, text: str, mark: str) -> list[int]:
        """Encode; each stretch between special tokens that holds a mark is encoded again without it, as plain text."""
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        ids: list[int] = []
        stretch: list[int] = []
        begin = 0
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id not in self._special_ids:
                stretch.append(token_id)
                continue
            ids += self._plain(text[begin:start], mark, stretch)
            ids.append(token_id)
            stretch, begin = [], end
        return ids + self._plain(text[begin:], mark, stretch)

    def _plain(self, text: str, mark: str, ids: list[int]) -> list[int]:
        if mark not in text:
            return ids
        return _encode(self._ordinary, text.replace(mark, ""), add_special_tokens=False)

    def detokenizer(self, marks: frozenset[str] = NO_MARKS) -> Detokenizer:
        """Return the exact one for byte-level vocabularies, else the one that looks at a window."""
        if marks and marks not in self._marks:
            shown = thoughts.shown(marks, self._added)
            ids = [self._added[text] for text in shown]
            self._marks[marks] = {id_: _utf8(self.markers[id_]) for id_ in ids if id_ in self.markers}
        said = self._marks[marks] if marks else {}
        if self._is_byte_level:
            return ByteDetokenizer((lambda id_: said[id_] if id_ in said else self.spell(id_)) if said else self.spell)
        if said:
            return WindowDetokenizer(lambda ids: self._decode_markup(ids, said))
        return WindowDetokenizer(lambda ids: self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _decode_markup(self, ids: Sequence[int], said: Mapping[int, bytes]) -> str:
        shown = [token_id for token_id in ids if token_id not in self._special_ids or token_id in said]
        return self._tokenizer.decode(shown, skip_special_tokens=False)

    def spell(self, token_id: int) -> bytes:
        """Return the bytes of one token; of a vocabulary that is not made of bytes, what it reads like in a text."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._look_up(token_id)
        return found

    def _as_in_text(self, token_id: int) -> bytes:
        """Decode it behind another token: at the beginning of a text decoders drop the space that belongs to it."""
        if byte := _FALLBACK.fullmatch(self._tokenizer.id_to_token(token_id) or ""):
            return bytes([int(byte[1], 16)])
        alone, twice = (self._tokenizer.decode([token_id] * times, skip_special_tokens=True) for times in (1, 2))
        return _utf8(twice[len(alone) :] if twice.startswith(alone) else alone)

    def _look_up(self, token_id: int) -> bytes:
        """Undo byte-level BPE's alphabet; a token outside it (added by hand) is itself, a special one nothing."""
        if token_id in self._special_ids:
            return b""
        if not self._is_byte_level:
            return self._as_in_text(token_id)
        token: str | None = self._tokenizer.id_to_token(token_id)
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in token or "")
        except KeyError:
            return _utf8(token or "")


_FALLBACK: Final = re.compile(r"<0x([0-9A-F]{2})>")
"""How vocabularies that are not made of bytes name the single bytes that they have for everything else."""


def _encode(tokenizer: HfTokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Encode one text. As a batch of one, since only batches let other threads run meanwhile (3 s for 6 MB)."""
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return encoding.ids


def _is_byte_level(tokenizer: HfTokenizer) -> bool:
    decoder = cast("dict[str, Any]", json.loads(tokenizer.to_str())).get("decoder")
    return isinstance(decoder, dict) and cast("dict[str, Any]", decoder).get("type") == "ByteLevel"


def byte_alphabet() -> list[str]:
    """Write each byte as one printable character: itself where it is one, else from U+0100 on (GPT-2's alphabet)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value if value in printable else next(others)) for value in range(256)]


_BYTE_OF_CHAR: Final = {char: value for value, char in enumerate(byte_alphabet())}


@dataclass(frozen=True, slots=True)
class Known:
    """What a process that has tried the chat template tells of it, so that others need not."""

    eos_ids: frozenset[int]
    has_template: bool


def load_tokenizer(directory: Path, known: Known | None = None) -> FileTokenizer:
    """Read `tokenizer.json`, the chat template and the ids that end an answer. Blocks; call it off the loop.

    With what is `known` of the template it is left alone: prompts are then rendered elsewhere.

    Raises ModelError if they are no tokenizer, or not that of the model beside them.
    """
    tokenizer, config = read_tokenizer(directory)
    if known is not None:
        rows = _rows(directory)
        return FileTokenizer(tokenizer, eos_ids=known.eos_ids, rows=rows, has_template=known.has_template)
    template, ends = _template_and_ends(directory, tokenizer, config)
    return FileTokenizer(tokenizer, template=template, eos_ids=ends, rows=_rows(directory))


def end_ids_of(directory: Path) -> frozenset[int]:
    """Return the ids that end an answer of a model, for an engine, which needs no more. Raises ModelError."""
    if not (directory / "tokenizer.json").is_file():
        return frozenset()
    return _template_and_ends(directory, *read_tokenizer(directory))[1]


def read_tokenizer(directory: Path) -> tuple[HfTokenizer, dict[str, Any]]:
    """Read `tokenizer.json`, with special tokens that other files name, and its configuration. Raises ModelError."""
    from tokenizers import Tokenizer as HfTokenizer

    path = directory / "tokenizer.json"
    try:
        tokenizer: HfTokenizer = HfTokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ModelError(f"{path} is no tokenizer that can be read: {error}; fetch it again") from None
    config = read_tokenizer_config(directory)
    complete(tokenizer, directory, config)
    rows = _rows(directory)
    words = tokenizer.get_vocab_size(with_added_tokens=False)
    if rows and words > rows and _has_words_beyond(tokenizer, rows):
        raise ModelError(
            f"{path} knows {words} tokens, but the model has only {rows} (vocab_size in config.json): they are not of "
            "one model; fetch both again"
        )
    return tokenizer, config


def _template_and_ends(
    directory: Path, tokenizer: HfTokenizer, config: dict[str, Any]
) -> tuple[ChatTemplate | None, frozenset[int]]:
    source = _template_source(directory, config)
    template = _template(directory, source, special_tokens(config)) if source else None
    closer = closing_token(template, tokenizer) if template else None
    return template, end_ids(directory, tokenizer, config, [closer] if closer else [])


def _rows(directory: Path) -> int:
    """Return how many ids the model itself has; 0 if its configuration does not say."""
    config = read_json_object(directory / "config.json")
    found = (entry(config, "text_config", dict[str, Any], directory / "config.json") or config).get("vocab_size")
    return found if isinstance(found, int) and found > 0 else 0


def _has_words_beyond(tokenizer: HfTokenizer, rows: int) -> bool:
    """Whether ordinary text would get ids that the model lacks; some models come with a special token too many."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    return any(token_id >= rows and text not in added for text, token_id in vocab.items())


class _NamedTemplate(msgspec.Struct):
    """One of several templates of a model."""

    name: str
    template: str


def _template_source(directory: Path, config: dict[str, Any]) -> str:
    """Return the template: a file of its own, or in the configuration (one, or several by name)."""
    own = directory / "chat_template.jinja"
    if own.exists():
        return own.read_text(encoding="utf-8")
    found = config.get("chat_template") or ""
    if isinstance(found, list):
        try:
            named = msgspec.convert(found, list[_NamedTemplate])
        except msgspec.ValidationError as error:
            raise ModelError(f"{directory / 'tokenizer_config.json'}: chat_template: {error}") from None
        return next((each.template for each in named if each.name == "default"), "")
    if not isinstance(found, str):
        raise ModelError(f"{directory / 'tokenizer_config.json'}: chat_template is neither a text nor a list of them")
    return found


def _template(directory: Path, source: str, names: dict[str, Any]) -> ChatTemplate:
    """Make the template, and try it: one that renders no conversation at all would refuse every request."""
    from .chat_template import ChatTemplate, TemplateError

    own = directory / "chat_template.jinja"
    where = own if own.exists() else directory / "tokenizer_config.json"
    try:
        template = ChatTemplate(source, names)
        template.check()
    except TemplateError as error:
        raise ModelError(f"the chat template of {where} cannot be used: {error}; mend it or take it away") from None
    return template


def closing_token(template: ChatTemplate, tokenizer: HfTokenizer) -> str | None:
    """Find what the template writes behind an answer, if that is a token of its own: a model ends its turn with it."""
    tail = template.tail()
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    starts = [text for text in added if text and tail.startswith(text)]
    return max(starts, key=len, default=None)
