"""Where values come from: TOML file, `.env`, environment and flags over the defaults; each value keeps its origin.

Unknown keys are looked for in every source and every role, so that a typo never passes as a default.
"""

import dataclasses
import difflib
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
import dotenv

from ..errors import ConfigurationError
from .declare import PREFIX, CommonSettings, Setting, settings_of

S = TypeVar("S", bound=CommonSettings)
Roles = Mapping[str, type[CommonSettings]]

FILE_NAME: Final = "zmqrt.toml"
CONFIG_ENV: Final = "ZMQRT_CONFIG"
DEBUG_ENV: Final = "ZMQRT_DEBUG"
"""Not a setting: whether an error that ends a program shows its traceback too."""
CACHE_ENV: Final = "ZMQRT_CACHE"
"""Not a setting of one role: where converted models are kept (worker/model_cache.py)."""
SHARED_TABLE: Final = "all"
DEFAULT: Final = "default"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Everything outside the command line that may hold a setting."""

    environ: Mapping[str, str]
    directory: Path
    user_directory: Path
    roles: Roles

    @classmethod
    def here(cls) -> "Surroundings":
        """Describe this process."""
        return cls(
            environ=os.environ,
            directory=Path.cwd(),
            user_directory=Path(click.get_app_dir("zmqrt")),
            roles=known_roles(),
        )


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One effective setting, and where its value came from; `shown` hides a secret."""

    setting: Setting
    value: object
    shown: str
    origin: str

    @property
    def name(self) -> str:
        """Name of the setting."""
        return self.setting.name


@dataclass(frozen=True, kw_only=True)
class Resolved(Generic[S]):
    """A role's settings, the origin of each, and what the user should know about them."""

    settings: S
    origins: tuple[Origin, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """A raw value, and where it stands."""

    raw: object
    origin: str


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
) -> tuple[Origin, ...]:
    """Return each effective setting with where it came from, for `zmqrt config show`."""
    return resolve(cls, flags, config=config).origins


def resolve(
    cls: type[S],
    flags: Mapping[str, object] | None = None,
    *,
    config: Path | None = None,
    surroundings: Surroundings | None = None,
) -> Resolved[S]:
    """Lay every source over the defaults; anything unknown or unreadable raises ConfigurationError."""
    around = surroundings or Surroundings.here()
    roles: Roles = {**around.roles, cls.role: cls}
    dotenv_values = _read_dotenv(around.directory / ".env")
    environ = {name: value for name, value in around.environ.items() if value}
    _refuse_unknown_variables(environ, "the environment", roles)
    _refuse_unknown_variables(dotenv_values, ".env", roles)
    tables = _Tables.read(config or _find_file(around, environ, dotenv_values), roles)
    layers: tuple[_Layer, ...] = (
        lambda one: _in_flags(one, flags or {}),
        lambda one: _in_variables(one, environ, "environment"),
        lambda one: _in_variables(one, dotenv_values, ".env"),
        lambda one: tables.find(one, cls.role),
    )
    return _build(cls, [_choose(one, layers) for one in settings_of(cls)])


def _choose(one: Setting, layers: Iterable[_Layer]) -> Origin:
    """Take the value of the first layer that has one: the strongest comes first."""
    found = next(filter(None, (layer(one) for layer in layers)), None)
    if found is None:
        return Origin(setting=one, value=one.default, shown=one.show(one.default), origin=DEFAULT)
    value = _parse(one, found)
    return Origin(setting=one, value=value, shown=one.show(value), origin=found.origin)


def _parse(one: Setting, found: _Found) -> object:
    try:
        return one.parse(found.raw)
    except ValueError as error:
        shown = "****" if one.declared.is_secret else repr(found.raw)
        raise ConfigurationError(f"setting {one.name} = {shown} ({found.origin}): {error}") from None


def _build(cls: type[S], chosen: list[Origin]) -> Resolved[S]:
    try:
        values: dict[str, Any] = {each.setting.field: each.value for each in chosen}  # of each field's own type
        settings = cls(**values)
    except ValueError as error:  # a role's __post_init__ refuses a contradiction between settings
        raise ConfigurationError(f"{cls.role} settings: {error}") from None
    warnings = tuple(
        f"setting {each.name} ({each.origin}) has no effect any more: {each.setting.declared.deprecated}"
        for each in chosen
        if each.setting.declared.deprecated and each.origin != DEFAULT
    )
    return Resolved(settings=settings, origins=tuple(chosen), warnings=warnings)


def _in_flags(one: Setting, flags: Mapping[str, object]) -> _Found | None:
    return _Found(flags[one.name], f"flag {one.flag}") if one.name in flags else None


def _in_variables(one: Setting, variables: Mapping[str, str], where: str) -> _Found | None:
    for name in one.env_names:
        if name in variables:
            return _Found(variables[name], f"{where} {name}")
    return None


def _read_dotenv(path: Path) -> dict[str, str]:
    """Read `.env`; as in the environment, an empty value is none."""
    if not path.is_file():
        return {}
    try:
        read = dotenv.dotenv_values(path, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from None
    return {name: value for name, value in read.items() if value}


def _refuse_unknown_variables(variables: Iterable[str], where: str, roles: Roles) -> None:
    """Names with our prefix are ours alone; bare names belong to everyone and are not judged."""
    names = {name for cls in roles.values() for one in settings_of(cls) for name in one.env_names}
    known = names | {CONFIG_ENV, DEBUG_ENV, CACHE_ENV}
    for name in variables:
        if name.startswith(PREFIX) and name not in known:
            raise ConfigurationError(f"unknown variable {name} in {where}{_nearest(name, known, PREFIX)}")


def _find_file(around: Surroundings, environ: Mapping[str, str], dotenv_values: Mapping[str, str]) -> Path | None:
    named = environ.get(CONFIG_ENV) or dotenv_values.get(CONFIG_ENV)
    if named:
        return Path(named).expanduser()
    usual = (around.directory / FILE_NAME, around.user_directory / FILE_NAME)
    return next((path for path in usual if path.is_file()), None)


@dataclass(frozen=True)
class _Tables:
    """The TOML file, checked whole: also the tables of the roles that are not being started."""

    path: Path | None
    tables: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict[str, dict[str, object]])

    @classmethod
    def read(cls, path: Path | None, roles: Roles) -> "_Tables":
        if path is None:
            return cls(None)
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"cannot read {path}: {error}") from None
        tables = cls(path, dict(_tables_of(document, path, roles)))
        tables.check(roles)
        return tables

    def find(self, one: Setting, role: str) -> _Found | None:
        """Return the value of a setting: the role's own table wins over the shared one."""
        for table in (role, SHARED_TABLE):
            if one.name in self.tables.get(table, {}):
                return _Found(self.tables[table][one.name], f"{self.path} [{table}]")
        return None

    def check(self, roles: Roles) -> None:
        """Refuse keys that no role knows, and values that their role would refuse."""
        everything = {one.name for cls in roles.values() for one in settings_of(cls)}
        for table, content in self.tables.items():
            known = everything if table == SHARED_TABLE else {one.name for one in settings_of(roles[table])}
            for key in content:
                if key not in known:
                    raise ConfigurationError(f"unknown key {key} in {self.path} [{table}]{_nearest(key, known)}")
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
            raise ConfigurationError(f"unknown table [{name}] in {path}{_nearest(name, known)}")
        yield name, typing.cast("dict[str, object]", content)


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Guess what was meant; a prefix that all names share must not make them look alike."""
    bare = [one.removeprefix(prefix) for one in known if one.startswith(prefix)]
    near = difflib.get_close_matches(name.removeprefix(prefix), bare, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else "; see `zmqrt config init` for every setting"
