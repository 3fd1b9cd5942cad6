"""Where values come from: TOML file, `.env`, environment and flags over the defaults; each value keeps its origin.

Unknown keys are looked for in every source and every role, so that a typo never passes as a default.
"""

import dataclasses
import os
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import click

from ..errors import ConfigurationError
from ..own_files import is_own, is_there, read_text, refuse_foreign
from . import variables
from .declare import CommonSettings, Setting, settings_of
from .variables import CONFIG_ENV, Roles, Variables, nearest

S = TypeVar("S", bound=CommonSettings)

FILE_NAME: Final = "zmqrt.toml"
SHARED_TABLE: Final = "all"
DEFAULT: Final = "default"
INSECURE: Final = "insecure"
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
        return cls(
            environ=os.environ,
            directory=_working_directory(),
            user_directory=_user_directory(),
            roles=known_roles(),
        )


@dataclass(frozen=True, kw_only=True)
class EffectiveValue:
    """One effective setting, and where its value came from; `shown` hides a secret."""

    setting: Setting
    value: object
    shown: str
    origin: str
    path: Path | None = None
    """The file that it came from."""

    @property
    def name(self) -> str:
        """Name of the setting."""
        return self.setting.name


@dataclass(frozen=True, kw_only=True)
class Resolved(Generic[S]):
    """A role's settings, the origin of each, and what the user should know about them.

    `warnings` tell what was ignored or does not do what it seems to; `notes`, which files of the working directory
    count.
    """

    settings: S
    origins: tuple[EffectiveValue, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Found:
    """A raw value, and where it stands."""

    raw: object
    origin: str
    path: Path | None = None


_Layer = Callable[[Setting], _Found | None]


@cache
def known_roles() -> Roles:
    """Return each installed role's settings class by its name; protocol imports no role, so entry points tell."""
    roles: dict[str, type[CommonSettings]] = {}
    for point in sorted(metadata.entry_points(group="zmqrt.settings"), key=lambda point: point.name):
        try:
            roles[point.name] = typing.cast("type[CommonSettings]", point.load())
        except ModuleNotFoundError as error:
            if error.name != point.module:  # a role that is not here has no settings; a broken one is an error
                raise
    return roles


def load(cls: type[S], flags: Mapping[str, object] | None = None, *, config: Path | None = None) -> S:
    """Return the effective settings of a role in this process; `flags` maps names to text."""
    return resolve(cls, flags, config=config).settings


def origins(
    cls: type[S], flags: Mapping[str, object] | None = None, *, config: Path | None = None
) -> tuple[EffectiveValue, ...]:
    """Return each effective setting with where it came from, for `zmqrt config show`."""
    return resolve(cls, flags, config=config).origins


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
    environ = variables.of_environment(around.environ, roles, warnings.append)
    dotenv = variables.of_dotenv(around.directory, environ, roles, warnings.append)
    tables = _Tables.read(config, _find_file(around, environ, dotenv), roles)
    layers: tuple[_Layer, ...] = (
        lambda one: _in_flags(one, flags or {}),
        lambda one: _in_variables(one, environ, warnings.append),
        lambda one: _in_variables(one, dotenv, warnings.append),
        lambda one: tables.find(one, cls.role),
    )
    resolved = _build(cls, [_choose(one, layers) for one in settings_of(cls)])
    notes = _say_what_was_read(resolved.origins, around.directory)
    return dataclasses.replace(resolved, warnings=(*warnings, *resolved.warnings), notes=notes)


def _choose(one: Setting, layers: Iterable[_Layer]) -> EffectiveValue:
    """Take the value of the first layer that has one: the strongest comes first."""
    found = next(filter(None, (layer(one) for layer in layers)), None)
    if found is None:
        return EffectiveValue(setting=one, value=one.default, shown=one.show(one.default), origin=DEFAULT)
    value = _parse(one, found)
    if one.name == INSECURE and value and found.path is not None and not is_own(found.path):
        raise ConfigurationError(
            f"setting {INSECURE} ({found.origin}): only a flag, the environment or a file of your own may say that"
        )
    return EffectiveValue(setting=one, value=value, shown=one.show(value), origin=found.origin, path=found.path)


def _parse(one: Setting, found: _Found) -> object:
    try:
        return one.parse(found.raw)
    except ValueError as error:
        shown = "****" if one.declared.is_secret else repr(found.raw)
        raise ConfigurationError(f"setting {one.name} = {shown} ({found.origin}): {error}") from None


def _build(cls: type[S], chosen: list[EffectiveValue]) -> Resolved[S]:
    try:
        values: dict[str, Any] = {each.setting.field: each.value for each in chosen}  # of each field's own type
        settings = cls(**values)
    except ValueError as error:  # a role's __post_init__ refuses a contradiction between settings
        raise ConfigurationError(f"{cls.role} settings: {error}") from None
    return Resolved(settings=settings, origins=tuple(chosen), warnings=tuple(_warnings(chosen)))


def _warnings(chosen: Iterable[EffectiveValue]) -> Iterator[str]:
    for each in chosen:
        declared = each.setting.declared
        if declared.deprecated and each.origin != DEFAULT:
            yield f"setting {each.name} ({each.origin}) has no effect any more: {declared.deprecated}"
        if declared.is_secret and each.origin.startswith("flag"):
            yield (
                f"{each.setting.flag} shows its secret to every user of this machine, in the list of processes; "
                f"set {each.setting.env_names[0]} instead, or {each.setting.flag}-file"
            )


def _in_flags(one: Setting, flags: Mapping[str, object]) -> _Found | None:
    return _Found(flags[one.name], f"flag {one.flag}") if one.name in flags else None


def _in_variables(one: Setting, found: Variables, warn: Callable[[str], None]) -> _Found | None:
    named = found.of(one, warn)
    return _Found(named[1], f"{found.origin} {named[0]}", found.path) if named is not None else None


def _say_what_was_read(origins: Iterable[EffectiveValue], directory: Path | None) -> tuple[str, ...]:
    """Name each file of the working directory that counts, and for what: it may be there by accident."""
    read: dict[Path, list[str]] = {}
    for one in origins:
        if one.path is not None and one.path.parent == directory:
            read.setdefault(one.path, []).append(one.name)
    return tuple(f"read from {path}: {', '.join(names)}" for path, names in read.items())


def _find_file(around: Surroundings, environ: Variables, dotenv: Variables) -> tuple[Path | None, bool]:
    """Return the settings file, and whether somebody named it."""
    named = environ.values.get(CONFIG_ENV)
    if named:
        return Path(os.path.expanduser(named)), True  # noqa: PTH111 - leaves ~ alone where there is no home
    named = dotenv.values.get(CONFIG_ENV)
    if named:
        return Path(os.path.expanduser(named)), False  # noqa: PTH111 - as above
    folders = (folder for folder in (around.directory, around.user_directory) if folder is not None)
    return next((path for path in (folder / FILE_NAME for folder in folders) if is_there(path)), None), False


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # deleted meanwhile
        return None


def _user_directory() -> Path | None:
    """Return the folder of the user's settings; without a home, click would name one beneath the working directory."""
    folder = Path(click.get_app_dir("zmqrt"))
    return folder if folder.is_absolute() else None


@dataclass(frozen=True)
class _Tables:
    """The TOML file, checked whole: also the tables of the roles that are not being started."""

    path: Path | None
    tables: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict[str, dict[str, object]])

    @classmethod
    def read(cls, given: Path | None, found: tuple[Path | None, bool], roles: Roles) -> "_Tables":
        """Read the file given by a flag, else the one found."""
        path, is_named = (given, True) if given is not None else found
        if path is None:
            return cls(None)
        try:
            refuse_foreign(path, any_owner=is_named)
            document = tomllib.loads(read_text(path))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"cannot read {path}: {error}") from None
        tables = cls(path, dict(_tables_of(document, path, roles)))
        tables.check(roles)
        return tables

    def find(self, one: Setting, role: str) -> _Found | None:
        """Return the value of a setting: the role's own table wins over the shared one."""
        for table in (role, SHARED_TABLE):
            if one.name in self.tables.get(table, {}):
                return _Found(self.tables[table][one.name], f"{self.path} [{table}]", self.path)
        return None

    def check(self, roles: Roles) -> None:
        """Refuse keys that no role knows, and values that their role would refuse."""
        everything = {one.name for cls in roles.values() for one in settings_of(cls)}
        for table, content in self.tables.items():
            known = everything if table == SHARED_TABLE else {one.name for one in settings_of(roles[table])}
            for key in content:
                if key not in known:
                    raise ConfigurationError(f"unknown key {key} in {self.path} [{table}]{_guess(key, known)}")
        for role, cls in roles.items():
            for one in settings_of(cls):
                found = self.find(one, role)
                if found is not None:
                    _parse(one, found)


def _tables_of(document: Mapping[str, object], path: Path, roles: Roles) -> Iterator[tuple[str, dict[str, object]]]:
    known = {SHARED_TABLE, *roles}
    for name, content in document.items():
        if not isinstance(content, dict):
            raise ConfigurationError(f"key {name} in {path} stands outside a table; put it under [{SHARED_TABLE}]")
        if name not in known:
            raise ConfigurationError(f"unknown table [{name}] in {path}{_guess(name, known)}")
        yield name, typing.cast("dict[str, object]", content)


def _guess(name: str, known: Iterable[str]) -> str:
    return nearest(name, known) or "; see `zmqrt config init` for every setting"
