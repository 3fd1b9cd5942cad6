"""`zmqrt infer`: one prompt, one answer."""

from __future__ import annotations

import click

from ...protocol.settings import options
from ...protocol.tasks import ChatMessage
from ..calls import GenerateOptions
from ..config import ClientSettings
from ..response import Result
from ..sync import Client
from .generation import SamplingFlags, messages, naming_the_flag, sampling_options
from .stdio import answer, data, is_terminal, read_prompt


@click.command(help="Send one prompt and print the answer as it is made.")
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="What the model is told beforehand.")
@click.option("--raw", is_flag=True, help="Let the model go on with the text as it is, without its chat template.")
@click.option("--stream/--no-stream", default=None, help="Print while it is made [default: on a terminal].")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
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
) -> None:
    """Ask, and print. PROMPT may be - or left out, to read it from a pipe."""
    if raw and system:
        raise click.UsageError("--raw sends the text as it is, so there is no place for --system")
    text = read_prompt(prompt)
    asked: GenerateOptions = {**sampling.options()}
    if system:
        asked["messages"] = messages(system, ChatMessage(role="user", content=text))
    elif raw:
        asked["raw"] = True
    with naming_the_flag(), Client.from_settings(settings, name="zmqrt infer") as client:
        wanted = None if system else text
        if as_json:
            data(to_fields(client.infer(wanted, **asked)))
        elif stream if stream is not None else is_terminal():
            _print_stream(client, wanted, asked)
        else:
            answer(client.infer(wanted, **asked).text)


def _print_stream(client: Client, prompt: str | None, asked: GenerateOptions) -> None:
    try:
        with client.stream(prompt, **asked) as stream:
            for chunk in stream:
                answer(chunk.text, nl=False)
    finally:
        click.echo()  # an error, or the shell's prompt, starts on a line of its own


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
