"""The golden vectors: the bytes of ZRT/1 do not change by accident."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.vectors import FILE, as_vector, examples
from zmqrt.protocol import codec
from zmqrt.protocol import messages as m

VECTORS: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
DECODERS: list[tuple[codec.Codec[Any], Any]] = [
    (codec.FROM_CLIENT, m.FromClient),
    (codec.TO_CLIENT, m.ToClient),
    (codec.FROM_WORKER, m.FromWorker),
    (codec.TO_WORKER, m.ToWorker),
]


def as_bytes(value: dict[str, Any]) -> bytes:
    """Read bytes as the file writes them."""
    return bytes.fromhex(value["hex"]) if "hex" in value else bytes.fromhex(value["repeat"]) * value["count"]


def test_the_file_holds_every_message() -> None:
    """Each message of the protocol has its vector, and none is left over."""
    assert [v["message"] for v in VECTORS] == [type(one).__name__ for one in examples()]


@pytest.mark.parametrize(("vector", "message"), list(zip(VECTORS, examples(), strict=True)), ids=lambda v: str(v)[:40])
def test_a_vector_is_what_the_codec_writes_and_reads(vector: dict[str, Any], message: Any) -> None:
    """Encoding gives the bytes of the file, decoding them gives the message."""
    decoder = next(d for d, union in DECODERS if type(message) in union.__args__)

    assert as_vector(message) == vector
    assert decoder.unpack([as_bytes(frame) for frame in vector["frames"]]).messages == [message]
