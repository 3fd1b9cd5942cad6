"""Nodes and engines that are killed while they work: nobody's answer shows it. And callers who leave."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.lazily import lazily
from support.process_engines import ENV
from support.stack import Stack, eventually, running
from support.streams import Expected, ask_streams, mixed, open_all, read_on
from zmqrt.client import Client, WorkerLostError
from zmqrt.protocol.errors import ErrorKind

openai = lazily("openai")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
PACE = ("--engine-opt", "step_ms=10", "--devices", "0,1")


def kill_agent(stack: Stack) -> psutil.Process:
    """Kill node-0, not its engines: they are to notice."""
    agent, *engines = stack.node("node-0").family()
    agent.kill()
    return engines[0]


def kill_engine(stack: Stack) -> psutil.Process:
    """Kill one engine process of node-0."""
    engine = stack.node("node-0").family()[1]
    engine.kill()
    return engine


def is_gone(process: psutil.Process) -> bool:
    """Say whether a process has ended, even if nobody has taken note of that yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def busy(client: Client) -> int:
    """Return how many requests node-0 has."""
    return next(node.in_flight for node in client.status().nodes if node.node_id == "node-0")


def two_nodes(stack: Stack, engine: str, options: Sequence[str], *words: str) -> None:
    """Start a broker and two nodes with an engine of `support.process_engines`, each with its own option."""
    stack.broker()
    for number, option in enumerate(options):
        stack.worker(
            *("--engine-opt", f"step_ms=10,{option}", "--served-model-name", "mock", *words),
            engine=f"support.process_engines:{engine}",
            node_id=f"node-{number}",
            env=ENV,
        )
    stack.wait_for_nodes(2)


@pytest.mark.parametrize("kill", [kill_agent, kill_engine])
def test_streams_outlive_what_runs_them(kill: Callable[[Stack], psutil.Process]) -> None:
    """Greedy, sampled, ended by stop strings, whole: equal ids and text, no gap, no repeat, one end."""
    expected = mixed(50, 120)
    with running(nodes=2, worker=PACE) as stack, stack.client() as client:
        handles = ask_streams(client, expected)
        begun = open_all(handles, expected)
        eventually(lambda: busy(client), what="work on node-0")
        victim = kill(stack)
        for handle, first, one in zip(handles, begun, expected, strict=True):
            read_on(handle, first, one)
        after = client.status()

        eventually(lambda: is_gone(victim), what="the end of the engine")
        if kill is kill_agent:
            assert after.counters["nodes_lost"] == 1
            assert after.counters["resumes"] > 0
        assert after.counters["failed"] == 0
        assert after.counters["completed"] == len(expected)
        assert after.counters["internal_errors"] == 0


@pytest.mark.parametrize("kill", [kill_agent, kill_engine])
def test_what_must_not_run_twice_does_not(tmp_path: Path, kill: Callable[[Stack], psutil.Process]) -> None:
    """Answered once, or 502 outcome_unknown: and the engines' own notes name each prompt once."""
    notes = tmp_path / "notes"
    expected = [Expected(seed, 100, is_stream=seed % 2 == 0, is_idempotent=False) for seed in range(40)]
    with Stack() as stack:
        two_nodes(stack, "noted", [f"notes={notes}"] * 2)
        with stack.client() as client:
            handles = ask_streams(client, expected)
            begun = open_all(handles, expected)
            eventually(lambda: len(notes.read_text(encoding="ascii").splitlines()) == len(expected), what="all at work")
            kill(stack)
            ends: Counter[str] = Counter()
            for handle, first, one in zip(handles, begun, expected, strict=True):
                try:
                    read_on(handle, first, one)
                except WorkerLostError as error:
                    assert error.kind is ErrorKind.OUTCOME_UNKNOWN
                    ends["unknown"] += 1
                else:
                    ends["answered"] += 1

    assert ends["answered"] > 0
    assert ends["unknown"] > 0
    assert ends.total() == len(expected)
    assert Counter(notes.read_text(encoding="ascii").splitlines()) == {one.prompt: 1 for one in expected}


def test_a_device_that_hangs_is_found_and_its_streams_go_on_elsewhere(tmp_path: Path) -> None:
    """Its loop turns all the time and asks for a step that is never done: within the stall time that is no life."""
    stall_s, expected = 1.0, mixed(20, 150)
    hang = tmp_path / "hang"
    with Stack() as stack:
        options = [f"hang={hang}", f"hang={tmp_path / 'never'}"]
        two_nodes(stack, "hanging", options, "--stall-timeout", str(stall_s))
        with stack.client() as client:
            handles = ask_streams(client, expected)
            begun = open_all(handles, expected)
            eventually(lambda: busy(client), what="work on node-0")
            hang.touch()
            for handle, first, one in zip(handles, begun, expected, strict=True):
                read_on(handle, first, one)
            eventually(lambda: _restarts(client) == 1, what="the restart of the engine")
            eventually(lambda: all(node.is_up for node in client.status().nodes), what="both nodes up again")

            assert not hang.exists()
            assert client.status().counters["failed"] == 0
        (still_s,) = re.findall(r"its loop stands still for ([\d.]+) s", stack.node("node-0").output())[:1]

    assert stall_s <= float(still_s) < 30, "by the setting, not by its default; the clock may have waited for a core"


def test_a_prompt_that_kills_engines_is_given_up_alone() -> None:
    """Three engines die of it, then it is poison; everything else is answered."""
    expected = mixed(20, 300)
    with (
        running(nodes=2, worker=(*PACE, "--engine-opt", "crash_on_prompt=deadly")) as stack,
        stack.client(timeout_s=60) as client,
    ):
        handles = ask_streams(client, expected)
        begun = open_all(handles, expected)
        with pytest.raises(WorkerLostError) as caught:
            client.infer("deadly", model="mock", raw=True)
        for handle, first, one in zip(handles, begun, expected, strict=True):
            read_on(handle, first, one)
        restarts = eventually(lambda: _restarts(client) if _restarts(client) >= 3 else None, what="three restarts")

        assert caught.value.kind is ErrorKind.POISON
        assert restarts == 3, "each engine that it killed, and no more"
        assert client.status().counters["poisoned"] == 1


def _restarts(client: Client) -> int:
    return sum(device.restarts for node in client.status().nodes for device in node.devices)


def is_idle(client: Client) -> bool:
    """Say whether nothing runs: on the nodes too, not only at the broker."""
    snapshot = client.status()
    return not snapshot.running and not any(device.running for node in snapshot.nodes for device in node.devices)


def test_a_stream_left_early_frees_its_slot() -> None:
    """Although it would go on for minutes."""
    with running(worker=("--engine-opt", "step_ms=50")) as stack, stack.client() as client:
        with client.stream("endless", max_tokens=4000, ignore_eos=True, model="mock") as stream:
            next(stream)
            eventually(lambda: client.status().running == 1, what="a busy fleet")

        eventually(lambda: is_idle(client), within_s=10, what="an idle fleet")


@pytest.mark.slow
def test_a_slow_stream_is_kept_by_a_client_that_says_nothing_else() -> None:
    """Longer than a broker keeps the work of a silent client: the library gives signs of life by itself."""
    impatient = ("--heartbeat-interval", "0.4", "--node-eviction-timeout", "0.8")
    with running(broker=impatient, worker=("--engine-opt", "step_ms=3000")) as stack, stack.client() as client:
        handle = client.submit("slow", stream=True, max_tokens=4, ignore_eos=True, model="mock", timeout_s=20)

        assert sum(len(chunk.token_ids) for chunk in handle) == 4


@pytest.mark.slow
def test_the_work_of_a_killed_client_is_given_up() -> None:
    """After the time it had to come back: the broker counts it, and the node's slots are free."""
    ask = "c.submit('x', stream={}, max_tokens=100000, ignore_eos=True, model='mock', timeout_s=600)"
    code = "import sys; from zmqrt.client import Client; c = Client(sys.argv[1])"
    asks = f"a = {ask.format(True)}; b = {ask.format(False)}; a.result()"
    with running(worker=("--engine-opt", "step_ms=50", "--max-model-len", "200000")) as stack, stack.client() as client:
        child = stack.script(f"{code}; {asks}", stack.clients)
        eventually(lambda: client.status().running == 2, what="running requests")
        child.kill()

        eventually(lambda: is_idle(client), what="an idle fleet")
        assert client.status().counters["cancelled"] == 2


def test_every_one_of_several_answers_outlives_its_node() -> None:
    """All four, over both nodes, of which one is lost: each is the one that its seed gives undisturbed."""
    ask: dict[str, Any] = {"model": "mock", "prompt": ["one", "two"], "n": 2, "seed": 5, "max_tokens": 120}
    ask["extra_body"] = {"ignore_eos": True}
    with running(nodes=2, worker=PACE) as stack, stack.client() as client:
        bridge = stack.bridge()
        with openai.OpenAI(base_url=f"{bridge.endpoints['http']}/v1", api_key="none") as caller:
            whole = caller.completions.create(**ask)
            texts, is_killed = [""] * 4, False
            for chunk in caller.completions.create(**ask, stream=True):
                (choice,) = chunk.choices
                texts[choice.index] += choice.text
                if not is_killed and all(texts) and busy(client):
                    kill_agent(stack)
                    is_killed = True
        after = client.status()

    assert is_killed
    assert after.counters["resumes"] > 0
    assert texts == [choice.text for choice in whole.choices]
