"""Bytes to JSON text, or the words of what is wrong: the same mistakes get the same answer on every path. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from ..protocol.errors import PortableError

_BOM: Final = b"\xef\xbb\xbf"
_decoder: Final = msgspec.json.Decoder()


class NotJsonError(PortableError):
    """400: the bytes are not JSON in UTF-8."""


def read_json(body: bytes) -> str:
    """Return the text of a body that is JSON as a whole, whatever its fields. Raises NotJsonError."""
    text = _text(body)
    _check(text)
    return text


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


def _check(text: str) -> None:
    """Refuse what is not JSON anywhere, also behind a wrong field; NaN and lone surrogates are not JSON."""
    try:
        _decoder.decode(text)
    except msgspec.ValidationError:
        return  # a number beyond a double: the typed decoder, which runs next, names its field
    except msgspec.DecodeError as error:
        raise NotJsonError(_why_not(str(error), text)) from None
    except RecursionError:
        raise NotJsonError("the body is not valid JSON: nested too deeply") from None


def _why_not(reason: str, text: str) -> str:
    # msgspec calls a lone surrogate "truncated", which would send its author looking at the wrong end.
    if re.search(r"\\u[dD][89a-fA-F]", text) and ("truncated" in reason or "surrogate" in reason):
        reason += "; check that each \\ud83d is followed by its second half: a lone surrogate is not a character"
    return f"the body is not valid JSON: {reason}"
