"""The golden vectors of ZRT/1: examples of every message, as fields and as the bytes they become.

`python -m support.vectors` (in tests/) writes vectors/zrt1.json anew; do that only when the protocol itself changes.
Bytes are written as {"hex": "…"}, large ones as {"repeat": "hex of one byte", "count": n}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from support.wire import ALL_MESSAGES, smallest
from zmqrt.protocol import codec
from zmqrt.protocol import messages as m

FILE = Path(__file__).parent.parent / "vectors" / "zrt1.json"
RID = bytes(range(16))
PARAMS = m.Params(5000, 10000, 30000, 256, 8 << 20, ["tcp://10.0.0.2:7555"])
FULL: list[Any] = [
    m.Hello(RID, 1, 1, "example", 8 << 20, {"app": "docs"}),
    m.Request(
        RID,
        "smollm2-135m",
        30000,
        m.STREAM | m.IDEMPOTENT | m.RESUMABLE,
        -1,
        3,
        100,
        b"\x81\xa6prompt\xa2hi",
        b"\x91\xc4\x01\x80",
        {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
    ),
    m.Request(RID, "", 30000, m.IDEMPOTENT, 0, 0, 0, b"\x82\xa4task\xa5embed\xa5input\xa2hi", b"", {"task": "embed"}),
    m.Request(
        RID, "smollm2-135m", 30000, 6, 0, 0, 0, b"\x82\xa6prompt\xa2hi\xa8logprobs\x02", b"", {"needs": "logprobs"}
    ),
    m.Welcome("broker-a", 1 << 40, PARAMS),
    m.Partial(RID, 3, 2, b"\x82\xa3ids\x92\x01\x02\xa4text\x92\xa1a\xa1b"),
    m.Final(RID, 5, {"finish_reason": "stop", "completion_tokens": 5}, b"\x80"),
    m.Error(None, 400, "bad_request", False, 0, "unknown command 99"),
    m.Error(RID, 429, "queue_full", True, 1500, "the queue of smollm2-135m is full; try again in 1.5 s"),
    m.Ready(
        RID,
        "node-1",
        100,
        [
            m.ServiceOffer(
                "smollm2-135m", 100, "generate", "SmolLM2-135M-Instruct", "f4e1", 8192, ["logprobs", "token_ids"]
            )
        ],
        [m.DeviceInfo("cuda:0", "cuda", "Example GPU", 80 << 30)],
        held=[m.Held(7, RID, 3)],
    ),
    m.Heartbeat(2, 9, 12, 140, "loading", 60, 4200, [m.DeviceLoad("cuda:0", "loading", 60, 4200)], None),
    m.WorkerWelcome("broker-a", 1 << 40, 2, PARAMS, [m.Rebound(7, 3)]),
    m.Dispatch(
        2**63 - 1,
        "smollm2-135m",
        29000,
        m.STREAM,
        1,
        0,
        RID,
        "alice",
        b"\x81\xa6prompt\xa2hi",
        b"",
        {"seed": 2**63 - 1},
    ),
    m.Partial(RID, 0, 1, b"x" * 40_000),
]


def examples() -> list[Any]:
    """List the messages of the file: the smallest of each kind, then full ones."""
    return [*(smallest(struct) for struct in ALL_MESSAGES), *FULL]


def as_vector(message: Any) -> dict[str, Any]:
    """Describe one message: direction-free fields by name, and its envelope."""
    (frames,) = codec.pack([message])
    fields = {name: _plain(getattr(message, name)) for name in message.__struct_fields__}
    return {
        "message": type(message).__name__,
        "command": message.__struct_config__.tag,
        "fields": fields,
        "frames": [_plain(frame) for frame in frames],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        if len(value) > 1000 and len(set(value)) == 1:
            return {"repeat": value[:1].hex(), "count": len(value)}
        return {"hex": value.hex()}
    if isinstance(value, msgspec.Struct):
        return [_plain(getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, list):
        return [_plain(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def main() -> None:
    """Write the file."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps([as_vector(one) for one in examples()], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
