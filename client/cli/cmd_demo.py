"""`zmqrt demo`: start everything on free ports, ask one question natively and over HTTP, compare, stop everything."""

from __future__ import annotations

import time
from typing import Final

import click

from ...protocol.errors import EXIT_FAILED, EXIT_INTERRUPTED, ZmqrtError
from ..sync import Client
from .cmd_up import timeout_option
from .http_submit import post
from .interrupts import Interrupts
from .local_stack import LocalStack, StackPlan, has_bridge
from .stack_view import open_display
from .stdio import answer

_QUESTION: Final = "What is the capital of France?"
_MAX_TOKENS: Final = 48
_START_S: Final = 1200.0
"""A first start downloads and converts a model; on a slow line and an old machine that takes minutes."""
_ANSWER_S: Final = 300.0
"""Time for each answer: whoever sees this for the first time may sit before an old machine."""


@click.command(help="Start everything, ask one question in two ways, stop everything.")
@click.option("--model", metavar="NAME", default="smollm2-135m", show_default=True, help="Model to ask.")
@click.option("--mock", is_flag=True, help="Ask a toy model on two mock devices instead: no torch, over in seconds.")
@timeout_option
@click.pass_context
def command(context: click.Context, /, *, model: str, mock: bool, request_timeout_s: float | None) -> None:
    """Exit with 0 only if both answers are the same."""
    if not has_bridge():
        raise ZmqrtError("the demo asks over HTTP too: pip install 'zmqrt[bridge]'")
    chosen = ("--engine", "mock") if mock else ("--model", model, "--allow-download")
    plan = StackPlan(
        http_port=0,
        client_port=0,
        worker_port=0,
        worker_arguments=chosen,
        request_timeout_s=_ANSWER_S if request_timeout_s is None else request_timeout_s,
        log_level="warning",
    )
    context.exit(run(plan))


def run(plan: StackPlan) -> int:
    """Start, ask, stop; return the exit code."""
    with Interrupts() as interrupts:
        with open_display() as display, LocalStack(plan, display, interrupts) as stack:
            begun = time.monotonic()
            _wait(stack, interrupts)
            took_s = time.monotonic() - begun
            display.clear()
            if interrupts.count:
                code = EXIT_INTERRUPTED
            else:
                with interrupts.raised():
                    code = _ask(stack, took_s)
            stack.leave(interrupts.count)
        click.secho("Everything has stopped.", dim=True)
        return code


def _wait(stack: LocalStack, interrupts: Interrupts) -> None:
    give_up_at = time.monotonic() + _START_S
    while not stack.is_served and not interrupts.count:
        stack.step()
        stack.check()
        if time.monotonic() > give_up_at:
            raise ZmqrtError(f"the model was not ready within {_START_S:.0f} s")


def _ask(stack: LocalStack, took_s: float) -> int:
    clients, http = stack.clients, stack.http
    assert clients is not None
    assert http is not None
    click.secho(f"Broker, worker and bridge run; the model was ready after {took_s:.1f} s.\n", dim=True)
    answer_s = stack.plan.request_timeout_s or _ANSWER_S
    natively = _ask_natively(clients, answer_s)
    over_http = _ask_over_http(http, answer_s)
    if natively != over_http:
        click.secho("The two answers differ.", fg="red")
        return EXIT_FAILED
    click.secho("Both answers are the same.", fg="green")
    return 0


def _ask_natively(clients: str, timeout_s: float) -> str:
    """Stream the answer to the terminal."""
    click.secho(f'zmqrt infer --temperature 0 "{_QUESTION}"   (native, over ZeroMQ to {clients})', bold=True)
    pieces: list[str] = []
    with (
        Client(clients, timeout_s=timeout_s, name="zmqrt demo") as client,
        client.stream(_QUESTION, temperature=0.0, max_tokens=_MAX_TOKENS) as stream,
    ):
        for chunk in stream:
            pieces.append(chunk.text)
            answer(chunk.text, nl=False)
    click.echo("\n")
    return "".join(pieces)


def _ask_over_http(http: str, timeout_s: float) -> str:
    click.secho(f"POST {http}/infer   (over HTTP)", bold=True)
    body: dict[str, object] = {"prompt": _QUESTION, "max_tokens": _MAX_TOKENS, "temperature": 0.0}
    text = str(post(http, body, timeout_s=timeout_s)["text"])
    answer(f"{text}\n")
    return text
