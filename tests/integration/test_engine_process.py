"""Engine processes and their supervisor: loading, work, cancels, refusals."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from support.engine_fleet import EngineFleet, drive, request, right, spec
from zmqrt.worker.engines import ipc

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform == "win32", reason="nodes are Unix only")]
TESTS = str(Path(__file__).resolve().parents[1])


@pytest.fixture(autouse=True)
def engines_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engine processes import `support.toy_engines`."""
    monkeypatch.setenv("PYTHONPATH", TESTS)


def test_it_loads_with_progress_and_then_works() -> None:
    """Phases and percentages in order, then Ready, then the right tokens, the vector, and the counters."""

    async def play(fleet: EngineFleet) -> None:
        services = await fleet.ready()
        loading = fleet.of(ipc.EngineLoading)
        assert (loading[0].phase, loading[-1].phase, loading[-1].percent) == ("starting", "loading", 100.0)
        assert [one.percent for one in loading] == sorted(one.percent for one in loading)
        assert 4 <= len(loading) <= 10  # at most ten a second
        assert [(one.name, one.kind, one.task) for one in services] == [
            ("", "token", "generate"),
            ("embed", "batch", "embed"),
            ("rerank", "batch", "rerank"),
            ("classify", "batch", "classify"),
        ]

        fleet.send(request(1), request(2, 9, [7]), ipc.SubmitTask("embed", 3, {"input": "hi"}, 2))
        await fleet.until(lambda: fleet.is_over(1) and fleet.is_over(2) and 3 in fleet.results())
        assert fleet.tokens(1) == right(5)
        assert fleet.tokens(2) == right(9, [7])
        assert fleet.results()[3].body is not None
        stats = fleet.stats()
        assert (stats[""].tokens, stats["embed"].steps) == (14, 1)

    drive(spec(load_s="0.5"), play)


def test_a_message_larger_than_the_socket_arrives_while_the_engine_works() -> None:
    """In pieces, as there is room: it holds up neither the steps nor what is sent behind it."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(request(1, 4000))
        await fleet.until(lambda: fleet.tokens(1))
        text = "large " * 1_000_000
        fleet.send(ipc.SubmitTask("embed", 2, {"input": text}, len(text)))
        fleet.send(ipc.CancelTicket(1))
        await fleet.until(lambda: 2 in fleet.results() and fleet.is_over(1))
        assert len(fleet.tokens(1)) < 4000

    drive(spec(step_ms="20"), play)


def test_what_cannot_be_done_is_refused_and_harms_nobody() -> None:
    """An unknown service, the wrong kind of task, a full engine: each said by itself."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(
            request(1),
            ipc.Submit("other", request(2).request),
            ipc.SubmitTask("", 3, {}, 1),
            ipc.Submit("embed", request(4).request),
            *(request(ticket) for ticket in range(5, 10)),
            request(10, prompt=[]),
        )
        await fleet.until(lambda: len(fleet.of(ipc.Refused)) >= 5 and fleet.is_over(1))
        refused = {one.ticket: one for one in fleet.of(ipc.Refused)}
        assert "no service 'other'" in refused[2].error
        assert "takes token requests" in refused[3].error
        assert "takes whole tasks" in refused[4].error
        assert refused[9].full
        assert not refused[10].full
        assert fleet.tokens(1) == right(5)

    drive(spec(slots="2", step_ms="20"), play)


def test_a_cancel_ends_one_request_once() -> None:
    """One last event, also if cancelled twice; its neighbour goes on undisturbed; unknown tickets are nothing."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(request(1, 5000), request(2, 40))
        await fleet.until(lambda: fleet.tokens(1))
        fleet.send(ipc.CancelTicket(1), ipc.CancelTicket(1), ipc.CancelTicket(99))
        await fleet.until(lambda: fleet.is_over(1) and fleet.is_over(2))
        assert [event.finish_reason for event in fleet.events(1) if event.finish_reason] == ["cancelled"]
        assert fleet.tokens(2) == right(40)
        assert fleet.events(99) == []

    drive(spec(step_ms="5"), play)


def test_a_poison_item_fails_alone() -> None:
    """Of one batch with a bad item in it, only that one fails; the counter shows the halves tried again."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        texts = [f"text {ticket}" for ticket in range(8)]
        texts[5] = "poison"
        fleet.send(*(ipc.SubmitTask("embed", ticket, {"input": text}, 6) for ticket, text in enumerate(texts)))
        await fleet.until(lambda: len(fleet.results()) == 8)
        failed = {ticket: result.error for ticket, result in fleet.results().items() if result.error}
        assert failed == {5: "ValueError: told to fail by 'poison' in the input"}
        assert fleet.stats()["embed"].steps == 7

    drive(spec(fail_on_prompt="poison"), play)


def test_an_engine_that_loses_items_is_not_believed() -> None:
    """Fewer results than items is an error of each item, not silence."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(ipc.SubmitTask("", 1, {}, 1), ipc.SubmitTask("", 2, {}, 1))
        await fleet.until(lambda: len(fleet.results()) == 2)
        assert all("0 results for 1 items" in (result.error or "") for result in fleet.results().values())

    drive(spec("support.toy_engines:forgetful"), play)


def test_a_long_batch_does_not_silence_the_process() -> None:
    """Signs of life go on, other services are served, and what comes meanwhile makes up the next batch."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(ipc.SubmitTask("embed", 1, {"input": "first"}, 5))
        await fleet.until(
            lambda: any("embed" in one.stats and one.stats["embed"].running for one in fleet.of(ipc.StepReport))
        )
        fleet.send(*(ipc.SubmitTask("embed", ticket, {"input": "more"}, 4) for ticket in range(2, 7)))
        fleet.send(ipc.CancelTicket(6), ipc.CancelTicket(1))
        await fleet.until(lambda: 6 in fleet.results())
        assert fleet.results()[6].error == "cancelled"
        assert 1 not in fleet.results()
        await fleet.until(lambda: len(fleet.results()) == 6)
        stats = fleet.stats()["embed"]
        assert (stats.steps, stats.largest_batch, stats.tokens) == (2, 4, 5)
        assert fleet.results()[1].body is not None

    drive(spec(step_ms="1000"), play)


# --- engines that deal in text ---------------------------------------------------------------------------------------


def speak(ticket: int, prompt: str) -> ipc.SubmitTask:
    """Let the speaker say something."""
    return ipc.SubmitTask("", ticket, {"prompt": prompt}, len(prompt))


def test_text_comes_in_pieces_and_ends_once() -> None:
    """Pieces in order; an error is the last word of its own request; a third one finds no slot."""

    async def play(fleet: EngineFleet) -> None:
        (service,) = await fleet.ready()
        assert service.kind == "stream"
        fleet.send(speak(1, "one two three"), speak(2, "and raise"), speak(3, "too many"))
        await fleet.until(lambda: fleet.ends(1) and fleet.ends(2))
        assert fleet.text(1) == ["one", "two", "three"]
        assert fleet.ends(1) == [ipc.TextChunk(1, "", done=True)]
        assert fleet.text(2) == ["and"]
        assert fleet.ends(2) == [ipc.TextChunk(2, "", done=True, error="ValueError: told to raise")]
        assert [(one.ticket, one.full) for one in fleet.of(ipc.Refused)] == [(3, True)]

    drive(spec("support.toy_engines:speaker"), play)


def test_cancelled_text_stops_and_frees_its_slot() -> None:
    """Also when it is cancelled before it began."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(speak(1, "forever"), speak(2, "forever"), ipc.CancelTicket(2))
        await fleet.until(lambda: len(fleet.text(1)) > 3 and fleet.ends(2))
        fleet.send(ipc.CancelTicket(1), ipc.CancelTicket(1))
        await fleet.until(lambda: fleet.ends(1))
        fleet.send(speak(3, "next"), speak(4, "next"))
        await fleet.until(lambda: fleet.ends(3) and fleet.ends(4))
        assert [one.error for one in fleet.ends(1) + fleet.ends(2)] == ["cancelled", "cancelled"]
        assert fleet.text(4) == ["next"]

    drive(spec("support.toy_engines:speaker"), play)


def test_a_generator_that_blocks_its_loop_falls_silent() -> None:
    """The process's own loop would go on showing itself; it must not vouch for the other thread."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(speak(1, "then block"))
        await fleet.until(lambda: time.monotonic() - fleet.heard_at["mock:0"] > 1.5, "silence")

    drive(spec("support.toy_engines:speaker"), play)


def test_a_process_says_its_kind_of_device() -> None:
    """The variables of its device are set, so that threads of several engines do not fight."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        environment = psutil.Process(fleet.supervisor.pids["mock:0"]).environ()
        assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")
        assert environment["CUDA_VISIBLE_DEVICES"] == ""

    drive(spec(), play)
