"""`zmqrt infer`: one prompt, one answer."""

from __future__ import annotations

from typing import Any, NoReturn

import click

from ...protocol.settings import options
from ...protocol.tasks import ChatMessage
from ..calls import GenerateOptions
from ..config import ClientSettings
from ..response import Result
from ..sync import Client, Stream
from .answer_view import AnswerView, answer_fields
from .generation import SamplingFlags, messages, naming_the_flag, sampling_options
from .stdio import data, is_terminal, read_prompt
from .tool_flags import TOOL_HELP, callable_tools, tool_fields, tool_options
from .wait_line import WaitLine


@click.command(
    help="Send one prompt and print the answer as it is made.",
    epilog="Words go to standard output, what the model thinks first to standard error. Each call of a tool is a line "
    f"of JSON, with name and arguments; --json tells everything apart.\n\n{TOOL_HELP}",
)
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="What the model is told beforehand.")
@click.option("--raw", is_flag=True, help="Let the model go on with the text as it is, without its chat template.")
@click.option("--stream/--no-stream", default=None, help="Print while it is made [default: on a terminal].")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
@tool_options
@sampling_options
@options(ClientSettings)
def command(
    settings: ClientSettings,
    sampling: SamplingFlags,
    *,
    prompt: str | None,
    system: str | None,
    raw: bool,
    stream: bool | None,
    as_json: bool,
    tools: list[dict[str, Any]],
    tool_choice: str | None,
) -> None:
    """Ask, and print. PROMPT may be - or left out, to read it from a pipe."""
    if raw and (system or tools):
        flag = "--system" if system else "--tools"
        raise click.UsageError(f"--raw sends the text as it is, so there is no place for {flag}")
    text = read_prompt(prompt)
    asked: GenerateOptions = {**sampling.options(), **tool_fields(tools, tool_choice)}
    if system or tools:
        asked["messages"] = messages(system, ChatMessage(role="user", content=text))
    elif raw:
        asked["raw"] = True
    callable_ = callable_tools(tools, tool_choice)
    with naming_the_flag(), Client.from_settings(settings, name="zmqrt infer") as client:
        wanted = None if "messages" in asked else text
        if as_json:
            result = client.infer(wanted, **asked)
            data(to_fields(result) | answer_fields(result.text, callable_))
        else:
            is_streamed = stream if stream is not None else is_terminal()
            view = AnswerView(None if raw else callable_)
            shown = _print(client, wanted, asked, view, is_streamed=is_streamed)
            if shown is not None and shown.finish_reason == "length" and (sampling.schema or sampling.regex):
                _refuse_half(shown.usage.completion_tokens)


def _refuse_half(tokens: int) -> NoReturn:
    """Let no program take half a document for a whole one; --json says so by its finish_reason."""
    raise click.ClickException(
        f"the answer was cut off after {tokens} tokens, before it was what was asked for; allow more with --max-tokens"
    )


def _print(
    client: Client, prompt: str | None, asked: GenerateOptions, view: AnswerView, *, is_streamed: bool
) -> Result | None:
    """Show an answer; return it where it has come to its end."""
    wait = WaitLine()
    asked["on_wait"] = wait.show
    try:
        if not is_streamed:
            result = client.infer(prompt, **asked)
            wait.clear()
            view.show(result.text)
            view.close()
            return result
        return _print_as_it_comes(client.stream(prompt, **asked), view, wait)
    finally:
        wait.clear()
        if is_streamed:
            view.close()  # an error, or the shell's prompt, starts on a line of its own


def _print_as_it_comes(stream: Stream, view: AnswerView, wait: WaitLine) -> Result | None:
    with stream:
        for chunk in stream:
            wait.clear()
            view.show(chunk.text)
        return stream.result


def to_fields(result: Result) -> dict[str, object]:
    """Return a result as programs read it."""
    usage = result.usage
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
        "seed": result.seed,
        "model": result.model,
        "revision": result.revision,
        "request_id": result.request_id,
    }
