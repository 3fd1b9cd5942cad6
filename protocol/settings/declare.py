"""How a role declares its settings: a frozen dataclass whose fields are made by `setting()`.

It says what a setting is called in each place and what it accepts; it reads no file and no environment.
"""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Concatenate, Final, ParamSpec, TypeVar

from .values import Unit, ValueType, unquoted, value_type_of

P = ParamSpec("P")
T = TypeVar("T")

PREFIX: Final = "ZMQRT_"
LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_KEY: Final = "zmqrt"
_UNITS: Final[tuple[Unit, ...]] = ("s", "ms", "bytes")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a role says of a setting beside its type and default. Name, flag and variable follow from the field."""

    help: str
    """One sentence for `--help`, the template and the documentation."""
    env: tuple[str, ...] = ()
    """Historic environment names; each is accepted bare and with the prefix ZMQRT_."""
    metavar: str | None = None
    """Stands for the value in `--help`."""
    choices: tuple[str, ...] = ()
    """The only words accepted, in any case."""
    minimum: float = -math.inf
    maximum: float = math.inf
    check: Callable[[Any], None] | None = None
    """Looks at a value from any source; raises ValueError saying what it expected."""
    foreign: Callable[[str], bool] | None = None
    """Whether text under a historic bare name, which others use too, cannot have been meant for us; without it, that is
    what does not fit. Whatever else is wrong with it is an error then."""
    secret: bool = False
    """Never shown."""
    deprecated: str | None = None
    """What to use instead; setting it still works, and warns."""


def _field_maker(declare: Callable[P, Declaration]) -> Callable[Concatenate[T, P], T]:
    def field(default: T, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return dataclasses.field(default=default, metadata={_KEY: declare(*args, **kwargs)})

    return field


setting: Final = _field_maker(Declaration)
"""Declare a field of a settings class: its default, which must not be mutable (None: it is optional), and more."""


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every role has. A role's class adds `role`, the name of its table."""

    role: ClassVar[str] = "all"

    log_level: str = setting(
        "info", env=("LOG_LEVEL",), choices=LOG_LEVELS, help="Least important messages that are logged."
    )
    log_format: str = setting("text", choices=("text", "json"), help="One line of text, or of JSON, for each message.")
    keys: Path | None = setting(
        None, metavar="DIR", help="Folder made by `zmqrt keygen`; turns on encryption and checks who connects."
    )
    insecure: bool = setting(False, help="Allow an address off this machine although there are no keys.")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting under all its names, ready to read words and to write them."""

    field: str
    name: str
    """In TOML, flag and environment: the field's without its unit."""
    default: object
    type: ValueType
    declared: Declaration

    @property
    def flag(self) -> str:
        """Flag on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """What stands for the value in `--help`."""
        return self.declared.metavar or "|".join(self.declared.choices) or self.type.metavar

    @property
    def env_names(self) -> tuple[str, ...]:
        """Environment names, the one that wins first."""
        historic = self.declared.env
        return tuple(dict.fromkeys((PREFIX + self.name.upper(), *(PREFIX + old for old in historic), *historic)))

    @property
    def expected(self) -> str:
        """What a user should have written."""
        low, high, show = self.declared.minimum, self.declared.maximum, self.type.show
        if self.declared.choices:
            return "one of " + ", ".join(self.declared.choices)
        bounds = f" from {show(low)} to {show(high)}" if math.isfinite(low + high) else ""
        bounds = bounds or (f" of at least {show(low)}" if math.isfinite(low) else "")
        bounds = bounds or (f" of at most {show(high)}" if math.isfinite(high) else "")
        return self.type.expected + bounds

    def parse(self, raw: object) -> object:
        """Read text or a TOML value and check it; a ValueError says what was expected."""
        value = self.read(raw)
        if self.declared.check is not None:
            self.declared.check(value)
        return value

    def read(self, raw: object) -> object:
        """Read text or a TOML value; a ValueError says what was expected."""
        text_or_value = unquoted(raw) if isinstance(raw, str) and not self.type.is_list else raw
        with contextlib.suppress(ValueError, OverflowError):
            value = self.type.parse(text_or_value)
            value = str(value).strip().lower() if self.declared.choices else value
            if self._is_accepted(value):
                return value
        raise ValueError(f"expected {self.expected}")

    def is_foreign(self, raw: str) -> bool:
        """Say whether text under a historic bare name cannot be meant for this setting."""
        if self.declared.foreign is not None:
            return self.declared.foreign(raw)
        try:
            self.parse(raw)
        except ValueError:
            return True
        return False

    def _is_accepted(self, value: Any) -> bool:  # noqa: ANN401 - a number wherever bounds are asked for
        if self.declared.choices:
            return value in self.declared.choices
        return not self.type.is_number or self.declared.minimum <= value <= self.declared.maximum

    def show(self, value: object) -> str:
        """Write a value as it would be typed; a secret never."""
        if value is None:
            return ""
        if self.declared.secret:
            return "****" if value else ""
        return self.type.show(value)


def settings_of(cls: type[CommonSettings]) -> tuple[Setting, ...]:
    """Return a role's settings: its own in the order they are declared, then those that all roles have."""
    hints = typing.get_type_hints(cls)
    common = {field.name for field in dataclasses.fields(CommonSettings)}
    fields = sorted(dataclasses.fields(cls), key=lambda field: field.name in common)
    return tuple(_describe(field, hints[field.name]) for field in fields)


def _describe(field: dataclasses.Field[object], annotation: object) -> Setting:
    unit: Unit | None = next((unit for unit in _UNITS if field.name.endswith("_" + unit)), None)
    value_type = value_type_of(annotation, unit)
    name = field.name.removesuffix(f"_{unit}") if value_type.is_number else field.name
    return Setting(field=field.name, name=name, default=field.default, type=value_type, declared=field.metadata[_KEY])
