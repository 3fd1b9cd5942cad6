"""Files of vectors: NumPy's `.npy`, or lines of JSON. Nobody finds half of one: it gets its name when it is whole.

The header of `.npy` is written by hand (NEP 1, version 1.0), since a client has no numpy.
"""

from __future__ import annotations

import contextlib
import os
import sys
from array import array
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from ...protocol.errors import ZmqrtError

Write = Callable[[str, "array[float]"], None]
"""Takes a text and its vector, in their order."""
SUFFIXES: Final = (".npy", ".jsonl")
_ALIGN: Final = 64


@contextlib.contextmanager
def vector_file(path: Path, count: int) -> Generator[Write]:
    """Open a file for so many vectors; what it is, its suffix says. Left by an error, there is no file.

    Raises:
        ZmqrtError: it cannot be written, or something stands there that is no file.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    if target.exists() and not target.is_file():
        raise ZmqrtError(f"{path} is no file, and is not replaced by one; for a pipe leave --output out")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield _npy(file, count) if path.suffix == ".npy" else _json_lines(file)
        partial.replace(target)
    except OSError as error:
        raise ZmqrtError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def to_row(text: str, vector: array[float]) -> dict[str, object]:
    """Return a vector as a line of JSON has it: nine digits say a 32-bit float exactly."""
    return {"text": text, "embedding": [float(f"{number:.9g}") for number in vector]}


def _npy(file: BinaryIO, count: int) -> Write:
    def write(_text: str, vector: array[float]) -> None:
        if not file.tell():
            file.write(npy_header(count, len(vector)))
        numbers = array("f", vector)
        if sys.byteorder == "big":
            numbers.byteswap()
        file.write(numbers.tobytes())

    return write


def npy_header(rows: int, columns: int) -> bytes:
    """Return what stands before the numbers: little-endian 32-bit floats, row by row."""
    said = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    padded = said.ljust((len(said) + 11 + _ALIGN - 1) // _ALIGN * _ALIGN - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("ascii")


def _json_lines(file: BinaryIO) -> Write:
    encode = msgspec.json.Encoder().encode

    def write(text: str, vector: array[float]) -> None:
        file.write(encode(to_row(text, vector)) + b"\n")

    return write
