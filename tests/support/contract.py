"""The cases of the locked v1 contract, and what each promises."""

import json
from pathlib import Path
from typing import Any

_FILE = Path(__file__).resolve().parent.parent / "contract" / "v1_cases.json"
CASES: list[dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))


def body_of(case: dict[str, Any]) -> bytes:
    """Return the bytes that a case sends."""
    if "raw_hex" in case:
        return bytes.fromhex(case["raw_hex"])
    return case["raw"].encode() if "raw" in case else json.dumps(case["body"]).encode()


def check_answer(case: dict[str, Any], status: int, content_type: str | None, raw: bytes) -> None:
    """Compare an answer with what the case promises."""
    answer = json.loads(raw)
    assert status == case["status"], answer
    assert content_type == "application/json; charset=utf-8"
    if status == 200:
        assert answer.keys() == {"api_version", "text", "request_id"}
        assert answer["api_version"] == "v1"
        assert isinstance(answer["text"], str)
    if status == 422:
        assert answer.keys() == {"detail", "request_id"}
        assert [entry.keys() for entry in answer["detail"]] == [{"loc", "msg", "type"}]
        assert answer["detail"][0]["loc"] == ["body", *([case["field"]] if "field" in case else [])]
    assert answer["request_id"]
