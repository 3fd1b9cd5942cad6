"""What is metered goes out when it has its reservation, is refused in the words of its API, and is counted once."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from support import fake_fleet
from support.asgi import Exchange, call, exchange
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http import app, in_flight, ledger_thread, metering
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.audit import AuditLine, AuditLog
from zmqrt.bridge_http.audit_trail import STRANGERS_PER_S, AuditTrail
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.ledger import Ledger
from zmqrt.bridge_http.ledger_thread import BUSY_AGAIN_S
from zmqrt.bridge_http.metering import UsageMeter
from zmqrt.protocol.api_keys import HASH, digest_of
from zmqrt.protocol.errors import ConfigurationError, ConnectError, ErrorKind, request_error
from zmqrt.protocol.tasks import Usage
from zmqrt.protocol.usage_file import BUSY_S, UsageRow, open_usage, read_usage

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
MESSAGE = {**CHAT, "max_tokens": 5}


def hashed(words: str, key: str = "k", tenant: str = "acme") -> str:
    """Write an entry of a key."""
    return f"{tenant}:{HASH}{digest_of(key.encode()).hex()} name=ci {words}"


class House:
    """A bridge with a meter, its fleet and its file."""

    def __init__(self, folder: Path, *keys: str, fleet: FakeFleet | None = None, **more: Any) -> None:
        self.file = folder / "usage.db"
        self.fleet = fleet or FakeFleet("Hello")
        more.setdefault("usage_file", self.file)
        self.settings = BridgeSettings(api_keys=keys, **more)
        self.meter = UsageMeter(self.settings)
        self.audit = AuditLog(self.settings.audit_log) if self.settings.audit_log else None
        self.app: ASGIApp = make_app(self.fleet, self.settings, self.meter, self.audit)

    def ask(self, path: str, body: object, **headers: str) -> Exchange:
        """Send one request."""

        async def finish() -> Exchange:
            return await self.begin(path, body, **headers).start().finish()

        return asyncio.run(finish())

    def begin(self, path: str, body: object, **headers: str) -> Exchange:
        """Prepare one."""
        sent = {"x-api-key": "k", **{name.replace("_", "-"): value for name, value in headers.items()}}
        return exchange(self.app, "POST", path, body=json.dumps(body).encode(), headers=sent)

    def rows(self, by: Sequence[str] = ("tenant", "name", "model")) -> list[UsageRow]:
        """Close the meter, and read what it has written."""
        self.meter.close()
        if self.audit is not None:
            self.audit.close()
        return read_usage(self.file, by)


def test_every_answer_is_counted(tmp_path: Path) -> None:
    """Of each task and each API, whole and streamed; answers of several choices are one request."""
    house = House(tmp_path, hashed(""), "globex:other")
    house.ask("/v1/chat/completions", CHAT)
    house.ask("/v1/chat/completions", {**CHAT, "stream": True})
    house.ask("/v1/completions", {"model": "m", "prompt": "x", "n": 3})
    house.ask("/v1/messages", {**MESSAGE, "stream": True})
    house.ask("/v1/responses", {"model": "m", "input": "x"})
    house.ask("/v1/embeddings", {"model": "m", "input": "x"})
    house.ask("/v1/rerank", {"query": "x", "documents": ["y"]})
    house.ask("/infer", {"prompt": "x"}, accept="text/event-stream")
    house.ask("/infer", {"prompt": "x"}, x_api_key="other")

    ours, theirs = house.rows()
    assert (ours.tenant, ours.name, ours.model, ours.requests, ours.failed) == ("acme", "ci", "m", 8, 0)
    assert (ours.prompt_tokens, ours.completion_tokens) == (8, 8 * len("Hello"))
    assert (theirs.tenant, theirs.name, theirs.requests) == ("globex", "", 1)


@pytest.mark.parametrize("body", [{"prompt": "x", "n": 3}, {"prompt": ["x", "y"], "n": 2}])
def test_what_is_counted_is_what_answers_tell(tmp_path: Path, body: dict[str, Any]) -> None:
    """A prompt once, however many answers it gets."""
    house = House(tmp_path, hashed(""))
    told = house.ask("/v1/completions", {"model": "m", **body}).json["usage"]
    (row,) = house.rows()
    assert (row.prompt_tokens, row.completion_tokens) == (told["prompt_tokens"], told["completion_tokens"])


def test_models_that_callers_invent_make_no_rows(tmp_path: Path) -> None:
    """Else whoever has a key fills the file; nor is what nobody answers a success."""
    house = House(tmp_path, hashed(""), fleet=FakeFleet("", refuse=request_error(ErrorKind.NOT_FOUND, "none such")))
    for number in range(4):
        house.ask("/v1/chat/completions", {**CHAT, "model": f"invented-{number}"})
    house.fleet.refuse = None
    house.fleet.error = ConnectError("the broker has gone")
    house.ask("/v1/chat/completions", {**CHAT, "model": "invented"})

    (row,) = house.rows()
    assert (row.model, row.requests, row.failed) == ("", 5, 5)


def test_counts_that_cannot_be_meant_harm_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative ones would give budgets back; too large ones ended the thread, and everybody waited for it."""
    house = House(tmp_path, hashed("budget=100G"))

    def absurd(**_counts: int) -> Usage:
        return Usage(prompt_tokens=-5, completion_tokens=2**63)

    monkeypatch.setattr(fake_fleet, "Usage", absurd)
    assert house.ask("/infer", {"prompt": "x"}).status == 200
    assert house.ask("/infer", {"prompt": "x"}).status == 429
    (row,) = house.rows()
    assert row.prompt_tokens == 0
    assert row.completion_tokens > 10**11


def test_whatever_goes_wrong_with_the_file_the_thread_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each request would wait for a thread that has ended."""
    house = House(tmp_path, hashed(""))
    with monkeypatch.context() as once:
        once.setattr(Ledger, "work", _fail)
        assert house.ask("/infer", {"prompt": "x"}).status == 200
        assert "ZeroDivisionError" in house.meter.ledger.problem
    assert house.ask("/infer", {"prompt": "x"}).status == 200
    assert house.meter.ledger.problem == ""
    assert [row.requests for row in house.rows()] == [1]


def _fail(*_jobs: object) -> None:
    raise ZeroDivisionError


def test_a_file_that_somebody_holds_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by each request: a copy, or a forgotten shell, would make all of them slow."""
    waits: list[float] = []

    def spied(path: Path | None, *, busy_s: float = 0.0) -> sqlite3.Connection:
        waits.append(busy_s)
        return open_usage(path, busy_s=min(busy_s, 0.01))

    monkeypatch.setattr(ledger_thread, "open_usage", spied)
    house = House(tmp_path, hashed(""))
    house.ask("/infer", {"prompt": "x"})
    waits.clear()
    holder = sqlite3.connect(house.file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert [house.ask("/infer", {"prompt": "x"}).status for _ in range(2)] == [200, 200]
    assert "locked" in house.meter.ledger.problem
    holder.close()
    assert [house.ask("/infer", {"prompt": "x"}).status for _ in range(2)] == [200, 200]

    assert waits == [BUSY_AGAIN_S, BUSY_AGAIN_S, BUSY_S]
    assert [row.requests for row in house.rows()] == [3]


def test_a_bridge_begins_though_its_disk_is_full_or_its_file_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that runs goes on: it is no mistake of the settings."""
    monkeypatch.setattr(ledger_thread, "open_usage", partial(open_usage, busy_s=0.01))
    open_usage(tmp_path / "usage.db").close()
    holder = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    meter = UsageMeter(BridgeSettings(usage_file=tmp_path / "usage.db"))
    holder.close()
    meter.close()

    def full(_path: Path, _flags: int, _mode: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(os, "open", full)
        audit = AuditLog(tmp_path / "audit")
    assert "No space" in audit.problem
    audit.write(AuditLine(request_id="r", method="POST", path="/infer", status=200))
    audit.close()
    assert audit.problem == ""
    assert [json.loads(line)["request_id"] for line in (tmp_path / "audit").read_text().splitlines()] == ["r"]


@pytest.mark.parametrize(("setting", "status"), [("serve", 200), ("refuse", 503)])
def test_a_disk_that_hangs_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, status: int
) -> None:
    """And what was reserved too late is settled all the same."""
    house = House(tmp_path, hashed("concurrency=1"), unrecorded=setting)
    comes_back = threading.Event()
    work = Ledger.work

    def hung(ledger: Ledger, *jobs: Any) -> Any:
        comes_back.wait(30)
        return work(ledger, *jobs)

    monkeypatch.setattr(Ledger, "work", hung)
    monkeypatch.setattr(metering, "_ADMISSION_S", 0.05)
    assert house.ask("/infer", {"prompt": "x"}).status == status
    comes_back.set()
    monkeypatch.setattr(metering, "_ADMISSION_S", 30)
    assert house.ask("/infer", {"prompt": "x"}).status == 200
    assert [row.requests for row in house.rows(["tenant"])] == [2]


def test_a_request_that_never_ran_costs_nothing(tmp_path: Path) -> None:
    """The fleet was busy, or the request was wrong: it is counted as failed."""
    fleet = FakeFleet("", error=request_error(ErrorKind.QUEUE_FULL, "busy", retry_after_s=1.0))
    house = House(tmp_path, hashed("tpm=2k"), fleet=fleet)
    assert [house.ask("/v1/chat/completions", CHAT).status for _ in range(3)] == [429] * 3
    fleet.refuse = request_error(ErrorKind.BAD_REQUEST, "wrong")
    assert house.ask("/v1/chat/completions", CHAT).status == 400

    (row,) = house.rows()
    assert (row.requests, row.failed, row.prompt_tokens, row.completion_tokens) == (4, 4, 0, 0)


def test_a_stream_whose_reader_has_left_costs_what_was_read(tmp_path: Path) -> None:
    """And its reservation is free again."""
    house = House(tmp_path, hashed("concurrency=1"))

    async def leave() -> int:
        house.fleet.gate.clear()
        asked = house.begin("/v1/chat/completions", {**CHAT, "stream": True}).start()
        await asked.until(b"Hello")
        second = await house.begin("/v1/chat/completions", CHAT).start().finish()
        assert second.status == 429
        asked.leave()
        await asked.finish()
        house.fleet.gate.set()
        return (await house.begin("/v1/chat/completions", CHAT).start().finish()).status

    assert asyncio.run(leave()) == 200
    (row,) = house.rows()
    assert (row.requests, row.completion_tokens) == (2, 1 + len("Hello"))


def test_a_caller_who_comes_back_pays_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what its stream took in all, while it goes on or has just ended."""
    house = House(tmp_path, hashed(""))
    body = {**CHAT, "stream": True}

    async def come_back() -> None:
        house.fleet.gate.clear()
        first = house.begin("/v1/chat/completions", body, idempotency_key="one").start()
        await first.until(b"Hello")
        first.leave()
        await first.finish()
        second = house.begin("/v1/chat/completions", body, idempotency_key="one").start()
        await second.until(b"Hello")
        await house.fleet.handles[0].given_up.wait()
        house.fleet.gate.set()
        await second.finish()

    monkeypatch.setattr(in_flight, "RETURN_S", 0.2)
    asyncio.run(asyncio.wait_for(come_back(), 30))
    house.ask("/v1/chat/completions", body, idempotency_key="one")
    (row,) = house.rows()
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (2, 1, len("Hello"))


REFUSED: dict[str, tuple[object, str, str]] = {
    "/v1/chat/completions": (CHAT, "code", "rate_limit_exceeded"),
    "/v1/completions": ({"model": "m", "prompt": "x", "stream": True}, "code", "rate_limit_exceeded"),
    "/v1/responses": ({"model": "m", "input": "x"}, "code", "rate_limit_exceeded"),
    "/v1/messages": ({**MESSAGE, "stream": True}, "type", "rate_limit_error"),
    "/infer": ({"prompt": "x"}, "reason", "rate_limit_exceeded"),
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_is_too_much_is_a_429_that_says_when(tmp_path: Path, path: str) -> None:
    """In the shape of each API, for streams too; nothing reaches the fleet."""
    body, field, word = REFUSED[path]
    house = House(tmp_path, hashed("rpm=2"))
    assert [house.ask(path, body).status for _ in range(2)] == [200, 200]
    refused = house.ask(path, body)

    assert refused.status == 429
    assert 25 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (refused.json.get("error") or refused.json)[field] == word
    assert "2 requests a minute are the limit of this key" in refused.body.decode()
    assert len(house.fleet.asked) == 2


def test_a_budget_that_is_used_up_is_told_as_openai_tells_it(tmp_path: Path) -> None:
    """Clients do not try again all month."""
    house = House(tmp_path, hashed("budget=12"), "acme:* budget=1k")
    answers = [house.ask("/v1/chat/completions", {**CHAT, "max_tokens": 5}) for _ in range(4)]

    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    assert answers[-1].json["error"]["code"] == answers[-1].json["error"]["type"] == "insufficient_quota"
    assert answers[-1].headers["x-should-retry"] == "false"
    assert int(answers[-1].headers["retry-after"]) > 1
    assert house.rows(["tenant"])[0].requests == 2


def test_what_is_left_stands_in_the_head_of_each_answer(tmp_path: Path) -> None:
    """Of the tighter of two limits; as OpenAI writes it, for streams too. Without limits there is nothing."""
    house = House(tmp_path, hashed("rpm=10 tpm=100k"), "acme:* rpm=5", "globex:other")
    heads = [house.ask("/v1/chat/completions", {**CHAT, "stream": stream}).headers for stream in (False, True)]

    assert [head["x-ratelimit-limit-requests"] for head in heads] == ["5", "5"]
    assert [head["x-ratelimit-remaining-requests"] for head in heads] == ["4", "3"]
    assert heads[1]["x-ratelimit-reset-requests"] in ("23s", "24s")
    assert heads[0]["x-ratelimit-limit-tokens"] == "100000"
    assert 98_000 < int(heads[0]["x-ratelimit-remaining-tokens"]) < 100_000
    plain = house.ask("/v1/chat/completions", CHAT, x_api_key="other")
    assert not [name for name in plain.headers if name.startswith("x-ratelimit")]


def test_limits_are_kept_without_a_file_and_nothing_else_is_metered(tmp_path: Path) -> None:
    """A key without limits costs nothing there: no thread, no task."""
    house = House(tmp_path, hashed("rpm=1"), "globex:other", usage_file=None)
    assert house.ask("/infer", {"prompt": "x"}, x_api_key="other").status == 200
    assert not house.meter.wants(None)
    assert house.meter.ledger.is_idle

    assert [house.ask("/infer", {"prompt": "x"}).status for _ in range(2)] == [200, 429]
    assert not house.file.exists()
    house.meter.close()


@pytest.mark.parametrize(("setting", "status"), [("serve", 200), ("refuse", 503)])
def test_a_file_that_cannot_be_written_is_told_of(tmp_path: Path, setting: str, status: int) -> None:
    """Requests go on, or not, as the settings say; it is counted, and the file is tried again."""
    house = House(tmp_path, hashed("rpm=100"), unrecorded=setting)
    house.file.unlink()
    house.file.mkdir()
    assert house.ask("/infer", {"prompt": "x"}).status == status
    metrics = asyncio.run(call(house.app, "GET", "/metrics", headers={"x-api-key": "k"})).body.decode()
    assert "zmqrt_usage_broken 1.0" in metrics
    assert "zmqrt_usage_unrecorded_total 1.0" in metrics

    house.file.rmdir()
    assert house.ask("/infer", {"prompt": "x"}).status == 200
    assert [row.requests for row in house.rows()] == [1]


def test_a_file_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    """What is counted from then on is in the file of that name; for its owner alone."""
    house = House(tmp_path, hashed(""))
    house.ask("/infer", {"prompt": "x"})
    for file in tmp_path.glob("usage.db*"):
        file.unlink()
    house.ask("/infer", {"prompt": "x"})

    assert [row.requests for row in house.rows()] == [1]
    assert house.file.stat().st_mode & 0o077 == 0


def test_a_wrong_file_is_known_at_the_start(tmp_path: Path) -> None:
    """Not with the first request."""
    (tmp_path / "text").write_text("this is no database, and long enough to be taken for something else than that")
    with pytest.raises(ConfigurationError, match="usage file"):
        UsageMeter(BridgeSettings(usage_file=tmp_path / "text"))
    with pytest.raises(ConfigurationError, match="audit log"):
        AuditLog(tmp_path / "none" / "audit")


def test_metrics_tell_of_tenants(tmp_path: Path) -> None:
    """Requests, tokens and refusals."""
    house = House(tmp_path, hashed("rpm=1"))
    for _ in range(2):
        house.ask("/infer", {"prompt": "x"})
    metrics = asyncio.run(call(house.app, "GET", "/metrics", headers={"x-api-key": "k"})).body.decode()

    assert 'zmqrt_tenant_requests_total{outcome="answered",tenant="acme"} 1.0' in metrics
    assert 'zmqrt_tenant_tokens_total{kind="completion",tenant="acme"} 5.0' in metrics
    assert 'zmqrt_tenant_refused_total{limit="rpm",tenant="acme"} 1.0' in metrics
    house.meter.close()


def test_metrics_tell_a_tenant_of_itself(tmp_path: Path) -> None:
    """Of all tenants where its key says so, as that of Prometheus does; of everything else everybody."""
    house = House(tmp_path, hashed(""), "globex:other", hashed("metrics=all", "p", "ops"))
    house.ask("/infer", {"prompt": "x"})
    house.ask("/infer", {"prompt": "x"}, x_api_key="other")
    told = {
        key: asyncio.run(call(house.app, "GET", "/metrics", headers={"x-api-key": key})).body.decode()
        for key in ("k", "other", "p")
    }
    names = {key: [name for name in ("acme", "globex") if f'"{name}"' in text] for key, text in told.items()}
    assert names == {"k": ["acme"], "other": ["globex"], "p": ["acme", "globex"]}
    assert all(
        'zmqrt_http_requests_total{method="POST",path="/infer",status="200"} 2.0' in each for each in told.values()
    )
    assert '_bucket{le="0.01",method="POST",path="/infer"} ' in told["k"]
    house.meter.close()


def test_the_audit_log_tells_who_asked_and_never_what(tmp_path: Path) -> None:
    """A line for each request for work, refused ones too; in the file of that name, also after it was moved away."""
    path = tmp_path / "audit.jsonl"
    house = House(tmp_path, hashed("rpm=1"), audit_log=path)
    assert house.audit is not None
    house.ask("/infer", {"prompt": "a secret"}, x_request_id="one")
    house.audit.close()
    path.rename(tmp_path / "old.jsonl")
    house.ask("/infer", {"prompt": "a secret"}, x_request_id="two")
    house.ask("/infer", {"prompt": "a secret"}, x_api_key="wrong")
    house.rows()

    old, new = ((tmp_path / name).read_text() for name in ("old.jsonl", "audit.jsonl"))
    (first,), (second, third) = ([json.loads(line) for line in text.splitlines()] for text in (old, new))
    told = {name: first[name] for name in ("request_id", "tenant", "name", "key", "peer", "path", "status", "model")}
    assert told == {
        "request_id": "one",
        "tenant": "acme",
        "name": "ci",
        "key": digest_of(b"k").hex()[:8],
        "peer": "127.0.0.1",
        "path": "/infer",
        "status": 200,
        "model": "m",
    }
    assert (first["prompt_tokens"], first["completion_tokens"]) == (1, 5)
    assert (second["request_id"], second["status"]) == ("two", 429)
    assert (third["status"], "tenant" in third) == (401, False)
    assert "secret" not in old + new
    assert "Hello" not in old + new


def test_the_audit_log_needs_no_usage_file_to_tell_tokens(tmp_path: Path) -> None:
    """Nor a key with limits; a request that failed has the model that was asked."""
    path = tmp_path / "audit.jsonl"
    house = House(tmp_path, "acme:k", audit_log=path, usage_file=None)
    assert house.audit is not None
    house.ask("/v1/chat/completions", CHAT)
    house.fleet.refuse = request_error(ErrorKind.NOT_FOUND, "none such")
    house.ask("/v1/chat/completions", {**CHAT, "model": "unknown"})
    house.audit.close()
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["model"], first["prompt_tokens"], first["completion_tokens"]) == ("m", 1, 5)
    assert (second["model"], second["status"]) == ("unknown", 404)
    assert house.meter.ledger.is_idle


def test_whoever_has_no_key_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many get a line each second, and the next one says how many did not; callers with a key always do."""
    now = [5.0]
    monkeypatch.setattr(app, "AuditTrail", partial(AuditTrail, clock=lambda: now[0]))
    path = tmp_path / "audit.jsonl"
    house = House(tmp_path, "acme:k", audit_log=path, usage_file=None)
    assert house.audit is not None
    for _ in range(STRANGERS_PER_S + 7):
        house.ask("/infer", {"prompt": "x"}, x_api_key="wrong")
    house.ask("/infer", {"prompt": "x"})
    now[0] += 0.5
    house.ask("/infer", {"prompt": "x"}, x_api_key="wrong")
    house.audit.close()

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["status"] for line in lines] == [401] * STRANGERS_PER_S + [200, 401]
    assert [line.get("left_out", 0) for line in lines[-2:]] == [0, 7]


@pytest.mark.parametrize(("setting", "statuses"), [("serve", [200, 200]), ("refuse", [200, 503])])
def test_a_full_disk_loses_lines_that_are_counted(tmp_path: Path, setting: str, statuses: list[int]) -> None:
    """Or stops the service, as the settings say; it is told once."""
    house = House(tmp_path, hashed(""), audit_log=Path("/dev/full"), unrecorded=setting, usage_file=None)
    assert house.audit is not None
    found: list[int] = []
    for lost in (1, 2):
        found.append(house.ask("/infer", {"prompt": "x"}).status)
        house.audit.close()
        assert house.audit.lost == lost

    assert found == statuses
    assert "space" in house.audit.problem
