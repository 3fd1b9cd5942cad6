"""Tenants at real bridges: what is counted is what was answered, budgets outlive kill -9, revoked keys end at once."""

from __future__ import annotations

import concurrent.futures
import http.client
import itertools
import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from support.http import EVENTS, answer_of, asked, events_of
from support.stack import Process, Stack, eventually, running
from zmqrt.client.cli.main import cli
from zmqrt.protocol.usage_file import read_usage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
TOKENS = 8


@dataclass
class Team:
    """A fleet, two bridges that share a usage file, and the file of keys."""

    stack: Stack
    folder: Path
    bridges: list[Process]

    def key(self, tenant: str, *words: str) -> str:
        """Make a key, and wait until both bridges know it."""
        made = zmqrt("keys", "http", "add", tenant, "--file", str(self.folder / "keys"), *words)
        for bridge in self.bridges:
            eventually(partial(self.knows, bridge, made), what="the key is known")
        return made

    def models(self, bridge: Process, key: str) -> int:
        """Ask something that is not metered."""
        return answer_of(bridge, "GET", "/v1/models", headers={"x-api-key": key})[0]

    def knows(self, bridge: Process, key: str) -> bool:
        """Whether a bridge lets a key in."""
        return self.models(bridge, key) == 200

    @property
    def usage(self) -> Path:
        """The file in which usage is counted."""
        return self.folder / "usage.db"

    def bridge(self) -> Process:
        """Start one more."""
        words = ("--api-keys-file", str(self.folder / "keys"), "--usage-file", str(self.usage))
        return self.stack.bridge(*words, "--audit-log", str(self.folder / "audit.jsonl"))

    def reserved(self) -> int:
        """Count the requests that have no end yet."""
        with sqlite3.connect(self.usage) as connection:
            (count,) = connection.execute("SELECT COUNT(*) FROM reservations").fetchone()
        return int(count)

    def sums(self, tenant: str) -> tuple[int, int, int]:
        """Return the requests, prompt tokens and completion tokens of a tenant, once all have their end."""
        eventually(lambda: self.reserved() == 0, what="every request is settled")
        rows = read_usage(self.usage, ["tenant"], tenant=tenant)
        return (rows[0].requests, rows[0].prompt_tokens, rows[0].completion_tokens) if rows else (0, 0, 0)


def zmqrt(*words: str) -> str:
    """Run the command in this process."""
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Start a fleet and its bridges."""
    folder = tmp_path_factory.mktemp("team")
    worker = (
        "--engine-opt",
        "step_ms=5,eos=never",
        "--devices",
        "mock:0",
        "--slots",
        "64",
        "--node-max-capacity",
        "64",
    )
    with running(worker=worker) as stack:
        made = Team(stack, folder, [])
        made.key("first")
        made.bridges += [made.bridge(), made.bridge()]
        yield made


def chat(bridge: Process, key: str, *, stream: bool = False, max_tokens: int = TOKENS, words: str = "hi") -> Any:
    """Ask, and return what the answer says of its usage; or the status of a refusal, with its code."""
    body = {"model": "mock", "messages": [{"role": "user", "content": words}], "max_tokens": max_tokens}
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    with asked(bridge, "POST", "/v1/chat/completions", {**body, **more}, {"x-api-key": key}) as answer:
        text = answer.read().decode()
    if answer.status != 200:
        return answer.status, json.loads(text)["error"]["code"]
    if not stream:
        return json.loads(text)["usage"]
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    return events[-1]["usage"]


def completion(bridge: Process, key: str, prompts: int) -> Any:
    """Ask for several answers in one request."""
    body = {"model": "mock", "prompt": ["hello"] * prompts, "max_tokens": TOKENS}
    return answer_of(bridge, "POST", "/v1/completions", body, {"x-api-key": key})[1]["usage"]


def mixed(team: Team, key: str, number: int) -> Callable[[], Any]:
    """Return the question of that number."""
    bridge = team.bridges[number % 2]
    match number % 3:
        case 0:
            return lambda: chat(bridge, key, words="hi " * (number % 7), max_tokens=1 + number % 5)
        case 1:
            return lambda: chat(bridge, key, stream=True, max_tokens=1 + number % 5)
        case _:
            return lambda: completion(bridge, key, 1 + number % 3)


def check_sums(team: Team, tenant: str, number: int) -> None:
    """Ask so many mixed questions, and compare what was counted with what the answers say."""
    key = team.key(tenant, "--name", "ci")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        said = [one.result() for one in [pool.submit(mixed(team, key, each)) for each in range(number)]]

    expected = (number, sum(one["prompt_tokens"] for one in said), sum(one["completion_tokens"] for one in said))
    assert team.sums(tenant) == expected
    told = json.loads(zmqrt("usage", "--file", str(team.usage), "--tenant", tenant, "--by", "tenant,name", "--json"))
    assert (told["name"], told["requests"], told["prompt_tokens"], told["completion_tokens"]) == ("ci", *expected)


def test_what_is_counted_is_what_was_answered(team: Team) -> None:
    """Whole, streamed and several at once, through two bridges."""
    check_sums(team, "sums", 48)


@pytest.mark.slow
def test_what_is_counted_of_ten_thousand_answers_is_what_was_answered(team: Team) -> None:
    """To the token."""
    check_sums(team, "many", 10_000)


def test_a_revoked_keys_stream_ends_with_the_reason(team: Team) -> None:
    """It would have gone on for an hour; that of another key of the tenant goes on."""
    keys = [team.key("leavers", "--name", name) for name in ("gone", "stays")]
    headers = [{"x-api-key": key, **EVENTS} for key in keys]
    body = {"prompt": "x", "max_tokens": 100_000}
    with (
        asked(team.bridges[0], "POST", "/infer", body, headers[0]) as gone,
        asked(team.bridges[1], "POST", "/infer", body, headers[1]) as stays,
    ):
        told, others = events_of(gone), events_of(stays)
        assert next(told).name == next(others).name == "token"
        zmqrt("keys", "http", "revoke", "leavers/gone", "--file", str(team.folder / "keys"))

        *_, last = told
        assert last.name == "error"
        assert last.data["reason"] == "unauthorized"
        assert "this key was revoked" in last.data["detail"]
        assert [event.name for event in itertools.islice(others, 3)] == ["token"] * 3
    assert team.models(team.bridges[0], keys[0]) == 401
    log = team.folder / "audit.jsonl"
    eventually(lambda: '"name":"gone"' in log.read_text(), what="the audit log tells of it")


@pytest.mark.parametrize("stream", [False, True])
def test_limits_are_told_and_kept_by_both_bridges_together(team: Team, *, stream: bool) -> None:
    """What one of them lets in is missing at the other."""
    key = team.key(f"limited-{stream}", "--rpm", "2")
    body = {"model": "mock", "prompt": "x", "max_tokens": 2, "stream": stream}
    told: list[tuple[int, str | None]] = []
    for number in range(3):
        with asked(team.bridges[number % 2], "POST", "/v1/completions", body, {"x-api-key": key}) as answer:
            answer.read()
            told.append((answer.status, answer.getheader("x-ratelimit-remaining-requests")))

    assert told == [(200, "1"), (200, "0"), (429, "0")]


def test_the_audit_log_goes_on_under_its_name(team: Team) -> None:
    """After it was moved away, and the bridge told so."""
    path, key = team.folder / "audit.jsonl", team.key("audited")
    path.rename(team.folder / "audit.old")
    team.bridges[0].signal(signal.SIGHUP)
    assert chat(team.bridges[0], key)["completion_tokens"] == TOKENS

    line = json.loads(eventually(lambda: path.read_text() if path.exists() else None, what="a line is written"))
    facts = {name: line[name] for name in ("tenant", "path", "status", "model", "completion_tokens")}
    assert facts == {
        "tenant": "audited",
        "path": "/v1/chat/completions",
        "status": 200,
        "model": "mock",
        "completion_tokens": TOKENS,
    }


@pytest.mark.slow
def test_a_budget_is_exact_to_one_request_whatever_is_killed(team: Team) -> None:
    """Bridge and broker, by kill -9, with requests under way through two bridges; then nothing more is let in."""
    each = chat(team.bridges[0], team.key("probe"))
    cost = each["prompt_tokens"] + TOKENS
    budget = 300 * cost + 1
    key = team.key("exact", "--name", "all", "--budget", str(budget))
    killed = team.bridges[0]

    def ask_on(number: int) -> Iterator[Any]:
        while True:
            try:
                answer = chat(team.bridges[number % 2], key)
            except (OSError, http.client.HTTPException, ValueError):
                answer = (0, "lost")
            yield answer
            if answer == (429, "insufficient_quota"):
                return

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        asking = [pool.submit(list[Any], ask_on(number)) for number in range(16)]
        eventually(lambda: _had(team, "exact") > budget // 4, what="a quarter is used")
        killed.kill()
        team.bridges[0] = team.bridge()
        eventually(lambda: _had(team, "exact") > budget // 2, what="half is used")
        broker = next(one for one in reversed(team.stack.processes) if one.role == "broker")
        broker.kill()
        team.stack.again(broker)
        answers = [answer for future in asking for answer in future.result(timeout=300)]

    _, prompt, completion = team.sums("exact")
    (row,) = read_usage(team.usage, ["tenant"], tenant="exact")
    assert budget <= prompt + completion < budget + cost + 40
    answered = sum(isinstance(answer, dict) for answer in answers)
    broken = sum(not isinstance(answer, dict) and answer[0] != 429 for answer in answers)
    assert answered <= row.requests <= answered + broken  # each counts once, also what no caller saw the end of
    assert chat(team.bridges[1], key) == (429, "insufficient_quota")


def _had(team: Team, tenant: str) -> int:
    rows = read_usage(team.usage, ["tenant"], tenant=tenant)
    return rows[0].prompt_tokens + rows[0].completion_tokens if rows else 0
