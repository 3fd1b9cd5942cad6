"""Reads and writes JSON; the same mistake in what came gets the same sentence on every path. Pure."""

from __future__ import annotations

import json
import re
from typing import Final, NoReturn

import msgspec

from ..protocol.errors import PortableError

MEDIA_TYPE: Final = "application/json; charset=utf-8"
"""Windows PowerShell 5.1 guesses ISO-8859-1 without the charset."""
KEEP_ALIVE: Final = b": still here\n"
"""A comment without the empty line that would end an event: some readers take every empty line for one, and choke on
its missing data. So it belongs to the next event, where it is a line that says nothing."""
_BOM: Final = b"\xef\xbb\xbf"
_SURROGATE: Final = "a lone surrogate is not a character; check that each \\ud83d is followed by its second half"
_HALF: Final = re.compile(r"\\u[dD][89a-fA-F]")
_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_CONSTANT: Final = re.compile(r"\b(NaN|Infinity)\b")
_NEAR: Final = 12
"""So much of a stranger's words on each side is repeated to them."""
_MOST_DIGITS: Final = 400
"""More digits than any double has before its point."""
_LINE_ENDS: Final = tuple((chr(code).encode(), b"\\u%04x" % code) for code in (0x85, 0x2028, 0x2029))
_decoder: Final = msgspec.json.Decoder()
_encoder: Final = msgspec.json.Encoder()


class NotJsonError(PortableError):
    """400: the bytes are not JSON in UTF-8."""


def encode(value: object) -> bytes:
    """Write JSON in UTF-8, without the three characters beyond ASCII that many a reader takes for the end of a line.

    JSON and server-sent events allow them, but whoever reads a stream by `str.splitlines` (httpx's `iter_lines`,
    `requests` with `decode_unicode`) would cut an event in two there.
    """
    encoded = _encoder.encode(value)
    if encoded.isascii():
        return encoded
    for character, escaped in _LINE_ENDS:
        if character in encoded:
            encoded = encoded.replace(character, escaped)
    return encoded


def event(name: str, data: object, *, id_: str = "") -> bytes:
    """Write one server-sent event; its data is one line of JSON."""
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {name}\ndata: ".encode() + encode(data) + b"\n\n"


def read_value(body: bytes) -> object:
    """Return what a JSON body holds. A number beyond a double is read as infinite. Raises NotJsonError."""
    return _value(_text(body))


def _text(body: bytes) -> str:
    body = body.removeprefix(_BOM)
    if not body.strip():
        raise NotJsonError('the body is empty; send JSON such as {"prompt": "Hello"}')
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJsonError(
            f"the body is not UTF-8 (byte {error.start}); Windows PowerShell 5.1 sends ISO-8859-1 unless told: "
            "-Body ([Text.Encoding]::UTF8.GetBytes($json)) -ContentType 'application/json; charset=utf-8'"
        ) from None


def _value(text: str) -> object:
    """Refuse what is not JSON anywhere, also behind a wrong field; NaN and lone surrogates are not JSON."""
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError:
        return _value_with_huge_numbers(text)
    except msgspec.DecodeError as error:
        raise NotJsonError(_why_not(str(error), text)) from None
    except RecursionError:
        raise NotJsonError("the body is not valid JSON: nested too deeply") from None


def _value_with_huge_numbers(text: str) -> object:
    """Read what msgspec does not, so that the field with the number can be named; the rest is as strict as there."""
    try:
        value: object = json.loads(text, parse_constant=_no_constant, parse_int=_int)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise NotJsonError(f"the body is not valid JSON: {_SURROGATE}") from None
    except json.JSONDecodeError as error:
        raise NotJsonError(_at(len(text[: error.pos].encode()), text)) from None
    except RecursionError:
        raise NotJsonError("the body is not valid JSON: nested too deeply") from None
    return value


def _int(digits: str) -> float:
    """Python refuses to read an integer of many digits, which takes quadratic time."""
    return int(digits) if len(digits) < _MOST_DIGITS else float(f"{digits[:2]}e999")


def _no_constant(name: str) -> NoReturn:
    raise NotJsonError(f"the body is not valid JSON: {name} is no number there; null may be what is meant")


def _why_not(reason: str, text: str) -> str:
    # msgspec calls a lone surrogate "truncated", which would send its author looking at the wrong end.
    if _HALF.search(text) and ("truncated" in reason or "surrogate" in reason):
        return f"the body is not valid JSON: {_SURROGATE}"
    if "truncated" in reason:
        return "the body is not valid JSON: it ends in the middle of a value"
    found = _BYTE.search(reason)
    return _at(int(found[1]), text) if found else "the body is not valid JSON"


def _at(byte: int, text: str) -> str:
    near = text.encode()[max(0, byte - _NEAR) : byte + _NEAR].decode("utf-8", "ignore")
    hint = "; NaN and Infinity are no numbers there" if _CONSTANT.search(near) else ""
    return f"the body is not valid JSON at byte {byte}, near {json.dumps(near, ensure_ascii=False)}{hint}"
