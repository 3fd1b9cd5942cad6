"""Where values come from: TOML file, `.env`, environment and flags over the defaults; each value keeps its origin.

Unknown keys are looked for in every source and every role, so that a typo never passes as a default.
"""

import dataclasses
import functools
import importlib
import os
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import click

from ..errors import ConfigurationError
from ..own_files import is_own, is_there, read_text, refuse_foreign
from .declare import CommonSettings, Setting, settings_of
from .variables import CONFIG_ENV, Found, Roles, Variables, nearest, of_dotenv, of_environment

S = TypeVar("S", bound=CommonSettings)

FILE_NAME: Final = "zmqrt.toml"
SHARED_TABLE: Final = "all"
DEFAULT: Final = "default"
_ROLES: Final = {
    "bridge": ("bridge_http.config", "BridgeSettings"),
    "broker": ("broker.config", "BrokerSettings"),
    "client": ("client.config", "ClientSettings"),
    "worker": ("worker.config", "WorkerSettings"),
}
"""By name, since protocol imports no role. Entry points would tell too, and make each start slower by 15 ms."""
_INSECURE: Final = "insecure"
"""Switches checks off, so it is believed from fewer places than the rest."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Everything outside the command line that may hold a setting."""

    environ: Mapping[str, str]
    directory: Path | None
    """None where the working directory has been deleted."""
    user_directory: Path | None
    """None for a user without a home."""
    roles: Roles

    @classmethod
    def here(cls) -> "Surroundings":
        """Describe this process."""
        try:
            directory = Path.cwd()
        except OSError:  # deleted meanwhile
            directory = None
        user = Path(click.get_app_dir("zmqrt"))  # without a home, click names one beneath the working directory
        return cls(
            environ=os.environ,
            directory=directory,
            user_directory=user if user.is_absolute() else None,
            roles=known_roles(),
        )


def joined_folder() -> Path:
    """Return the folder of this user where keys are kept of which nobody has said where."""
    return Path(click.get_app_dir("zmqrt")) / "fleet-keys"


@dataclass(frozen=True, kw_only=True)
class EffectiveValue:
    """What a setting is, and where that comes from: also the file, if it is one."""

    setting: Setting
    value: object
    origin: str
    path: Path | None = None

    @property
    def name(self) -> str:
        """Name of the setting."""
        return self.setting.name

    @property
    def shown(self) -> str:
        """The value as it would be typed, unless it is a secret."""
        return self.setting.show(self.value)


@dataclass(frozen=True, kw_only=True)
class Resolved(Generic[S]):
    """A role's settings, the origin of each, and what the user should know about them."""

    settings: S
    origins: tuple[EffectiveValue, ...]
    warnings: tuple[str, ...]
    """What was ignored, or does not do what it seems to."""
    notes: tuple[str, ...]
    """Which files of the working directory count."""


@functools.cache
def known_roles() -> Roles:
    """Return each role's settings class by its name."""
    return {role: getattr(importlib.import_module(f"zmqrt.{module}"), name) for role, (module, name) in _ROLES.items()}


def resolve(
    cls: type[S],
    flags: Mapping[str, object] | None = None,
    *,
    config: Path | None = None,
    surroundings: Surroundings | None = None,
) -> Resolved[S]:
    """Lay every source over the defaults; what is unknown in a file, or unreadable, raises ConfigurationError."""
    around = surroundings or Surroundings.here()
    roles: Roles = {**around.roles, cls.role: cls}
    warnings: list[str] = []
    environ = of_environment(around.environ, roles, warnings.append)
    dotenv = of_dotenv(around.directory, environ, roles, warnings.append)
    file = _read_file(config, around, environ, dotenv, roles)
    given = {name: Found(raw, f"flag --{name.replace('_', '-')}") for name, raw in (flags or {}).items()}
    sources: tuple[_Source, ...] = (
        lambda setting: given.get(setting.name),
        environ.find,
        dotenv.find,
        functools.partial(file.find, cls.role),
    )
    effective = tuple(_choose(setting, sources) for setting in settings_of(cls))
    values: dict[str, Any] = {each.setting.field: each.value for each in effective}  # of each field's own type
    try:
        settings = cls(**values)
    except ValueError as error:  # a role's __post_init__ refuses a contradiction between settings
        raise ConfigurationError(f"{cls.role} settings: {error}") from None
    return Resolved(
        settings=settings,
        origins=effective,
        warnings=(*warnings, *_warnings(effective)),
        notes=tuple(_notes(effective, around.directory)),
    )


_Source = Callable[[Setting], Found | None]


def _choose(setting: Setting, sources: Iterable[_Source]) -> EffectiveValue:
    """Take the value of the first source that has one: the strongest comes first."""
    found = next(filter(None, (find(setting) for find in sources)), None)
    if found is None:
        return EffectiveValue(setting=setting, value=setting.default, origin=DEFAULT)
    value = _parse(setting, found)
    if setting.name == _INSECURE and value and found.path is not None and not is_own(found.path):
        raise ConfigurationError(
            f"setting {_INSECURE} ({found.origin}): only a flag, the environment or a file of your own may say that"
        )
    return EffectiveValue(setting=setting, value=value, origin=found.origin, path=found.path)


def _parse(setting: Setting, found: Found) -> object:
    try:
        return setting.parse(found.raw)
    except ValueError as error:
        shown = "****" if setting.declared.secret else repr(found.raw)
        raise ConfigurationError(f"setting {setting.name} = {shown} ({found.origin}): {error}") from None


def _warnings(effective: Iterable[EffectiveValue]) -> Iterator[str]:
    for each in effective:
        declared, flag = each.setting.declared, each.setting.flag
        if declared.deprecated and each.origin != DEFAULT:
            yield f"setting {each.name} ({each.origin}) has no effect any more: {declared.deprecated}"
        if declared.secret and each.origin.startswith("flag"):
            yield (
                f"{flag} shows its secret to every user of this machine, in the list of processes; "
                f"set {each.setting.env_names[0]} instead, or {flag}-file"
            )


def _notes(effective: Iterable[EffectiveValue], directory: Path | None) -> Iterator[str]:
    """Name each file of the working directory that counts, and for what: it may be there by accident."""
    read: dict[Path, list[str]] = {}
    for each in effective:
        if each.path is not None and each.path.parent == directory:
            read.setdefault(each.path, []).append(each.name)
    return (f"read from {path}: {', '.join(names)}" for path, names in read.items())


@dataclass(frozen=True)
class _File:
    """The TOML file, checked whole: also the tables of the roles that are not being started."""

    path: Path | None = None
    tables: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict[str, dict[str, object]])

    def find(self, role: str, setting: Setting) -> Found | None:
        """Return the value of a setting: the role's own table wins over the shared one."""
        for table in (role, SHARED_TABLE):
            if setting.name in self.tables.get(table, {}):
                return Found(self.tables[table][setting.name], f"{self.path} [{table}]", self.path)
        return None


def _read_file(config: Path | None, around: Surroundings, environ: Variables, dotenv: Variables, roles: Roles) -> _File:
    """Read the file that was named, else the nearest. Whoever named one vouches for its owner; a `.env` does not."""
    named = [config, *(_as_path(variables.values.get(CONFIG_ENV)) for variables in (environ, dotenv))]
    folders = (folder for folder in (around.directory, around.user_directory) if folder is not None)
    by_itself = (path for path in (folder / FILE_NAME for folder in folders) if is_there(path))
    path = next(filter(None, named), None) or next(by_itself, None)
    if path is None:
        return _File()
    try:
        refuse_foreign(path, any_owner=path in named[:2])
        document = tomllib.loads(read_text(path))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from None
    _check_names(document, path, roles)
    file = _File(path, typing.cast("dict[str, dict[str, object]]", document))
    for role, cls in roles.items():
        for setting in settings_of(cls):
            if (found := file.find(role, setting)) is not None:
                _parse(setting, found)
    return file


def _as_path(text: str | None) -> Path | None:
    return Path(os.path.expanduser(text)) if text else None  # noqa: PTH111 - leaves ~ alone where there is no home


def _check_names(document: Mapping[str, object], path: Path, roles: Roles) -> None:
    """Refuse tables and keys that no role knows."""
    known = {role: {setting.name for setting in settings_of(cls)} for role, cls in roles.items()}
    known[SHARED_TABLE] = set().union(*known.values())
    for table, content in document.items():
        if not isinstance(content, dict):
            raise ConfigurationError(f"key {table} in {path} stands outside a table; put it under [{SHARED_TABLE}]")
        if table not in known:
            raise ConfigurationError(f"unknown table [{table}] in {path}{_guess(table, known)}")
        for key in typing.cast("dict[str, object]", content):
            if key not in known[table]:
                raise ConfigurationError(f"unknown key {key} in {path} [{table}]{_guess(key, known[table])}")


def _guess(name: str, known: Iterable[str]) -> str:
    return nearest(name, known) or "; see `zmqrt config init` for every setting"
