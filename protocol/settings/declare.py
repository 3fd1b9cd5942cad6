"""How a role declares its settings: a frozen dataclass whose fields are made by `setting()`.

It says what a setting is called in each place and what it accepts; it reads no file and no environment.
"""

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from . import values
from .values import Unit, ValueType

T = TypeVar("T")

PREFIX: Final = "ZMQRT_"
LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_KEY: Final = "zmqrt"
_SUFFIXES: Final[tuple[Unit, ...]] = ("s", "ms", "bytes")


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What `setting()` was told; `Setting` adds what follows from the field itself."""

    help: str
    env: tuple[str, ...]
    name: str | None
    flag: str | None
    unit: Unit | None
    metavar: str | None
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    convert: Callable[[str], object] | None
    show: Callable[[object], str] | None
    check: Callable[[object], None] | None
    is_foreign: Callable[[str], bool] | None
    is_secret: bool
    deprecated: str | None


def setting(
    default: T,
    *,
    help: str,  # noqa: A002 - the word click and argparse use
    env: tuple[str, ...] = (),
    name: str | None = None,
    flag: str | None = None,
    unit: Unit | None = None,
    metavar: str | None = None,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    convert: Callable[[str], T] | None = None,
    show: Callable[[T], str] | None = None,
    check: Callable[[T], None] | None = None,
    foreign: Callable[[str], bool] | None = None,
    secret: bool = False,
    deprecated: str | None = None,
) -> T:
    """Declare one field of a settings class.

    Args:
        default: Must not be mutable; None makes the setting optional.
        help: One sentence for `--help`, the template and the documentation.
        env: Historic environment names; each is accepted bare and with the prefix ZMQRT_.
        name: Name in TOML, flag and environment; the field's name without its unit suffix unless given.
        flag: The flag in full, where it is not `--name`.
        unit: Of a number; taken from a field name that ends in _s, _ms or _bytes.
        metavar: Stands for the value in `--help`.
        choices: The only words accepted, in any case.
        minimum: Smallest number accepted.
        maximum: Largest number accepted.
        convert: Reads the text of a type this loader does not know; raises ValueError saying what it expected.
        show: Writes such a value back as text.
        check: Looks at a value from any source; raises ValueError saying what it expected.
        foreign: Whether text under a historic bare name, which others use too, cannot have been meant for us; without
            it, that is what does not fit. Whatever else is wrong with it is an error then.
        secret: Never shown.
        deprecated: What to use instead; setting it still works, and warns.
    """
    declared = Declared(
        help=help,
        env=env,
        name=name,
        flag=flag,
        unit=unit,
        metavar=metavar,
        choices=choices,
        minimum=minimum,
        maximum=maximum,
        convert=convert,
        show=typing.cast("Callable[[object], str] | None", show),
        check=typing.cast("Callable[[object], None] | None", check),
        is_foreign=foreign,
        is_secret=secret,
        deprecated=deprecated,
    )
    return dataclasses.field(default=default, metadata={_KEY: declared})


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every role has. A role's class adds `role`, the name of its table."""

    role: ClassVar[str] = "all"

    log_level: str = setting(
        "info",
        env=("LOG_LEVEL",),
        choices=LOG_LEVELS,
        help="Least important messages that are logged.",
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
    default: object
    value_type: ValueType
    declared: Declared

    @property
    def flag(self) -> str:
        """Flag on the command line."""
        return self.declared.flag or "--" + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """What stands for the value in `--help`."""
        if self.declared.metavar:
            return self.declared.metavar
        return "|".join(self.declared.choices) or self.value_type.metavar

    @property
    def env_names(self) -> tuple[str, ...]:
        """Environment names, the one that wins first."""
        historic = self.declared.env
        names = (PREFIX + self.name.upper(), *(PREFIX + old for old in historic), *historic)
        return tuple(dict.fromkeys(names))

    @property
    def expected(self) -> str:
        """What a user should have written."""
        low, high = self.declared.minimum, self.declared.maximum
        if self.declared.choices:
            return "one of " + ", ".join(self.declared.choices)
        if low is not None and high is not None:
            return f"{self.value_type.expected} from {self.value_type.show(low)} to {self.value_type.show(high)}"
        if low is not None:
            return f"{self.value_type.expected} of at least {self.value_type.show(low)}"
        return (
            self.value_type.expected
            if high is None
            else f"{self.value_type.expected} of at most {self.value_type.show(high)}"
        )

    def parse(self, raw: object) -> object:
        """Read text or a TOML value and check it; a ValueError says what was expected."""
        value = self.read(raw)
        if self.declared.check is not None:
            self.declared.check(value)
        return value

    def read(self, raw: object) -> object:
        """Read text or a TOML value; a ValueError says what was expected."""
        if isinstance(raw, str) and not self.value_type.is_list:
            raw = values.unquoted(raw)
        try:
            value = self.value_type.parse(raw)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"expected {str(error) if self.declared.convert else self.expected}") from None
        if self.declared.choices:
            value = str(value).strip().lower()
        if not self._is_accepted(value):
            raise ValueError(f"expected {self.expected}")
        return value

    def is_foreign(self, raw: str) -> bool:
        """Say whether text under a historic bare name cannot be meant for this setting."""
        if self.declared.is_foreign is not None:
            return self.declared.is_foreign(raw)
        try:
            self.parse(raw)
        except ValueError:
            return True
        return False

    def _is_accepted(self, value: object) -> bool:
        if self.declared.choices:
            return value in self.declared.choices
        if not self.value_type.is_number:
            return True
        number = typing.cast("float", value)
        low, high = self.declared.minimum, self.declared.maximum
        return (low is None or number >= low) and (high is None or number <= high)

    def show(self, value: object) -> str:
        """Write a value as it would be typed; a secret never."""
        if value is None:
            return ""
        if self.declared.is_secret:
            return "****" if value else ""
        return self.value_type.show(value)


def settings_of(cls: type[CommonSettings]) -> tuple[Setting, ...]:
    """Return a role's settings: its own in the order they are declared, then those that all roles have."""
    hints = typing.get_type_hints(cls)
    everything = [_describe(field, hints[field.name]) for field in dataclasses.fields(cls)]
    common = {field.name for field in dataclasses.fields(CommonSettings)}
    return tuple(sorted(everything, key=lambda one: one.field in common))


def _describe(field: dataclasses.Field[object], annotation: object) -> Setting:
    declared = typing.cast("Declared", field.metadata[_KEY])
    suffix: Unit | None = next((unit for unit in _SUFFIXES if field.name.endswith("_" + unit)), None)
    unit = declared.unit or suffix
    value_type = _own_type(declared) if declared.convert else values.value_type_of(annotation, unit)
    is_quantity = value_type.is_number and suffix is not None
    name = declared.name or (field.name.removesuffix(f"_{suffix}") if is_quantity else field.name)
    return Setting(field=field.name, name=name, default=field.default, value_type=value_type, declared=declared)


def _own_type(declared: Declared) -> ValueType:
    convert = declared.convert
    assert convert is not None
    return ValueType(
        expected="another value",
        metavar="TEXT",
        parse=lambda raw: convert(raw if isinstance(raw, str) else str(raw)),
        show=declared.show or str,
    )
