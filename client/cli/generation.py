"""What the subcommands that generate text share: the flags that shape an answer, and how they become a call."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

import click

from ...protocol.errors import ErrorKind, RequestError, request_error
from ...protocol.priority import CLASSES, class_of
from ...protocol.tasks import ChatMessage
from ..calls import GenerateOptions

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How an answer is to be made, as the flags say; None = not given."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    schema: str | None = None
    regex: str | None = None
    template: dict[str, Any] | None = None
    priority: str | int | None = None

    def options(self) -> GenerateOptions:
        """Return what was given, as the library's verbs take it; they check it."""
        # By identity: a temperature of 0 equals False, and was given all the same.
        given = {name: value for name, value in vars(self).items() if value is not None and value is not False}
        if not self.stop:
            del given["stop"]
        if self.template is not None:
            given["rendering"] = {"kwargs": given.pop("template")}
        return cast("GenerateOptions", given)  # the names above are its names


def _read_schema(_context: click.Context, _param: click.Parameter, given: str | None) -> str | None:
    """Read the file of a schema; whether it is one, its node says."""
    if given is None:
        return None
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise click.BadParameter(f"{given}: {words}", param_hint="--schema") from None


def _read_priority(_context: click.Context, _param: click.Parameter, given: str | None) -> str | int | None:
    """Read a class, or a number."""
    if given is None or class_of(given) is not None:
        return given
    try:
        return int(given)
    except ValueError:
        words = ", ".join(CLASSES)
        raise click.BadParameter(f"{given}: one of {words}, or a number", param_hint="--priority") from None


def _read_values(_context: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> dict[str, Any] | None:
    """Read values as JSON; what is no JSON is a text."""
    values: dict[str, Any] = {}
    for pair in given:
        name, found, value = pair.partition("=")
        if not found:
            raise click.BadParameter(f"{pair}: NAME=VALUE is meant", param_hint="--template")
        try:
            values[name] = json.loads(value)
        except (ValueError, RecursionError):
            values[name] = value
    return values or None


_OPTIONS: Final = (
    click.option("-m", "--model", metavar="NAME", help="Model to ask; see `zmqrt models`."),
    click.option("-n", "--max-tokens", type=int, metavar="N", help="Most tokens to generate."),
    click.option("--min-tokens", type=int, metavar="N", help="Fewest tokens to generate."),
    click.option("-t", "--temperature", type=float, metavar="NUMBER", help="0 = always the likeliest [default: 0.7]."),
    click.option("--top-p", type=float, metavar="NUMBER", help="Draw from the likeliest tokens of this joint weight."),
    click.option("--top-k", type=int, metavar="N", help="Draw from this many of the likeliest tokens."),
    click.option("--min-p", type=float, metavar="NUMBER", help="Leave out what is less likely, beside the likeliest."),
    click.option("--repetition-penalty", type=float, metavar="NUMBER", help="Above 1 repeats less."),
    click.option("--presence-penalty", type=float, metavar="NUMBER", help="Above 0 looks for other words."),
    click.option("--frequency-penalty", type=float, metavar="NUMBER", help="The same, by how often they came."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."),
    click.option("--seed", type=int, metavar="N", help="The same seed draws the same answer."),
    click.option("--ignore-eos", is_flag=True, help="Go on when the model wants to end."),
    click.option(
        "--schema",
        metavar="FILE",
        callback=_read_schema,
        help="Answer with JSON that keeps to the JSON Schema in this file.",
    ),
    click.option("--regex", metavar="PATTERN", help="Answer with a text that this regular expression matches whole."),
    click.option(
        "--priority",
        metavar="CLASS",
        callback=_read_priority,
        help="interactive, default or bulk, or a number: who waits with a higher one goes first.",
    ),
    click.option(
        "--template",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_read_values,
        help="Give the model's chat template a value, such as enable_thinking=false; may be repeated.",
    ),
)


def sampling_options(function: Callable[Concatenate[SamplingFlags, P], R]) -> Callable[P, R]:
    """Give a click function the flags above; it gets them as its first argument."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        taken: dict[str, Any] = {field.name: kwargs.pop(field.name) for field in dataclasses.fields(SamplingFlags)}
        return function(SamplingFlags(**taken), *args, **kwargs)

    wrapped: Callable[P, R] = run
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


@contextlib.contextmanager
def naming_the_flag() -> Generator[None]:
    """Let the error of a request that ran out of time say which flags give it more."""
    try:
        yield
    except RequestError as error:
        if error.kind not in (ErrorKind.DEADLINE, ErrorKind.STALLED):
            raise
        text = f"{error.text}; --timeout allows more time without progress, --total-timeout bounds the whole"
        raise request_error(error.kind, text, request_id=error.request_id, resume_n=error.resume_n) from None


def messages(system: str | None, *turns: ChatMessage) -> list[ChatMessage]:
    """Return a conversation with the words of the system, if there are any, first."""
    return [*([ChatMessage(role="system", content=system)] if system else []), *turns]
