"""`zmqrt submit`: one prompt, one whole answer; natively, or over HTTP to a bridge as the historic client did it."""

from __future__ import annotations

import click
from click.core import ParameterSource

from ...protocol.settings import API_KEY_ENV, is_named, options, unquoted
from ..config import ClientSettings
from ..sync import Client
from .answer_view import AnswerView, answer_fields
from .cmd_infer import to_fields
from .generation import SamplingFlags, naming_the_flag, sampling_options
from .http_submit import post
from .stdio import data, note, read_prompt


@click.command(
    help="Send one prompt, natively or to a bridge (--url), and print request id and answer.",
    epilog="What the model thinks first goes to standard error.",
)
@click.option("--prompt", metavar="TEXT", help="What to ask; - or none reads it from a pipe.")
@click.option("--url", metavar="URL", help="Bridge to ask over HTTP, such as http://127.0.0.1:8000.")
@click.option("--api-key", metavar="KEY", envvar=API_KEY_ENV, show_envvar=True, help="With --url: key for the bridge.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
@sampling_options
@options(ClientSettings)
def command(
    settings: ClientSettings,
    sampling: SamplingFlags,
    *,
    prompt: str | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Ask, wait, print: the request's id on standard error, so that the answer alone can be piped on."""
    text = read_prompt(prompt)
    if url is None:
        with naming_the_flag(), Client.from_settings(settings, name="zmqrt submit") as client:
            handle = client.submit(text, **sampling.options())
            note(f"request {handle.request_id}")
            result = handle.result()
        data(to_fields(result) | answer_fields(result.text, ())) if as_json else _print(result.text)
        return
    if click.get_current_context().get_parameter_source("api_key") is ParameterSource.COMMANDLINE:
        note(f"warning: --api-key shows the key in the list of processes; set {API_KEY_ENV} instead")
    key = unquoted(api_key) if api_key else None
    # /infer knows a whole time alone; unsaid, the bridge's own counts.
    timeout_s = settings.total_timeout_s or (settings.timeout_s if is_named("timeout") else None)
    got = post(url, _v1(sampling, text), timeout_s=timeout_s, api_key=key)
    note(f"request {got.get('request_id', '')}")
    data(got) if as_json else _print(str(got.get("text", "")))


def _print(text: str) -> None:
    """Print an answer: its words alone go on through a pipe."""
    view = AnswerView()
    view.show(text)
    view.close()


def _v1(sampling: SamplingFlags, prompt: str) -> dict[str, object]:
    """Build the body of the locked contract, which has no more fields than these."""
    given = dict(sampling.options())
    body: dict[str, object] = {"api_version": "v1", "prompt": prompt}
    for name in ("max_tokens", "temperature"):
        if name in given:
            body[name] = given.pop(name)
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise click.UsageError(f"{flags}: POST /infer has no such field; leave out --url to ask natively")
    return body
