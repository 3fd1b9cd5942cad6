"""Takes an answer apart as its text comes: what is said, what was thought, and which tools are called.

Models write calls and thoughts as markup in their text, each family in its own. A node passes the text on as it is,
and whoever reads the stream for a program feeds it to an `AnswerParser`: what comes of it depends on the text alone,
however that was cut and whichever node or bridge it came through, so an answer that goes on elsewhere has the same
calls with the same places and ids. Known families: Hermes, Qwen and GLM (`<tool_call>`), Qwen's coder and Llama
(`<function=`), Llama (`<|python_tag|>`, or bare JSON), Mistral (`[TOOL_CALLS]`), DeepSeek, gpt-oss (Harmony's
channels); thoughts in `<think>` or `[THINK]`. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import Final, Literal, NamedTuple

from .thoughts import HARMONY, HEADS, THOUGHTS
from .tool_calls import DEEPSEEK, FoundCall, JsonScan, calls_in

_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"
_FUNCTION: Final = "<function="
_FUNCTION_CLOSE: Final = "</function>"
_MISTRAL: Final = "[TOOL_CALLS]"
_LLAMA: Final = "<|python_tag|>"
_BODY: Final = "<|message|>"
_ENDS: Final = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_LONGEST_END: Final = max(map(len, _ENDS))
_DEEPSEEK_OPEN, _DEEPSEEK_CLOSE = "<\uff5ctool\u2581call\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581end\uff5c>"
_DEEPSEEK_AROUND: Final = ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581end\uff5c>")
_NOTHING: Final = (_CLOSE, *_DEEPSEEK_AROUND)
"""What stands around calls, or closes one whose beginning a model forgot."""
MARKUP: Final = frozenset(
    {_OPEN, _CLOSE, _MISTRAL, _LLAMA, *HARMONY, *THOUGHTS, *THOUGHTS.values()}
    | {"[ARGS]", "[CALL_ID]", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"}
    | {_DEEPSEEK_OPEN, _DEEPSEEK_CLOSE, *_DEEPSEEK_AROUND, DEEPSEEK}
)
"""Texts of tokens that some tokenizers call special: without them nobody could tell a call from words."""
_DIRECT: Final = "to=functions."
"""How Harmony's header goes on where the prompt began it."""
_MOST_BLANK: Final = 256
"""White space that is held back, since it belongs to a mark and not to words if one follows it."""
_PIECE: Final = 4096
"""An answer that comes at once is read in pieces of so many characters: each step looks at all that is unread."""
_MISTRAL_JSON: Final = re.compile(rf"\{{|\[(?=\s{{0,{_MOST_BLANK}}}[{{\]])")
_WORDS: Final = re.compile(r"[^{}\[\]\s]++\s++[^{}\[\]]++")
"""Behind Mistral's mark: several words, and so no name of a tool."""
_BARE: Final = ('{"name":"', '{"type":"function","name":"')
"""How Llama begins a call that has no markup at all."""
_BRACE: Final = re.compile(r'\{(?=["\s]|\Z)')
"""Where a call without markup may begin."""
_BETWEEN: Final = re.compile(r"[\s;]*")
"""What stands between two of them."""
_HAS_ARGUMENTS: Final = re.compile(r'"(?:parameters|arguments)"\s*:')
_BARE_LOOK: Final = 64
_LONGEST_BARE: Final = 400
"""Characters within which a call without markup says that it is one, behind words."""
_TO: Final = re.compile(r"to=functions\.([A-Za-z0-9_.-]+)")
_CHANNEL: Final = re.compile(r"<\|channel\|>\s*(\w+)")
_ID_CHARS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


class Content(NamedTuple):
    """Words for the reader."""

    text: str


class Reasoning(NamedTuple):
    """What the model thought before it spoke."""

    text: str


class CalledTool(NamedTuple):
    """A call of a tool: the text of its arguments is as the model wrote it; `is_whole`: nothing of it was cut off."""

    number: int
    name: str
    arguments: str
    is_whole: bool = True


Delta = Content | Reasoning | CalledTool
Tools = Collection[str] | Mapping[str, Collection[str]]
"""Names of tools; with which of their arguments are texts, where that is known."""
_State = Literal[
    "start", "text", "thought", "plain", "call", "function", "mistral", "llama", "bare", "deepseek", "head", "body"
]
_CALLS: Final[dict[str, _State]] = {
    _OPEN: "call",
    _FUNCTION: "function",
    _MISTRAL: "mistral",
    _LLAMA: "llama",
    _DEEPSEEK_OPEN: "deepseek",
    "{": "bare",
}
_CALLS_IN_THOUGHTS: Final = (_OPEN, _MISTRAL, _DEEPSEEK_AROUND[0])
"""What ends thoughts that a model forgot to close."""


def call_id(rid: bytes, index: int) -> str:
    """Name a call of an answer: the same at every bridge. Nine letters, since Mistral's templates take no others."""
    place = index.to_bytes(2 if index < 1 << 16 else 8, "big")
    number = int.from_bytes(hashlib.sha256(rid + place).digest()[:8], "big")
    letters = ""
    for _ in range(9):
        number, at = divmod(number, len(_ID_CHARS))
        letters += _ID_CHARS[at]
    return letters


class AnswerParser:
    """One answer. Without `tools` only thoughts are told apart: whoever asked for no tool gets its text as it is.

    `tools` may tell of each which of its arguments are texts (`tool_calls.text_arguments`): families that write
    arguments one by one do not say whether `12` is one.

    Each state says what the unread text belongs to:
    start    Nothing was said: thoughts, or a call without markup, may begin here.
    text     Words; markup may begin anywhere.
    thought  Thoughts, until their closing tag.
    plain    Words to the end, whatever they look like.
    call, function, mistral, llama, bare, deepseek   A call of that family, read when it is whole.
    head     Harmony's header of a message.
    body     Harmony's message, of the channel that its header named.
    """

    def __init__(self, tools: Tools = ()) -> None:
        self._tools = frozenset(tools)
        self._texts: Mapping[str, Collection[str]] = tools if isinstance(tools, Mapping) else {}
        self._bare_calls = tuple(f'{begin}{name}","parameters":' for name in self._tools for begin in _BARE)
        self._begins = (*THOUGHTS, *((_DIRECT,) if tools else HEADS))
        self._has_thought = False
        openers = (_OPEN, _FUNCTION, _MISTRAL, _LLAMA, _DEEPSEEK_OPEN, *_NOTHING, *HEADS)
        self._openers: tuple[str, ...] = openers if tools else ()
        self._state: _State = "start"
        self._unread: str = ""
        self._closers: tuple[str, ...] = ()
        self._channel: Callable[[str], Delta] = Content
        self._call_name = ""
        self._calls = 0
        self._json = JsonScan()
        self._looked = 0
        """How much of a call was looked through for its end: none is read twice, however small the pieces."""
        self._is_over = False
        self.is_cut_short = False
        """Whether the answer ended within a call."""

    @property
    def has_called(self) -> bool:
        """Whether the answer called a tool."""
        return self._calls > 0

    def feed(self, text: str) -> list[Delta]:
        """Take a piece of the answer; return what is certain by now."""
        if self._state == "plain" and not self._unread:
            return [Content(text)] if text else []
        deltas: list[Delta] = []
        for at in range(0, len(text), _PIECE):
            unread, self._unread = self._unread, ""
            unread += text[at : at + _PIECE]  # in place; a field would be copied with each piece of a long call
            self._unread = unread
            del unread  # so that nothing but the field holds it the next time
            deltas += self._run()
        return deltas

    def finish(self) -> list[Delta]:
        """Return what waited for more: the answer is over."""
        self._is_over = True
        return list(self._run())

    def _run(self) -> Iterator[Delta]:
        while True:
            before = self._state, len(self._unread)
            yield from self._step()
            if (self._state, len(self._unread)) == before:
                return

    def _step(self) -> Iterator[Delta]:  # noqa: C901 - a table would be made anew for each answer
        match self._state:
            case "start":
                return self._start()
            case "text":
                return self._text()
            case "thought":
                return self._thought()
            case "plain":
                return self._plain()
            case "call":
                return self._tagged(_CLOSE)
            case "function":
                return self._tagged(_FUNCTION_CLOSE)
            case "mistral":
                return self._mistral()
            case "llama":
                return self._llama()
            case "bare":
                return self._bare()
            case "deepseek":
                return self._tagged(_DEEPSEEK_CLOSE)
            case "head":
                return self._head()
            case "body":
                return self._body()

    # --- words and thoughts ------------------------------------------------------------------------------------------

    def _start(self) -> Iterator[Delta]:
        text = self._unread.lstrip()
        if self._has_thought:
            self._unread = text
        if len(self._unread) - len(text) > _MOST_BLANK:
            self._state = "text" if self._tools else "plain"
            return
        if not text and not self._is_over:
            return
        for opener, closer in THOUGHTS.items():
            if text.startswith(opener):
                self._unread, self._state, self._has_thought = text[len(opener) :], "thought", True
                self._closers = (closer, *_CALLS_IN_THOUGHTS) if self._tools else (closer,)
                return
        if not self._is_over and any(begin.startswith(text) for begin in self._begins):
            return
        if not self._tools and text.startswith(HEADS):
            self._openers, self._state = HEADS, "text"
        elif self._tools and text.startswith(_DIRECT):
            self._enter("head")
        elif self._tools and self._may_be_bare(text):
            self._enter("bare")
        else:
            self._state = "text" if self._tools else "plain"
        yield from ()

    def _thought(self) -> Iterator[Delta]:
        before, closer = self._until(self._closers)
        if before:
            yield Reasoning(before)
        if closer == self._closers[0]:
            self._unread = self._unread[len(closer) :]
            self._state = "start"
        elif closer:
            self._state, self._openers = "text", (*self._openers, self._closers[0])
        elif self._is_over:
            self._state = "plain"

    def _plain(self) -> Iterator[Delta]:
        text, self._unread = self._unread, ""
        if text:
            yield Content(text)

    def _text(self) -> Iterator[Delta]:
        words, opener = self._until(self._openers, is_text=True)
        if words:
            yield Content(words)
        if opener:
            self._unread = self._unread.lstrip()
            if opener in HEADS:
                self._enter("head")
                return
            if opener not in (_FUNCTION, "{"):  # which are part of what is read
                self._unread = self._unread[len(opener) :]
            if opener in _CALLS:
                self._enter(_CALLS[opener])
        elif self._is_over and self._unread:
            text, self._unread = self._unread, ""
            if not (self._calls and text.isspace()):
                yield Content(text)

    def _until(self, texts: tuple[str, ...], *, is_text: bool = False) -> tuple[str, str]:
        """Take the text before the first of some markers, and name that; else all that can begin none of them.

        `is_text`: a call without markup counts too, and what is between words and a marker is held back with it, and
        at the end of all.
        """
        text, markers = self._unread, _markers(texts)
        found = markers.pattern.search(text)
        if found is not None:
            at, marker = found.start(), found[0]
        else:
            at, marker = (len(text) if self._is_over else markers.beginning_in(text)), ""
        if is_text:
            bare_at, is_call = self._bare_call(text[:at], is_open=not marker and not self._is_over)
            if bare_at < at:
                at, marker = bare_at, "{" if is_call else ""
            at = max(len(text[:at].rstrip()), at - _MOST_BLANK)
        self._unread = text[at:]
        return text[:at], marker

    def _bare_call(self, text: str, *, is_open: bool) -> tuple[int, bool]:
        """Find where a call without markup begins behind words, or may do so when more has come; else the end."""
        for found in _BRACE.finditer(text) if self._bare_calls else ():
            at = found.start()
            compact = "".join(text[at : at + _LONGEST_BARE].split())
            if not self._may_be_bare(compact):
                continue
            if compact.startswith(self._bare_calls):
                return at, True
            is_short = at + _LONGEST_BARE > len(text)
            if is_open and is_short and any(call.startswith(compact) for call in self._bare_calls):
                return at, False
        return len(text), False

    # --- calls -------------------------------------------------------------------------------------------------------

    def _tagged(self, closer: str) -> Iterator[Delta]:
        """Read until the closing tag, which may also stand inside a JSON string."""
        body = self._unread_call()
        if not body and not self._is_over:
            return
        is_json = body.startswith("{")
        begin = self._json.end_in(body) if is_json else self._looked
        self._looked = max(0, len(body) - len(closer))
        end = -1 if begin is None else body.find(closer, begin)
        if end >= 0:
            self._unread = body[end + len(closer) :]
            yield from self._end_calls(body[:end])
        elif self._is_over:
            yield from self._cut_short()

    def _mistral(self) -> Iterator[Delta]:
        """Read an array of calls, or a name and its arguments."""
        body = self._unread_call()
        begin = _MISTRAL_JSON.search(body, self._looked)
        end = self._json.end_in(body, begin.start()) if begin else None
        if begin is None:  # a bracket at the end may still begin one
            tail = body[-_MOST_BLANK - 1 :]
            said = tail.rstrip()
            self._looked = len(body) - (len(tail) - len(said) + 1 if said.endswith("[") else 0)
        if begin is not None and end is not None:
            self._unread = body[end:]
            found = self._found(body[:end])
            yield from self._end_calls(body[:end] if found else body[begin.start() : end])
        elif self._is_over:
            yield from self._cut_short()

    def _llama(self) -> Iterator[Delta]:
        """Read all that follows the tag: several calls stand behind one another."""
        if self._is_over:
            yield from self._cut_short()

    def _bare(self) -> Iterator[Delta]:
        """JSON from the first character on: a call if it names a tool, else words that look like one."""
        between = _BETWEEN.match(self._unread) if self._calls else None
        text = self._unread[between.end() if between else 0 :]
        is_far = len(self._unread) - len(text) > _MOST_BLANK
        if not text and not is_far and not self._is_over:
            return
        if is_far or not self._may_be_bare(text.lstrip()):
            self._state = "text"
            return
        end = self._json.end_in(self._unread)
        if end is None and not self._is_over:
            return
        text = text if end is None else text[: len(text) - len(self._unread) + end]
        found = self._found(text) if _HAS_ARGUMENTS.search(text) else []
        if found and found[0].name in self._tools:
            self._unread = "" if end is None else self._unread[end:]
            self._json = JsonScan()
            yield from self._told(found, is_over=end is None)
        else:
            at = self._unread.find("{") + 1  # so that it is not looked at again
            yield Content(self._unread[:at])
            self._unread, self._state = self._unread[at:], "text"

    def _may_be_bare(self, text: str) -> bool:
        compact = "".join(text[:_BARE_LOOK].split())
        return any(begin.startswith(compact) or compact.startswith(begin) for begin in _BARE) and bool(compact)

    def _unread_call(self) -> str:
        """Return what is unread of a call, without what is blank before it."""
        if self._unread[:1].isspace():
            self._unread = self._unread.lstrip()
        return self._unread

    def _enter(self, state: _State) -> None:
        self._state, self._json, self._looked = state, JsonScan(), 0

    def _found(self, body: str) -> list[FoundCall]:
        return calls_in(body, self._texts)

    def _end_calls(self, body: str) -> Iterator[Delta]:
        found = self._found(body)
        if found:
            yield from self._told(found)
        elif body.strip():
            yield Content(body.strip())  # without its tags: nobody could call it
        self._state = "text"

    def _cut_short(self) -> Iterator[Delta]:
        """Tell a call that the end of the answer cut off, if it names its tool; half a name helps nobody."""
        body, self._unread = self._unread, ""
        body = body.lstrip()
        is_json = body.startswith(("{", "["))
        is_named = self._state != "mistral" or "{" in body
        found = self._found(body) if is_named else []
        if (self._state == "llama" and not is_json) or (self._state == "mistral" and _WORDS.fullmatch(body)):
            yield from self._end_calls(body)
        else:
            yield from self._told([one._replace(is_whole=one.is_whole and is_json) for one in found], is_over=True)
            self.is_cut_short |= not found and bool(body.strip())
        self._state = "text"

    def _told(self, found: list[FoundCall], *, is_over: bool = False) -> Iterator[Delta]:
        """Tell calls; only at the end of the answer one can have been cut off: others are as the model wrote them."""
        for one in found:
            is_whole = one.is_whole or not is_over
            self.is_cut_short |= not is_whole
            yield CalledTool(self._calls, one.name, one.arguments, is_whole)
            self._calls += 1

    # --- Harmony -----------------------------------------------------------------------------------------------------

    def _head(self) -> Iterator[Delta]:
        at = self._unread.find(_BODY, self._looked)
        if at < 0:
            self._looked = max(0, len(self._unread) - len(_BODY))
            if self._is_over:
                self._unread = ""
            return
        head, self._unread = self._unread[:at], self._unread[at + len(_BODY) :]
        to, channel = _TO.search(head), _CHANNEL.search(head)
        self._call_name, self._json, self._looked = to[1] if to and self._tools else "", JsonScan(), 0
        self._channel = Reasoning if channel and channel[1] == "analysis" else Content
        self._state = "body"
        yield from ()

    def _body(self) -> Iterator[Delta]:
        if self._call_name:
            yield from self._harmony_call()
            return
        words, end = self._until(_ENDS)
        if words:
            yield self._channel(words)
        if end:
            self._unread = self._unread if end == "<|start|>" else self._unread[len(end) :]
            self._state = "text"

    def _harmony_call(self) -> Iterator[Delta]:
        text = self._unread_call()
        if not text and not self._is_over:
            return
        is_json = text.startswith(("{", "["))
        end = self._json.end_in(text) if is_json else None
        if not is_json:
            found = (text.find(one, self._looked) for one in _ENDS)
            end = min((at for at in found if at >= 0), default=None)
            self._looked = max(0, len(text) - _LONGEST_END)
        if end is None and not self._is_over:
            return
        arguments, rest = text[:end], text[end:] if end is not None else ""
        blank, rest = len(rest), rest.lstrip()
        ends = _ENDS if blank - len(rest) <= _MOST_BLANK else ()
        marker = next((one for one in ends if rest.startswith(one)), "")
        if not marker and not self._is_over and any(one.startswith(rest) for one in ends):
            return
        self._unread = rest if marker == "<|start|>" else rest[len(marker) :]
        self._state, name, self._call_name = "text", self._call_name, ""
        call = FoundCall(name, arguments.strip() or "{}", is_whole=not is_json)
        yield from self._told([call], is_over=end is None)


class _Markers:
    """Some markers, to be found in a text by looking at it once."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        self._texts = texts
        self._first = frozenset(text[0] for text in texts)
        self._longest = max(map(len, texts))
        self.pattern: Final = re.compile("|".join(map(re.escape, texts)))

    def beginning_in(self, text: str) -> int:
        """Return where the end of a text may be the beginning of a marker; its length if it is none."""
        for at in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[at] in self._first and any(marker.startswith(text[at:]) for marker in self._texts):
                return at
        return len(text)


_markers: Final = cache(_Markers)
