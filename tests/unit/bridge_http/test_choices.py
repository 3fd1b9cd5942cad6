"""Several answers to one HTTP request: what each is asked with, and that they begin, fail and end together."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import json
from typing import Any, Final, Unpack

import pytest

from support.asgi import Exchange, call, exchange
from support.fake_fleet import FakeFleet, FakeHandle
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.client.calls import CallOptions
from zmqrt.protocol.errors import ErrorKind, request_error

CHAT: Final = "/v1/chat/completions"
COMPLETION: Final = "/v1/completions"
SETTINGS: Final = BridgeSettings()


class UnevenFleet(FakeFleet):
    """Each request answers something else, one after the other; None = it is refused, later than all the rest."""

    def __init__(self, *answers: list[str] | None) -> None:
        super().__init__()
        self._answers = answers

    def submit_task(self, task: Any, **options: Unpack[CallOptions]) -> Any:  # type: ignore[override]
        """Take a request."""
        super().submit_task(task, **options)
        answer = self._answers[len(self.handles) - 1]
        full = request_error(ErrorKind.QUEUE_FULL, "the queue is full", retry_after_s=3.0)
        self.handles[-1] = FakeHandle(answer or (), full if answer is None else None, self.gate)
        return self.handles[-1]


def ask(fleet: FakeFleet, path: str = COMPLETION, headers: dict[str, str] | None = None, **body: Any) -> Exchange:
    """Send one request."""
    given = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    raw = json.dumps({"model": "m", **given, **body}).encode()
    return asyncio.run(call(make_app(fleet, SETTINGS), "POST", path, body=raw, headers=headers or {}))


def events_of(reply: Exchange) -> list[Any]:
    """Read the events of a stream, `[DONE]` as a text."""
    lines = [event.rpartition("data: ")[2] for event in reply.body.decode().split("\n\n") if event]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_each_choice_is_a_request_with_a_seed_of_its_own() -> None:
    """The one that was given and those that follow it, for each prompt alike: so each can be had again by itself."""
    fleet = FakeFleet("ok")
    reply = ask(fleet, prompt=["a", "b"], n=3, seed=2**63 - 2)

    assert [(task.prompt, task.seed) for task, _, _ in fleet.asked] == [
        (prompt, seed) for prompt in "ab" for seed in (2**63 - 2, 2**63 - 1, 0)
    ]
    assert len({options["rid"] for _, _, options in fleet.asked}) == 6
    assert [choice["index"] for choice in reply.json["choices"]] == list(range(6))


def test_without_a_seed_each_draws_by_its_own_name() -> None:
    """Which is another one for each choice, and the same again under the same Idempotency-Key."""
    names = list[list[bytes]]()
    for _ in range(2):
        fleet = FakeFleet("ok")
        body = json.dumps({"model": "m", "prompt": "hi", "n": 3}).encode()
        headers = {"idempotency-key": "k"}
        asyncio.run(call(make_app(fleet, SETTINGS), "POST", COMPLETION, body=body, headers=headers))
        assert {task.seed for task, _, _ in fleet.asked} == {None}
        names.append([options["rid"] for _, _, options in fleet.asked])

    assert names[0] == names[1]
    assert len(set(names[0])) == 3


def test_prompts_may_be_lists_of_token_ids() -> None:
    """One for each, none of them through a template."""
    fleet = FakeFleet("ok")
    ask(fleet, prompt=[[1, 2], [3]])

    assert [(task.prompt, task.token_ids, task.raw) for task, _, _ in fleet.asked] == [
        (None, [1, 2], False),
        (None, [3], False),
    ]


def test_what_a_prompt_took_counts_once_and_what_was_made_counts_for_each() -> None:
    """As OpenAI counts it."""
    reply = ask(UnevenFleet(["a"], ["bc"], ["def"], ["g"]), prompt=["x", "y"], n=2)

    assert [choice["text"] for choice in reply.json["choices"]] == ["a", "bc", "def", "g"]
    assert reply.json["usage"] == {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9}


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_a_stream_tells_whose_each_part_is(path: str) -> None:
    """Joined by index it is what comes whole; each choice ends once, then the usage of all, then the end."""
    fleet = UnevenFleet(["a", "b", "c"], ["d"], ["e", "f"])
    events = events_of(ask(fleet, path, n=3, stream=True, stream_options={"include_usage": True}))
    texts, ends = ["", "", ""], list[int]()
    for event in events[:-2]:
        (choice,) = event["choices"]
        assert choice["index"] not in ends
        texts[choice["index"]] += (choice["delta"].get("content", "") if path == CHAT else choice["text"]) or ""
        ends += [choice["index"]] if choice["finish_reason"] else []

    assert texts == ["abc", "d", "ef"]
    assert sorted(ends) == [0, 1, 2]
    assert events[-2]["usage"] == {"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7}
    assert (events[-2]["choices"], events[-1]) == ([], "[DONE]")
    assert all(event["usage"] is None for event in events[:-2])


def test_every_choice_of_a_chat_begins_with_its_role() -> None:
    """Clients build a message for each index."""
    events = events_of(ask(UnevenFleet(["a"], ["b"]), CHAT, n=2, stream=True))[:-1]
    first = {index: next(one for one in events if one["choices"][0]["index"] == index) for index in (0, 1)}

    assert [one["choices"][0]["delta"]["role"] for one in first.values()] == ["assistant"] * 2


def test_what_one_fails_of_the_answer_fails_of() -> None:
    """With its status; the others are given up."""
    fleet = UnevenFleet(["a"] * 99, None, ["b"] * 99)
    reply = ask(fleet, n=3)

    assert (reply.status, reply.headers["retry-after"], reply.json["error"]["code"]) == (429, "3", "queue_full")
    assert all(handle.was_cancelled for handle in fleet.handles if not handle.is_done)


def test_a_stream_that_has_begun_ends_with_what_one_fails_of() -> None:
    """Not with [DONE]; the others are given up."""
    fleet = UnevenFleet(["a"] * 99, None, ["b"] * 99)
    events = events_of(ask(fleet, n=3, stream=True))

    assert events[0]["choices"][0]["text"] == "a"
    assert events[-1]["error"]["code"] == "queue_full"
    assert [handle.was_cancelled for handle in fleet.handles] == [True, False, True]


def test_a_refusal_of_a_later_one_gives_up_those_before() -> None:
    """The library refuses some at once: none may stay behind at work."""

    class Second(FakeFleet):
        def submit_task(self, task: Any, **options: Unpack[CallOptions]) -> Any:  # type: ignore[override]
            """Refuse every one but the first."""
            if self.asked:
                raise request_error(ErrorKind.TOO_LARGE, "prompt: too large")
            return super().submit_task(task, **options)

    fleet = Second("ok")
    reply = ask(fleet, n=2)

    assert reply.status == 413
    assert fleet.handles[0].was_cancelled


def test_a_stream_of_several_goes_on_after_each_of_its_events() -> None:
    """Their ids say how much of each choice was read; another count of choices is no place in this answer."""
    answers = ["a", "b", "c"], ["d"], ["e", "f"]

    def texts_of(events: list[str]) -> list[str]:
        texts = ["", "", ""]
        for event in events:
            choice = json.loads(event.rpartition("data: ")[2])["choices"][0]
            texts[choice["index"]] += choice["text"]
        return texts

    def events_after(last: str) -> list[str]:
        headers = {"idempotency-key": "k", "x-request-id": "r", **({"last-event-id": last} if last else {})}
        reply = ask(UnevenFleet(*answers), headers=headers, n=3, stream=True)
        assert reply.status == 200, reply.body
        return [event for event in reply.body.decode().split("\n\n") if event][:-1]

    whole = events_after("")
    ids = {at: event.split("\n")[0].removeprefix("id: ") for at, event in enumerate(whole) if event.startswith("id: ")}

    assert list(ids.values())[-1] == "r/3.1.2"
    for at, last in ids.items():
        read, rest = texts_of(whole[: at + 1]), texts_of(events_after(last))
        assert [one + other for one, other in zip(read, rest, strict=True)] == ["abc", "d", "ef"]
    refused = ask(FakeFleet(), headers={"idempotency-key": "k", "last-event-id": "r/3"}, n=3, stream=True)
    assert (refused.status, refused.json["error"]["param"]) == (400, "last-event-id")


@pytest.mark.parametrize("wanted", [{}, {"stream": True}])
def test_a_caller_who_leaves_cancels_all_and_counts_once(wanted: dict[str, bool]) -> None:
    """Whole or streamed."""

    async def scenario() -> tuple[FakeFleet, str]:
        fleet = FakeFleet()
        fleet.gate.clear()
        app = make_app(fleet, SETTINGS)
        body = json.dumps({"model": "m", "prompt": "hi", "n": 3, **wanted}).encode()
        exchanged = exchange(app, "POST", COMPLETION, body=body).start()
        await fleet.was_asked.wait()
        exchanged.leave()
        await exchanged.finish()
        return fleet, (await call(app, "GET", "/metrics")).body.decode()

    fleet, counted = asyncio.run(scenario())

    assert [handle.was_cancelled for handle in fleet.handles] == [True] * 3
    assert 'zmqrt_http_callers_left_total{stage="waiting"} 1.0' in counted


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 13}, "prompt"),
        ({"n": 2, "best_of": 3}, "best_of"),
    ],
)
def test_more_than_may_be_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    """Before any of it is asked."""
    fleet = FakeFleet("ok")
    reply = ask(fleet, **body)

    assert (reply.status, reply.json["error"]["param"], fleet.asked) == (400, param, [])


def test_as_many_to_choose_from_as_are_wanted_asks_for_nothing() -> None:
    """`best_of` 2 of `n` 2 is both; llama.cpp's name of n is understood."""
    bodies: list[dict[str, Any]] = [{"n": 2, "best_of": 2}, {"n_cmpl": 2, "best_of": 2}, {"n": 2, "best_of": 1}]
    for body in bodies:
        fleet = FakeFleet("ok")
        assert (ask(fleet, **body).status, len(fleet.asked)) == (200, 2)
