"""Requests on a node: dispatch, results, refusals, resume, cancel, engines that die. Events in, actions out."""

from typing import Any

import pytest

from support.node import (
    RUN,
    STREAM,
    Node,
    body,
    ids_of,
    result,
    rid,
    sent,
    serving,
    submitted,
    texts,
)
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.tasks import GenerateChunk
from zmqrt.worker import actions as a
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import SamplingParams, TokenEvent, TokenRequest

EOS = 257


def test_a_stream_runs_from_dispatch_to_final() -> None:
    """Units go out as they are made, one PARTIAL per step; FINAL carries the tail and the usage."""
    node = serving()

    started = node.dispatch(1, payload=body("hi", max_tokens=5, stop=["END"]))
    ticket = node.ticket()
    first = node.step(TokenEvent(ticket=ticket, token_ids=ids_of("abE")))
    last = node.step(TokenEvent(ticket=ticket, token_ids=[*ids_of("N"), EOS], finish_reason="stop"))

    expected = TokenRequest(
        ticket=ticket,
        prompt_ids=[256, *b"hi"],
        max_new_tokens=5,
        stop_ids=[EOS],
        sampling=SamplingParams(temperature=0.7, seed=5),
    )
    assert submitted(started) == [ipc.Submit("", expected)]
    assert [(one.seq, one.n) for one in sent(first, m.WorkerPartial)] == [(0, 3)]
    assert texts(first) == ["ab"]
    assert [(one.seq, one.n) for one in sent(last, m.WorkerPartial)] == [(3, 2)]
    assert texts(last) == [""]
    (final,) = sent(last, m.WorkerFinal)
    assert (final.epoch, final.lease, final.total_n) == (1, 1, 5)
    assert final.meta == {"finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 5}
    assert tasks.decode(final.body, tasks.GenerateResult) == tasks.GenerateResult(
        finish_reason="stop",
        usage=tasks.Usage(prompt_tokens=3, completion_tokens=5),
        seed=5,
        model="toy",
        revision="r1",
        tail="EN",
    )
    assert node.core.requests.jobs == {}
    node.check()


def test_a_unary_answer_is_whole_in_its_final() -> None:
    """The broker journals PARTIALs all the same, so that the request can go on elsewhere."""
    node = serving()
    node.dispatch(1, flags=RUN)

    made = node.step(TokenEvent(ticket=node.ticket(), token_ids=ids_of("abc"), finish_reason="length"))

    assert texts(made) == ["abc"]
    assert result(made).text == "abc"
    assert result(made).ids == ids_of("abc")
    assert result(made).tail == ""


def test_a_request_that_is_not_resumable_has_no_partials() -> None:
    """Nobody would read them."""
    node = serving()
    node.dispatch(1, flags=m.IDEMPOTENT)

    made = node.step(TokenEvent(ticket=node.ticket(), token_ids=ids_of("abc"), finish_reason="length"))

    assert sent(made, m.WorkerPartial) == []
    assert result(made).text == "abc"


def test_a_stop_string_ends_the_answer_before_the_engine_knows() -> None:
    """Ids after it are dropped, the engine is told, and the slot is free only when the engine says so."""
    node = serving(slots=1, batch=1)
    node.dispatch(1, payload=body(stop=["never", "</s>"]))
    ticket = node.ticket()

    made = node.step(TokenEvent(ticket=ticket, token_ids=ids_of("yes</s>no")))

    assert texts(made) == ["yes"]
    assert result(made).finish_reason == "stop"
    assert [final.meta["stop_index"] for final in sent(made, m.WorkerFinal)] == [1]
    assert result(made).usage.completion_tokens == len("yes</s>")
    assert submitted(made) == [ipc.CancelTicket(ticket)]
    assert submitted(node.dispatch(2)) == []
    freed = node.step(TokenEvent(ticket=ticket, token_ids=ids_of("x"), finish_reason="cancelled"))
    assert [type(one) for one in submitted(freed)] == [ipc.Submit]
    assert sent(freed, m.WorkerPartial) == []


def test_all_of_a_step_goes_out_in_one_pass() -> None:
    """One PARTIAL per request, each for its own broker and epoch."""
    node = serving(brokers=2, slots=4)
    node.register(1, epoch=9)
    node.dispatch(1)
    node.dispatch(2, broker=1)

    made = node.step(
        TokenEvent(ticket=node.ticket(1), token_ids=ids_of("a")),
        TokenEvent(ticket=node.ticket(2), token_ids=ids_of("b")),
    )

    assert [(one.epoch, one.lease) for one in sent(made, m.WorkerPartial, broker=0)] == [(1, 1)]
    assert [(one.epoch, one.lease) for one in sent(made, m.WorkerPartial, broker=1)] == [(9, 2)]


@pytest.mark.parametrize(
    ("payload", "code", "reason", "words"),
    [
        (
            body("x" * 63),
            400,
            "context_length_exceeded",
            "maximum context length is 64 tokens. However, your prompt resulted in 64 tokens",
        ),
        (body("x" * 200), 400, "context_length_exceeded", "your prompt resulted in 201 tokens"),
        (tasks.encode(tasks.Generate(token_ids=[])), 400, "bad_request", "0 tokens"),
        (tasks.encode(tasks.Generate(token_ids=[9999])), 400, "bad_request", "no token 9999"),
        (body(logit_bias={500: 1.0}), 400, "bad_request", "no token 500"),
        (tasks.encode(tasks.Embed(input="x")), 400, "wrong_task", "serves the task 'generate', not 'embed'"),
        (b"\xc1", 400, "bad_request", "not valid MessagePack"),
        (tasks.encode(tasks.Generate()), 400, "bad_request", "exactly one of prompt, messages and token_ids"),
    ],
)
def test_what_an_engine_must_not_see_is_refused(payload: bytes, code: int, reason: str, words: str) -> None:
    """A 400 with the numbers, which no other node would answer differently."""
    node = serving()

    made = node.dispatch(1, payload=payload)

    (error,) = sent(made, m.WorkerError)
    assert (error.lease, error.code, error.reason, error.retryable) == (1, code, reason, False)
    assert words in error.text
    assert submitted(made) == []
    assert node.core.requests.jobs == {}


@pytest.mark.parametrize(("asked", "prompt", "allowed"), [(None, 3, 16), (5, 3, 5), (1000, 3, 61), (1000, 63, 1)])
def test_max_tokens_is_clamped_to_the_room_left(asked: int | None, prompt: int, allowed: int) -> None:
    """A prompt of context - 1 tokens still gets one token."""
    node = serving()

    made = node.dispatch(1, payload=body("x" * (prompt - 1), max_tokens=asked))

    (submit,) = submitted(made)
    assert isinstance(submit, ipc.Submit)
    assert submit.request.max_new_tokens == allowed


def test_a_resumed_request_goes_on_after_what_was_delivered() -> None:
    """The engine gets the prefix, the next unit has the next number, half a character is continued."""
    node = serving()
    prefix = [GenerateChunk(ids=ids_of("ab"), text=["a", "b"]), GenerateChunk(ids=[0xE4, 0xB8], text=["", ""])]

    started = node.dispatch(1, payload=body(max_tokens=6), prefix=prefix)
    made = node.step(TokenEvent(ticket=node.ticket(), token_ids=[0xAD, ord("!")], finish_reason="length"))

    (submit,) = submitted(started)
    assert isinstance(submit, ipc.Submit)
    assert submit.request.resume_ids[:4] == [*b"ab", 0xE4, 0xB8]
    assert submit.request.max_new_tokens == 6
    assert [(one.seq, one.n) for one in sent(made, m.WorkerPartial)] == [(4, 2)]
    assert texts(made) == ["中!"]
    assert sent(made, m.WorkerFinal)[0].total_n == 6
    assert result(made).usage.completion_tokens == 6


@pytest.mark.parametrize(
    ("prefix", "fields", "reason", "tail"),
    [
        (ids_of("abc"), {"max_tokens": 3}, "length", ""),
        ([*b"ab", EOS], {}, "stop", ""),
        (ids_of("ab."), {"stop": ["."]}, "stop", ""),
        (ids_of("ab"), {"max_tokens": 2, "stop": ["bc"]}, "length", "b"),
        (ids_of("abZ"), {"stop_token_ids": [ord("Z")]}, "stop", ""),
    ],
)
def test_a_resume_that_finds_its_end_reached_finishes_at_once(
    prefix: list[int], fields: dict[str, Any], reason: str, tail: str
) -> None:
    """The node before was lost between its last unit and FINAL: no engine is asked."""
    node = serving()
    chunk = GenerateChunk(ids=prefix, text=[""] * len(prefix))

    made = node.dispatch(1, payload=body(**fields), prefix=[chunk])

    assert submitted(made) == []
    assert result(made).finish_reason == reason
    assert result(made).tail == tail
    assert sent(made, m.WorkerFinal)[0].total_n == len(prefix)
    assert node.core.requests.jobs == {}


def test_a_unary_resume_has_the_whole_text_in_the_end() -> None:
    """The prefix counts as if it had been made here."""
    node = serving()
    node.dispatch(1, flags=RUN, prefix=[GenerateChunk(ids=ids_of("one "), text=[""] * 4)])

    made = node.step(TokenEvent(ticket=node.ticket(), token_ids=ids_of("two"), finish_reason="length"))

    assert result(made).text == "one two"
    assert result(made).ids == ids_of("one two")


def test_a_broken_resume_blob_is_refused() -> None:
    """Fewer units than promised cannot be continued."""
    node = serving()
    chunk = tasks.encode(GenerateChunk(ids=[1], text=[""]))
    message = m.Dispatch(1, "toy", 1000, STREAM, 1, 2, rid(1), "u", body(), b"\x91\xc4" + bytes([len(chunk)]) + chunk)

    (error,) = sent(node.receive(message), m.WorkerError)

    assert error.code == 400
    assert "holds 1 units" in error.text


def test_the_least_loaded_device_gets_the_next_request() -> None:
    """Four requests on two devices: two each; a device that is half as large gets half as much."""
    node = Node(devices=2)
    node.register()
    node.load(0, slots=4)
    node.load(1, slots=2)

    for number in range(1, 7):
        node.dispatch(number)

    loads = [device.report(node.now).running for device in node.fleet.devices.values()]
    assert loads == [4, 2]


def test_a_full_node_says_so_and_asks_again_when_a_slot_is_free() -> None:
    """429, retryable, with no higher limit; the limit rises with the first free slot."""
    node = serving(slots=1)
    node.dispatch(1)

    full = node.dispatch(2)
    freed = node.step(TokenEvent(ticket=node.ticket(1), token_ids=[EOS], finish_reason="stop"))

    (error,) = sent(full, m.WorkerError)
    assert (error.code, error.reason, error.retryable, error.dispatch_limit) == (429, "no_slot", True, 2)
    (final,) = sent(freed, m.WorkerFinal)
    assert final.dispatch_limit == 3


def test_one_batch_more_than_the_slots_waits_on_the_node() -> None:
    """So that a device never waits for the network; the first to come is the first to run."""
    node = serving(slots=1, batch=2)
    node.dispatch(1)
    assert submitted(node.dispatch(2)) == []
    assert submitted(node.dispatch(3)) == []
    assert sent(node.dispatch(4), m.WorkerError)[0].code == 429

    node.step(TokenEvent(ticket=node.ticket(1), finish_reason="length"))

    assert node.core.requests.jobs[0, "u", rid(2)].state.value == "running"
    assert node.core.requests.jobs[0, "u", rid(3)].state.value == "waiting"


def test_an_engine_that_says_full_is_asked_again_after_its_next_sign() -> None:
    """The request keeps its place in front."""
    node = serving(slots=2)
    node.dispatch(1)

    full = node.engine(ipc.Refused(node.ticket(), full=True, error="no room in the cache"))
    again = node.step()

    assert submitted(full) == []
    assert [type(one) for one in submitted(again)] == [ipc.Submit]


def test_an_engine_that_refuses_answers_the_client() -> None:
    """Its words go out as a 400."""
    node = serving()
    node.dispatch(1)

    (error,) = sent(node.engine(ipc.Refused(node.ticket(), full=False, error="too long for me")), m.WorkerError)

    assert (error.code, error.text, error.retryable) == (400, "too long for me", False)


def test_a_model_that_raises_is_a_500_for_that_request_alone() -> None:
    """Its neighbour goes on."""
    node = serving()
    node.dispatch(1)
    node.dispatch(2)

    made = node.step(TokenEvent(ticket=node.ticket(1), finish_reason="error", error="CUDA said no"))

    (error,) = sent(made, m.WorkerError)
    assert (error.lease, error.code, error.reason, error.retryable) == (1, 500, "model_raised", False)
    assert list(node.core.requests.jobs) == [(0, "u", rid(2))]


def test_cancel_stops_the_engine_and_answers_nothing() -> None:
    """The credit comes back at once, the slot when the engine has confirmed."""
    node = serving(slots=1, batch=1)
    node.dispatch(1)
    ticket = node.ticket()

    made = node.receive(m.WorkerCancel(1))

    assert submitted(made) == [ipc.CancelTicket(ticket)]
    assert not sent(made, m.WorkerError)
    assert not sent(made, m.WorkerFinal)
    assert sent(made, m.Credit)[0].dispatch_limit == 3
    assert sent(node.step(TokenEvent(ticket=ticket, finish_reason="cancelled")), m.WorkerError) == []
    assert node.receive(m.WorkerCancel(1)) == []


def test_a_cancel_that_overtakes_the_preparation_wins() -> None:
    """What the thread makes of the prompt later is dropped."""
    node = serving()
    node.core.requests.preprocessor.long_bytes = 0
    made = node.dispatch(1)
    (preprocess,) = [one for one in made if isinstance(one, a.Preprocess)]

    node.receive(m.WorkerCancel(1))
    node.preprocess(preprocess)

    assert submitted(node.done()) == []


def test_a_newer_dispatch_of_a_request_replaces_the_older_one() -> None:
    """The broker that sent both knows; it gets results of the new lease alone."""
    node = serving()
    node.dispatch(1, lease=10)
    old = node.ticket()

    again = node.dispatch(1, lease=11, prefix=[GenerateChunk(ids=ids_of("a"), text=["a"])])
    late = node.step(TokenEvent(ticket=old, token_ids=ids_of("a"), finish_reason="cancelled"))
    made = node.step(TokenEvent(ticket=node.ticket(), token_ids=ids_of("b")))

    assert ipc.CancelTicket(old) in submitted(again)
    assert sent(late, m.WorkerPartial) == []
    assert [(one.lease, one.seq) for one in sent(made, m.WorkerPartial)] == [(11, 1)]
    assert sent(again, m.WorkerError) == []


def test_a_request_that_comes_through_two_brokers_runs_for_both() -> None:
    """One of them stood still and does not know yet that its client has left it: it must not take from the other."""
    node = serving(brokers=2)
    node.register(1)
    node.dispatch(1, broker=0, lease=10)

    made = node.dispatch(1, broker=1, lease=20)

    assert sent(made, m.WorkerError) == []
    assert sorted(job.lease for job in node.core.requests.jobs.values()) == [10, 20]


def test_a_request_that_comes_back_after_its_broker_was_lost_takes_the_slot_of_the_first() -> None:
    """Nobody can want the first one any more."""
    node = serving(brokers=2, slots=1, batch=0)
    node.register(1)
    node.dispatch(1, broker=0, lease=10)
    node.core.lost(0, "killed", node.now)

    made = node.dispatch(1, broker=1, lease=20)

    assert sent(made, m.WorkerError) == []
    assert [job.lease for job in node.core.requests.jobs.values()] == [20]


def test_equal_request_ids_of_two_users_do_not_disturb_one_another() -> None:
    """Ids are chosen by clients."""
    node = serving()
    node.dispatch(1, lease=1, user="ann")
    node.dispatch(1, lease=2, user="bob")

    made = node.step(
        TokenEvent(ticket=node.ticket(1, "ann"), token_ids=ids_of("a")),
        TokenEvent(ticket=node.ticket(1, "bob"), token_ids=ids_of("b")),
    )

    assert [(one.lease, text) for one, text in zip(sent(made, m.WorkerPartial), texts(made), strict=True)] == [
        (1, "a"),
        (2, "b"),
    ]


def test_unknown_services_are_not_found() -> None:
    """The broker would not send it; a worker answers all the same."""
    node = serving()

    (error,) = sent(node.dispatch(1, service="other"), m.WorkerError)

    assert (error.code, error.reason) == (404, "model_not_found")


def test_a_unary_request_out_of_time_is_given_up() -> None:
    """The broker's own deadline comes first; this one is for a node that was cut off."""
    node = serving()
    node.dispatch(1, flags=RUN, ttl_ms=1000)

    made = node.wait(1.5)
    assert sent(made, m.WorkerError) == []
    node.receive(m.BrokerHeartbeat(1, 1))
    made = node.wait(1)

    (error,) = sent(made, m.WorkerError)
    assert (error.code, error.reason) == (504, "deadline_exceeded")
    assert [type(one) for one in submitted(made)] == [ipc.CancelTicket]


def test_a_stream_is_given_up_only_without_progress() -> None:
    """Each new unit starts the time anew."""
    node = serving()
    node.dispatch(1, ttl_ms=1000)
    for _ in range(3):
        node.wait(1)
        node.receive(m.BrokerHeartbeat(1, 1))
        node.step(TokenEvent(ticket=node.ticket(), token_ids=ids_of("a")))

    assert sent(node.log, m.WorkerError) == []
    node.wait(1.2)
    node.receive(m.BrokerHeartbeat(1, 1))
    assert [one.reason for one in sent(node.wait(1.3), m.WorkerError)] == ["stalled"]


def test_an_engine_that_stands_still_is_killed_once() -> None:
    """What its supervisor reports then is an exit like any other."""
    node = serving()
    node.step()
    for _ in range(31):
        node.wait(1)
        node.receive(m.BrokerHeartbeat(1, 1))

    (restart,) = [one for one in node.log if isinstance(one, a.RestartEngine)]
    assert restart.device == "mock:0"


def test_logprobs_name_the_sampled_token_and_the_likeliest() -> None:
    """The engine's one map is taken apart."""
    node = serving()
    node.dispatch(1, flags=RUN, payload=body(logprobs=1))

    made = node.step(
        TokenEvent(ticket=node.ticket(), token_ids=[65], logprobs=[{65: -2.0, 66: -0.5}], finish_reason="length")
    )

    spelled = {65: b"A", 66: b"B"}
    assert result(made).logprobs == [tasks.TokenLogprobs(logprob=-2.0, top={66: -0.5}, spelled=spelled)]


PATIENT: m.Ext = {"seed": 5, "progress": True}


def notices(made: list[a.Action]) -> list[m.WorkerPartial]:
    """Return what was said of progress without units."""
    return [one for one in sent(made, m.WorkerPartial) if one.ext.get("progress") is True]


def beat_until(node: Node, seconds: float, *events: TokenEvent) -> list[a.Action]:
    """Let time pass with a broker that lives and an engine that says the same every half second."""
    made: list[a.Action] = []
    for _ in range(int(2 * seconds)):
        made += node.wait(0.5) + node.receive(m.BrokerHeartbeat(1, 1)) + node.step(*events)
    return made


def test_reading_a_prompt_is_progress_and_the_broker_is_told() -> None:
    """The engine's events without tokens; who stands in line behind it moves along, whoever overtook it does not."""
    node = serving()
    node.dispatch(1, ttl_ms=2000)
    node.dispatch(2, ttl_ms=2000, flags=RUN, ext=PATIENT)
    first, second = node.ticket(1), node.ticket(2)

    made = beat_until(node, 5, TokenEvent(ticket=first))
    assert {one.lease for one in notices(made)} == {1, 2}
    assert all((one.seq, one.n, one.body) == (0, 0, b"") for one in notices(made))
    assert len(notices(made)) <= 2 * 4 * 3  # four times in their time
    assert sent(made, m.WorkerError) == []

    made = beat_until(node, 4, TokenEvent(ticket=second))
    assert [(one.lease, one.reason) for one in sent(made, m.WorkerError)] == [(1, "stalled")]


def test_waiting_for_a_slot_is_progress_while_the_engine_makes_something() -> None:
    """For whole answers that count by progress; others have their whole time."""
    node = serving(slots=1, batch=2)
    node.dispatch(1, ttl_ms=2000)
    node.dispatch(2, ttl_ms=2000, flags=RUN, ext=PATIENT)
    node.dispatch(3, ttl_ms=2000, flags=RUN)

    made = beat_until(node, 6, TokenEvent(ticket=node.ticket(1), token_ids=ids_of("a")))
    assert {one.lease for one in notices(made)} == {2}
    assert [(one.lease, one.reason) for one in sent(made, m.WorkerError)] == [(3, "deadline_exceeded")]

    made = beat_until(node, 4)
    assert {(one.lease, one.reason) for one in sent(made, m.WorkerError)} == {(1, "stalled"), (2, "stalled")}


def test_pieces_of_text_are_progress_of_a_whole_answer() -> None:
    """Their units are no tokens, so nothing of them travels before the end."""
    node = Node()
    node.register()
    node.load(kind="stream")
    node.dispatch(1, ttl_ms=2000, flags=RUN, ext=PATIENT)
    ticket = node.ticket(1)
    made: list[a.Action] = []
    for _ in range(8):
        made += node.wait(0.5) + node.receive(m.BrokerHeartbeat(1, 1)) + node.engine(ipc.TextChunk(ticket, "a"))

    assert sent(made, m.WorkerError) == []
    assert [(one.seq, one.n) for one in sent(made, m.WorkerPartial)] == [(0, 0)] * len(notices(made))
    assert len(notices(made)) >= 3
