"""The `zmqrt` command itself: which subcommands there are, and how it ends. Each is imported when asked for."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Sequence
from typing import Final

import click

from ...protocol.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_READER_GONE, ZmqrtError
from ...protocol.names import as_typed, is_unicode
from ...protocol.stdio import prepare_stdio
from .stdio import note

COMMANDS: Final = {
    "up": "Run broker, workers and bridge on this machine until Ctrl-C.",
    "infer": "Send one prompt and print the answer as it is made.",
    "chat": "Talk with a model; it remembers the conversation.",
    "submit": "Send one prompt, natively or to a bridge (--url), and print request id and answer.",
    "embed": "Turn the lines of a file into vectors: each line is one text.",
    "rerank": "Sort documents by how well they answer a query.",
    "classify": "Say which label a model gives to a text, and how sure it is.",
    "status": "Show nodes and devices: health, load, what they are doing.",
    "top": "Watch the fleet live: nodes, devices, models, slow requests, events.",
    "explain": "Tell what happened to one request, and where the time went.",
    "doctor": "Check this machine and the fleet; say what to do where something is not well.",
    "drain": "Have a node finish what it runs and leave, and wait for it.",
    "models": "List the models that can be asked; fetch and convert others.",
    "demo": "Start everything, ask one question in two ways, stop everything.",
    "join": "Join a fleet by the line that its operator has sent.",
    "keygen": "Make the keys of a fleet of several machines.",
    "keys": "Make, list, revoke and rotate keys.",
    "usage": "Show what each tenant has had, from the --usage-file of a bridge.",
    "config": "Write a settings file, or show each setting and where it comes from.",
    "completion": "Print the script that completes commands in your shell.",
}
"""Name -> summary. It stands here so that `--help` imports no subcommand; a test compares both."""


class _Unicode(click.types.StringParamType):
    """Text of the command line. Bytes that are no UTF-8 arrive as halves of characters, and cannot be sent anywhere."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse such bytes, naming the argument; paths may hold them."""
        words = as_typed(str(super().convert(value, param, ctx)))
        if not is_unicode(words):
            self.fail("what was given is no text in UTF-8; does the terminal use another encoding?", param, ctx)
        return words


def _with_checked_text(command: click.Command) -> click.Command:
    for parameter in command.params:
        if parameter.type is click.STRING and parameter.name != "api_key":  # a key may be in another encoding
            parameter.type = _UNICODE
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        _with_checked_text(inner)
    return command


_UNICODE: Final = _Unicode()


class _Lazy(click.Group):
    """A group whose subcommand NAME is `command` in the module `cmd_NAME`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - part of click's signature
        """Name them, most used first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - part of click's signature
        """Import it."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(f".cmd_{cmd_name}", __package__).command
        return _with_checked_text(found)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - part of click's signature
        """List them without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(context: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked and not context.resilient_parsing:
        from ...protocol.settings import version_text

        click.echo(version_text())
        context.exit()


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `zmqrt up`, then `zmqrt infer 'Hello'` in another terminal.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show versions."
)
def cli() -> None:
    """Real-time model inference over ZeroMQ."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    prepare_stdio()
    if os.environ.get("_ZMQRT_COMPLETE", "").startswith("powershell"):
        from .cmd_completion import register_powershell

        register_powershell()
    return run(cli, "zmqrt", arguments)


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a click command and return its exit code.

    Errors are one sentence on standard error; ZMQRT_DEBUG=1 shows the traceback.
    """
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
    except SystemExit as error:  # raised by click and rich alike, with 1, when nobody reads on: `zmqrt … | head`
        return EXIT_READER_GONE if error.code == EXIT_FAILED else int(error.code or 0)
    except click.Abort:  # Ctrl-C
        click.echo(err=True)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ZmqrtError as error:
        return _fail(error, str(error), error.exit_code)
    except OSError as error:
        return _fail(error, str(error), EXIT_FAILED)
    except Exception as error:  # noqa: BLE001 - a traceback helps nobody who only wanted an answer
        hint = f"unexpected {type(error).__name__}: {error} (ZMQRT_DEBUG=1 shows where; please report it)"
        return _fail(error, hint, EXIT_FAILED)
    return code if isinstance(code, int) else 0


def _fail(error: BaseException, text: str, exit_code: int) -> int:
    from ...protocol.settings import wants_tracebacks

    if wants_tracebacks():
        traceback.print_exception(error)
    note(f"error: {text}")
    return exit_code
