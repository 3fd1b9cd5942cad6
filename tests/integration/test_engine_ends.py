"""Engine processes and their supervisor: every way to die, leaving, and nothing left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import msgspec
import psutil
import pytest

from support.engine_fleet import EngineFleet, alive, drive, request, right, spec
from support.stack import eventually
from zmqrt.worker import engine_child
from zmqrt.worker.engines import ipc

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform == "win32", reason="nodes are Unix only")]
TESTS = str(Path(__file__).resolve().parents[1])


@pytest.fixture(autouse=True)
def engines_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engine processes import `support.toy_engines`."""
    monkeypatch.setenv("PYTHONPATH", TESTS)


def test_a_killed_process_is_started_again_alone() -> None:
    """Its end is told at once and by name; the other device keeps its process; the new one works."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready("mock:0")
        await fleet.ready("mock:1")
        before = fleet.supervisor.pids
        os.kill(before["mock:0"], signal.SIGKILL)
        killed_at = time.monotonic()
        assert await fleet.exit() == ("mock:0", "killed by SIGKILL", True)
        assert time.monotonic() - killed_at < 0.4  # the first pause before a restart is longer than that
        fleet.forget()
        await fleet.ready()
        assert fleet.supervisor.pids["mock:1"] == before["mock:1"]
        assert fleet.supervisor.pids["mock:0"] != before["mock:0"]
        fleet.send(request(1))
        await fleet.until(lambda: fleet.is_over(1))
        assert fleet.tokens(1) == right(5)

    drive(spec(), play, devices=2)


@pytest.mark.parametrize("how", ["kill -9", "a fault of the device"])
def test_the_other_device_serves_on_while_one_breaks(how: str) -> None:
    """Its stream goes on while the broken one is down and loads again, in the same process, every token right."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready("mock:0")
        await fleet.ready("mock:1")
        well = fleet.supervisor.pids["mock:1"]
        fleet.send(request(1, 90_000))
        fleet.send(request(2, 90_000), device="mock:1")
        await fleet.until(lambda: fleet.tokens(1) and fleet.tokens(2, "mock:1"))

        if how == "kill -9":
            os.kill(fleet.supervisor.pids["mock:0"], signal.SIGKILL)
        else:
            fleet.send(request(3, prompt=list(b"fault")))
        device, why, is_restarted = await fleet.exit()
        assert (device, is_restarted) == ("mock:0", True)
        assert why == "killed by SIGKILL" or "an illegal memory access" in why
        at_the_end = len(fleet.tokens(2, "mock:1"))
        fleet.forget()
        await fleet.ready()
        at_the_return = len(fleet.tokens(2, "mock:1"))
        await fleet.until(lambda: len(fleet.tokens(2, "mock:1")) > at_the_return)
        fleet.send(request(4))
        await fleet.until(lambda: fleet.is_over(4))

        assert at_the_return > at_the_end, "it stood still while the other one was down"
        made = fleet.tokens(2, "mock:1")
        assert made == right(len(made))
        assert fleet.tokens(4) == right(5)
        assert fleet.supervisor.pids["mock:1"] == well
        assert fleet.exits == []

    drive(spec("support.toy_engines:faulty"), play, devices=2)


def test_nothing_of_a_dead_process_is_taken_for_words_of_the_next() -> None:
    """After the end has been told, the next thing heard is the beginning of the new process."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(*(request(ticket, 5000) for ticket in range(1, 9)))
        await fleet.until(lambda: fleet.tokens(1))
        os.kill(fleet.supervisor.pids["mock:0"], signal.SIGKILL)
        await fleet.exit()
        fleet.forget()
        await fleet.until(lambda: len(fleet.of(ipc.StepReport)) >= 2)
        assert isinstance(fleet.said["mock:0"][0], ipc.EngineLoading)
        assert [step.events for step in fleet.of(ipc.StepReport)] == [[], []]

    drive(spec(step_ms="0"), play)


def test_a_crash_in_a_step_keeps_what_was_made_before_it() -> None:
    """The tokens of the other request that were sent are read before the end is told."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(request(1, 5000))
        await fleet.until(lambda: len(fleet.tokens(1)) >= 3)
        fleet.send(request(2, prompt=list(b"a crash")))
        assert (await fleet.exit())[1] == "killed by SIGKILL"
        made = fleet.tokens(1)
        assert made == right(len(made))

    drive(spec(step_ms="5", crash_on_prompt="crash"), play)


def test_silence_betrays_a_hung_engine() -> None:
    """An idle engine shows itself at least every 250 ms or so; one that hangs does not, and is killed with a reason."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        since = time.monotonic()
        await fleet.until(lambda: len(fleet.of(ipc.StepReport)) >= 8)
        assert (time.monotonic() - since) / 8 < 0.35

        fleet.send(request(1, prompt=list(b"please hang")))
        await fleet.until(lambda: time.monotonic() - fleet.heard_at["mock:0"] > 1.5, "silence")
        fleet.supervisor.restart("mock:0", "its loop stands still")
        assert await fleet.exit() == ("mock:0", "its loop stands still", True)

    drive(spec(hang_on_prompt="hang"), play)


def test_an_engine_that_computes_ahead_shows_itself_when_it_is_idle_again() -> None:
    """A step was under way behind the stop id: fetched by nobody it would be a device that hangs."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        stop = msgspec.structs.replace(request(1).request, stop_ids=right(1))
        fleet.send(ipc.Submit("", stop))
        await fleet.until(lambda: fleet.is_over(1))
        fleet.forget()
        await fleet.until(lambda: len(fleet.of(ipc.StepReport)) >= 5, "signs of life")

    drive(spec("support.process_engines:hanging", step_ms="1", hang="never"), play)


def test_a_stopped_process_can_be_killed_too() -> None:
    """SIGSTOP is the other way to stand still."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        os.kill(fleet.supervisor.pids["mock:0"], signal.SIGSTOP)
        fleet.supervisor.restart("mock:0", "no sign of life")
        assert (await fleet.exit())[1] == "no sign of life"

    drive(spec(), play)


def test_a_process_that_cannot_be_killed_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a driver not even SIGKILL ends it: after a while it counts as ended, and another one is started."""
    monkeypatch.setattr(engine_child, "_KILLED_S", 0.3)

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        stuck = fleet.supervisor.pids["mock:0"]
        os.kill(stuck, signal.SIGSTOP)  # else it ends by itself when its channel does
        with monkeypatch.context() as driver:
            driver.setattr(subprocess.Popen, "kill", Mock())
            fleet.supervisor.restart("mock:0", "its loop stands still")
            device, reason, is_restarted = await fleet.exit()
        assert (device, is_restarted) == ("mock:0", True)
        assert reason.startswith("its loop stands still; it cannot be killed")
        assert alive([stuck])
        fleet.forget()
        await fleet.ready()
        assert fleet.supervisor.pids["mock:0"] != stuck
        os.kill(stuck, signal.SIGKILL)
        await fleet.until(lambda: not alive([stuck]))

    drive(spec(), play)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("support.toy_engines:raising", "OSError: no weights in this directory"),
        ("support.toy_engines:hungry", "OutOfMemoryError: there is too little memory to load toy (it asked"),
        ("support.toy_engines:nothing_known", "neither a TokenEngine"),
        ("support.toy_engines:haunted", "RuntimeError: a thread of its own goes on"),
        ("no_such_engine", "no engine is named 'no_such_engine'; there are"),
        ("support.toy_engines:missing", "has no function 'missing'"),
    ],
)
def test_a_factory_that_fails_says_why_in_one_line(engine: str, words: str) -> None:
    """The words arrive before the end does, and are its reason."""

    async def play(fleet: EngineFleet) -> None:
        _, reason, _ = await fleet.exit()
        assert words in reason
        assert "\n" not in reason
        assert [one.error for one in fleet.of(ipc.EngineFailed)] == [reason]

    drive(spec(engine), play)


def test_a_process_that_loses_its_device_has_the_next_one_do_with_less() -> None:
    """As often as there is something to leave out, however few tries a model has to load."""

    async def play(fleet: EngineFleet) -> None:
        ends = [await fleet.exit() for _ in range(4)]
        assert ends == [("mock:0", f"lost it to thing {number}", True) for number in (1, 2, 3, 4)]
        fleet.forget()
        (service,) = await fleet.ready()
        assert service.fallback == "4 things left out"

    drive(spec("support.toy_engines:losing"), play)


def test_a_device_that_hangs_while_it_warms_up_is_found() -> None:
    """The process ends itself, says where it stood, and is tried again like any other that cannot load."""

    async def play(fleet: EngineFleet) -> None:
        device, reason, is_restarted = await fleet.exit()
        assert (device, is_restarted) == ("mock:0", True)
        assert reason == "its device stood still while the engine got ready; its log shows where"

    drive(spec("support.toy_engines:hung"), play)


def test_a_device_that_never_loads_is_given_up() -> None:
    """After the last try nothing is started any more."""

    async def play(fleet: EngineFleet) -> None:
        tries = [await fleet.exit()]
        while tries[-1][2]:
            tries.append(await fleet.exit())
        assert len(tries) == 3
        assert fleet.supervisor.pids == {}
        assert tries[-1][1] == f"{tries[0][1]} (given up after 3 tries)"

    drive(spec("support.toy_engines:raising"), play)


def test_a_broken_engine_ends_its_process() -> None:
    """What its last step made arrives, then the reason, then the end; failing to close does not matter."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        fleet.send(request(1), request(2))
        assert (await fleet.exit())[1] == "the device is gone"
        assert fleet.is_over(2)

    drive(spec("support.toy_engines:doomed"), play)


# --- leaving ---------------------------------------------------------------------------------------------------------


def test_without_descriptors_a_process_is_tried_again() -> None:
    """It is told like any other end, and passes like any other."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        resource.setrlimit(resource.RLIMIT_NOFILE, (4, usual[1]))
        fleet.supervisor.restart("mock:0", "as the test wants it")
        await fleet.until(lambda: len(fleet.exits) == 2, "an end, and a start that fails")
        assert fleet.exits[0][1] == "as the test wants it"
        assert "could not be started" in fleet.exits[1][1]
        assert fleet.exits[1][2]
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        fleet.said.clear()
        await fleet.ready()

    try:
        drive(spec(), play)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


@pytest.mark.parametrize("engine", ["mock", "support.toy_engines:stuck"])
def test_it_stops_in_time_whatever_it_does(engine: str) -> None:
    """In the middle of its work, or inside a loader that never returns."""
    started_at = 0.0

    async def play(fleet: EngineFleet) -> None:
        nonlocal started_at
        if engine == "mock":
            await fleet.ready()
            fleet.send(request(1, 5000))
            await fleet.until(lambda: fleet.tokens(1))
        else:
            await fleet.until(lambda: [one for one in fleet.of(ipc.EngineLoading) if one.phase == "loading"])
        started_at = time.monotonic()

    drive(spec(engine), play)

    assert time.monotonic() - started_at < 2.5


def test_ctrl_c_is_the_parents_to_decide() -> None:
    """SIGINT changes nothing."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        os.kill(fleet.supervisor.pids["mock:0"], signal.SIGINT)
        fleet.send(request(1))
        await fleet.until(lambda: fleet.is_over(1))
        assert fleet.exits == []

    drive(spec(), play)


def test_an_idle_engine_costs_next_to_nothing() -> None:
    """It waits on its socket: no spinning."""

    async def play(fleet: EngineFleet) -> None:
        await fleet.ready()
        process = psutil.Process(fleet.supervisor.pids["mock:0"])
        before = sum(process.cpu_times()[:2])
        since = time.monotonic()
        await fleet.until(lambda: time.monotonic() - since > 2.0)
        assert sum(process.cpu_times()[:2]) - before < 0.2

    drive(spec(), play)


ORPHAN = """
import asyncio, sys, time
from support.engine_fleet import drive, spec
async def play(fleet):
    await fleet.ready()
    print(fleet.supervisor.pids["mock:0"], flush=True)
    await fleet.until(lambda: False)
drive(spec(hang_on_prompt="hang"), play)
"""


def test_an_engine_does_not_outlive_its_parent() -> None:
    """The agent is killed; the engine goes within seconds."""
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent:
        pid = int(parent.stdout.readline())
        assert alive([pid])
        parent.kill()

    eventually(lambda: not alive([pid]), within_s=5.0, what="the end of the orphan")


PARENT = ORPHAN.replace('spec(hang_on_prompt="hang")', 'spec("support.toy_engines:parent", pid_file=sys.argv[1])')


def test_what_an_engine_has_spawned_does_not_outlive_it(tmp_path: Path) -> None:
    """A library starts processes of its own. They end with the engine, also where no agent is there to see to it."""
    pid_file = tmp_path / "pid"
    agent = subprocess.Popen([sys.executable, "-c", PARENT, str(pid_file)], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    with agent:
        try:
            engine, child = int(agent.stdout.readline()), int(pid_file.read_text(encoding="utf-8"))
            assert alive([engine, child]) == [engine, child]
            agent.send_signal(signal.SIGSTOP)
            os.kill(engine, signal.SIGKILL)
            eventually(lambda: not alive([child]), within_s=10.0, what="the end of the orphan")
        finally:
            agent.kill()
