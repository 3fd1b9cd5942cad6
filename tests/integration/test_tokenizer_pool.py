"""Prompts are read by processes that may be ended: a template that loops costs its own request and no one else."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.tiny import tiny_model
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import ErrorKind, RequestError
from zmqrt.worker.model_files import ModelError
from zmqrt.worker.preprocess import ServiceLimits, encode_prompt
from zmqrt.worker.tokenizer import load_tokenizer
from zmqrt.worker.tokenizer_pool import LONG_BYTES, PendingPrompt, TokenizerPool

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TEMPLATE = """{% for m in messages %}
{%- if m.content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}
{%- if m.content == 'grow' %}{% set ns = namespace(x='0123456789') %}
{%- for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}{% endif %}
{{- m.role }}: {{ m.content }};{% endfor %}assistant:"""
LIMITS = ServiceLimits(service="m", task="generate", context=512, default_max_tokens=16)


def model(folder: Path, template: str = TEMPLATE) -> Path:
    """Write a tiny model with a template."""
    place = folder / "m"
    shutil.copytree(tiny_model(folder), place)
    (place / "chat_template.jinja").write_text(template, encoding="utf-8")
    return place


def chat(text: str) -> bytes:
    """Return the body of a generation."""
    return tasks.encode(tasks.Generate(messages=[tasks.ChatMessage(role="user", content=text)]))


class Asking:
    """TokenizerPool, and what they said."""

    def __init__(self, directory: Path) -> None:
        self.tokenizers = TokenizerPool(directory)
        self.order: list[str] = []

    async def ask(self, text: str, *, is_wanted: bool = True) -> list[int] | RequestError:
        """Read one prompt."""
        found: asyncio.Future[list[int] | RequestError] = asyncio.get_running_loop().create_future()

        def done(ids: list[int] | RequestError) -> None:
            self.order.append(text[:10])
            found.set_result(ids)

        self.tokenizers.encode(PendingPrompt(chat(text), LIMITS, lambda: is_wanted, done))
        return await found

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run a test, and end the processes."""

        async def whole() -> None:
            try:
                await scenario
            finally:
                pids = self.tokenizers.pids
                self.tokenizers.close()
                assert not any(psutil.pid_exists(pid) for pid in pids)

        asyncio.run(whole())


def test_a_prompt_is_read_as_it_would_be_here(tmp_path: Path) -> None:
    """The same ids, and what the template tells about the model comes first; errors come with their kind."""
    directory = model(tmp_path)
    asking, vocabulary = Asking(directory), load_tokenizer(directory)

    async def scenario() -> None:
        loaded = await asking.tokenizers.load()
        assert (frozenset(loaded.eos_ids), loaded.has_template) == (vocabulary.eos_ids, True)
        assert await asking.ask("hello") == encode_prompt(chat("hello"), vocabulary, LIMITS)
        refused = await asking.ask("word " * 2000)
        assert isinstance(refused, RequestError)
        assert refused.kind is ErrorKind.CONTEXT_EXCEEDED

    asking.run(scenario())


@pytest.mark.parametrize("bad", ["loop", "grow"])
def test_a_template_that_loops_or_explodes_costs_its_request_alone(tmp_path: Path, bad: str) -> None:
    """Again and again: those behind it are read meanwhile, by the other process."""
    asking = Asking(model(tmp_path))

    async def scenario() -> None:
        await asking.tokenizers.load()
        await asking.ask("x" * LONG_BYTES)  # the process for long ones is there
        for _ in range(2):
            lost, *others = await asyncio.gather(asking.ask(bad), *(asking.ask(f"hello {n}") for n in range(4)))
            assert isinstance(lost, RequestError)
            assert lost.kind is ErrorKind.MODEL_RAISED
            assert all(isinstance(one, list) for one in others)
        assert len(asking.tokenizers.pids) == 2
        assert isinstance(await asking.ask("hello"), list)

    asking.run(scenario())
    if bad == "loop":
        assert asking.order.index("hello 3") < asking.order.index("loop")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
@pytest.mark.parametrize("when", ["idle", "reading"])
def test_a_process_that_is_ended_or_stopped_from_outside_costs_nobody_anything(
    tmp_path: Path, number: signal.Signals, when: str
) -> None:
    """It is no fault of the prompt: a new process reads it."""
    asking = Asking(model(tmp_path))

    async def scenario() -> None:
        await asking.tokenizers.load()
        (pid,) = asking.tokenizers.pids
        os.kill(pid, signal.SIGSTOP if when == "reading" else number)
        reading = asyncio.create_task(asking.ask("hello"))
        if when == "reading":
            await asyncio.sleep(0.1)
            os.kill(pid, number)
            if number is signal.SIGTERM:
                os.kill(pid, signal.SIGCONT)
        assert isinstance(await reading, list)
        assert asking.tokenizers.pids != [pid]
        assert not psutil.pid_exists(pid)

    asking.run(scenario())


def test_a_prompt_whose_processes_are_ended_again_and_again_goes_to_another_node(tmp_path: Path) -> None:
    """Once more here, then elsewhere: an end that may be sent again, and what comes behind it is read."""
    asking = Asking(model(tmp_path))

    async def scenario() -> None:
        await asking.tokenizers.load()
        reading, ended = asyncio.create_task(asking.ask("loop")), set[int]()
        while not reading.done():
            for pid in set(asking.tokenizers.pids) - ended:
                if psutil.Process(pid).cpu_times().user > 0.05 or not ended:
                    ended.add(pid)
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.05)
        lost = await reading
        assert isinstance(lost, RequestError)
        assert lost.kind is ErrorKind.ENGINE_RESTARTED
        assert "2 times" in lost.text
        assert isinstance(await asking.ask("hello"), list)

    asking.run(scenario())


def test_a_text_of_megabytes_is_refused_before_it_is_encoded(tmp_path: Path) -> None:
    """And not before the short ones that came after it."""
    asking = Asking(model(tmp_path))

    async def scenario() -> None:
        await asking.tokenizers.load()
        long = asyncio.create_task(asking.ask("hello world " * 300_000))
        await asyncio.sleep(0)
        assert isinstance(await asking.ask("hello"), list)
        refused = await long
        assert isinstance(refused, RequestError)
        assert refused.kind is ErrorKind.CONTEXT_EXCEEDED
        assert "at least" in refused.text

    asking.run(scenario())
    assert asking.order[0] == "hello"


def test_who_has_left_is_not_read_for(tmp_path: Path) -> None:
    """So that prompts that are given up do not pile up."""
    asking = Asking(model(tmp_path))

    async def scenario() -> None:
        gone = asyncio.create_task(asking.ask("loop", is_wanted=False))
        assert isinstance(await asking.ask("hello"), list)
        assert not gone.done()
        gone.cancel()

    asking.run(scenario())


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in", "line 1"),
        pytest.param(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "takes too long",
            marks=pytest.mark.slow,  # it has 20 s of the processor
        ),
    ],
)
def test_a_template_that_can_never_be_used_is_told_at_the_start(tmp_path: Path, template: str, why: str) -> None:
    """In its own words, or because it does not end."""
    asking = Asking(model(tmp_path, template))

    async def scenario() -> None:
        with pytest.raises(ModelError, match=why):
            await asking.tokenizers.load()

    asking.run(scenario())
