"""Settings as a command line: click options made from a settings class, whose help names every other way to set them.

click parses flags; everything else comes from `sources`.
"""

import functools
import platform
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem
from click.types import OptionHelpExtra

from ..errors import ZmqrtError
from ..logs import json_line
from ..sanitize import indented, printable
from ..stdio import prepare_stdio, reader_gone
from ..version import VERSION
from .declare import CommonSettings, Setting, settings_of
from .sources import DEFAULT, FILE_NAME, Resolved, resolve
from .variables import CONFIG_ENV, wants_tracebacks

S = TypeVar("S", bound=CommonSettings)
P = ParamSpec("P")
R = TypeVar("R")

_DEST = "setting__"
_CONFIG = "config__"
_RESOLVED = "zmqrt.resolved"
SETTINGS_LOGGER = "zmqrt.settings"
"""Who speaks in a log of JSON; `zmqrt up` tells once what each of its roles says there."""


def command(
    cls: type[S],
    *,
    name: str,
    help: str,  # noqa: A002 - click's own word
    epilog: str | None = None,
) -> Callable[[Callable[[S], object]], click.Command]:
    """Make a role's program: its flags, `--config`, `--version`, and a settings object for the function."""
    context = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    version = click.option(
        "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show versions."
    )

    def decorate(function: Callable[[S], object]) -> click.Command:
        made = version(options(cls)(function))
        return click.command(name, cls=_Program, help=help, epilog=epilog, context_settings=context)(made)

    return decorate


def options(cls: type[S]) -> Callable[[Callable[Concatenate[S, P], R]], Callable[P, R]]:
    """Give a click function a role's flags; it gets the settings first, then its own parameters.

    A ZmqrtError that leaves the function ends the program with its exit code and one line on standard error.
    """

    def decorate(function: Callable[Concatenate[S, P], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            context = click.get_current_context()
            values = {setting.name: kwargs.pop(_DEST + setting.field) for setting in settings_of(cls)}
            flags = {name: value for name, value in values.items() if value not in (None, ())}
            config = kwargs.pop(_CONFIG)
            try:
                resolved = resolve(cls, flags, config=config if isinstance(config, Path) else None)
                context.meta[_RESOLVED] = resolved
                _report(cls.role, resolved)
                return function(resolved.settings, *args, **kwargs)
            except ZmqrtError as error:
                if wants_tracebacks():
                    traceback.print_exception(error)
                click.echo(f"error: {indented(str(error))}", err=True)
                context.exit(error.exit_code)

        file = click.Path(exists=True, dir_okay=False, path_type=Path)
        where = f"Settings file; else {CONFIG_ENV}, ./{FILE_NAME}, then {FILE_NAME} in the user's settings folder."
        wrapped: Callable[P, R] = click.option("--config", _CONFIG, type=file, help=where)(run)
        for setting in reversed(settings_of(cls)):
            wrapped = _option(setting)(wrapped)
        return wrapped

    return decorate


def is_named(name: str) -> bool:
    """Say whether somebody set this setting of the running command, and it is not the default that is in force."""
    resolved: Resolved[CommonSettings] = click.get_current_context().meta[_RESOLVED]
    return any(each.name == name and each.origin != DEFAULT for each in resolved.origins)


def version_text() -> str:
    """Name the versions that matter in a report: zmqrt, the protocol, libzmq, Python."""
    import zmq

    return f"zmqrt {VERSION} (ZRT/1, libzmq {zmq.zmq_version()}, Python {platform.python_version()})"


def _print_version(context: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:  # noqa: FBT001 - click's
    if is_asked and not context.resilient_parsing:
        click.echo(version_text())
        context.exit()


def _report(role: str, resolved: Resolved[S]) -> None:
    """Say what was ignored, and what was read where nobody may know of it; before the log is set up, but like it."""
    for level, head, lines in (("warning", "warning", resolved.warnings), ("info", "settings", resolved.notes)):
        for line in dict.fromkeys(lines):
            if resolved.settings.log_format == "json":
                click.echo(json_line(level, SETTINGS_LOGGER, line, role=role), err=True)
            else:
                click.echo(printable(f"{head}: {line}"), err=True)


def _option(setting: Setting) -> Callable[[Callable[P, R]], Callable[P, R]]:
    is_flag = setting.type.is_flag
    return click.option(
        f"{setting.flag}/--no-{setting.flag.removeprefix('--')}" if is_flag else setting.flag,
        _DEST + setting.field,
        cls=_SettingOption,
        type=None if is_flag else _SettingType(setting),
        default=None,
        multiple=setting.type.is_list,
        metavar=setting.metavar or None,
        hidden=setting.declared.deprecated is not None,
        help=setting.declared.help,
        setting=setting,
    )


class _Program(click.Command):
    """A program of its own: whatever the locale, no letter in a name or a word of help ends it."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's many parameters pass through
        """Make the standard streams safe, then run."""
        prepare_stdio()
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:  # noqa: ANN401 - as above
        """Read the command line. A reader who leaves (`… --help | head`) is no failure."""
        try:
            return super().make_context(*args, **kwargs)
        except BrokenPipeError:
            raise SystemExit(reader_gone()) from None

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as above
        """Run. The same holds for whoever read the ready line and nothing more."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise SystemExit(reader_gone()) from None


class _SettingOption(click.Option):
    """An option whose help shows what the loader does: click itself neither reads variables nor fills defaults here."""

    def __init__(self, *args: Any, setting: Setting, **kwargs: Any) -> None:  # noqa: ANN401 - click's many parameters pass through
        super().__init__(*args, **kwargs)
        self.setting = setting

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """Add environment names and the default to the help line."""
        extra = super().get_help_extra(ctx)
        extra["envvars"] = self.setting.env_names[:1] + self.setting.declared.env
        shown = self.setting.show(self.setting.default)
        if shown and self.setting.default is not False:
            extra["default"] = shown
        return extra


class _SettingType(click.ParamType[object]):
    """Checks a flag at once, so that a bad one is a usage error, and completes choices and paths."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.name = setting.metavar

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        """Return the text unchanged once it is known to be readable."""
        try:
            self.setting.read(value)  # what it says is checked later: that is a bad configuration, and no bad usage
        except ValueError as error:
            shown = "this value" if self.setting.declared.secret else repr(value)
            self.fail(f"{shown}: {error}", param, ctx)
        return value

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - part of click's signature
        param: click.Parameter,  # noqa: ARG002 - part of click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        """Offer the accepted words, or files."""
        if self.setting.type.metavar == "PATH":
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(word) for word in self.setting.declared.choices if word.startswith(incomplete)]
