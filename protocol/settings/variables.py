"""Variables of the environment and of a `.env`: which are ours, and what is said of those that are not.

Names with our prefix are meant for us, except those that Kubernetes or Docker make from the name of a service. Historic
bare names (PORT, LOG_LEVEL, …) belong to everybody: a value that cannot be ours is left alone, with one warning.
"""

import dataclasses
import difflib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dotenv

from ..errors import ConfigurationError
from ..own_files import is_there, read_text, refuse_foreign
from ..sanitize import printable
from .declare import PREFIX, CommonSettings, Setting, settings_of
from .values import FALSE, unquoted

Roles = Mapping[str, type[CommonSettings]]

CONFIG_ENV: Final = "ZMQRT_CONFIG"
DEBUG_ENV: Final = "ZMQRT_DEBUG"
"""Not a setting: whether an error that ends a program shows its traceback too."""
CACHE_ENV: Final = "ZMQRT_CACHE"
"""Not a setting of one role: where converted models are kept (worker/model_cache.py)."""
API_KEY_ENV: Final = "ZMQRT_API_KEY"
"""Not a setting: what `zmqrt submit --url` shows a bridge."""
_NO_SETTINGS: Final = {CONFIG_ENV, DEBUG_ENV, CACHE_ENV, API_KEY_ENV}
_LINK_NAME: Final = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://\S+", re.IGNORECASE)
_EVERYBODYS: Final = {"HOST", "PORT", "LOG_LEVEL", "MODEL_NAME", "MODEL_PATH", "NODE_ID", "MAX_RETRIES"}
"""Historic names that other programs use as well; API_KEYS too, but leaving a key out would let strangers in."""


def wants_tracebacks() -> bool:
    """Say whether whoever started the program asked to see where an error came from."""
    return unquoted(os.environ.get(DEBUG_ENV, "")).lower() not in {"", *FALSE}


@dataclass(frozen=True)
class Variables:
    """What one place holds, cleaned: no empty values, no quotes around them. `origin` precedes a name in words."""

    origin: str
    values: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    path: Path | None = None
    ignored: frozenset[str] = frozenset()

    def of(self, one: Setting, warn: Callable[[str], None]) -> tuple[str, str] | None:
        """Return the name under which a setting stands here, and its value; the first name wins."""
        for name in one.env_names:
            if name in self.values and self._is_meant(one, name, warn):
                return name, self.values[name]
        return None

    def _is_meant(self, one: Setting, name: str, warn: Callable[[str], None]) -> bool:
        if name.startswith(PREFIX):
            return True
        value = self.values[name]
        instead = f"if it is meant for zmqrt, say {one.env_names[0]} or {one.flag}"
        if name in self.ignored:
            warn(f"{name} in the {self.origin} is ignored: nothing else there is zmqrt's; {instead}")
            return False
        is_foreign = one.is_foreign(value)
        if is_foreign:
            shown = "its value" if one.declared.is_secret else repr(printable(value))
            warn(f"{name} in the {self.origin} is ignored: {shown} cannot be the {one.name} of zmqrt; {instead}")
        return not is_foreign


def of_environment(environ: Mapping[str, str], roles: Roles, warn: Callable[[str], None]) -> Variables:
    """Take what is ours from the environment, where others put things too: what nobody knows is told once."""
    values = _clean(environ)
    links = [name for name, value in values.items() if _is_service_link(name, value, roles)]
    strangers = [name for name in _unknown(values, roles) if name not in links]
    if links:
        warn(
            f"ignored in the environment: {', '.join(map(printable, sorted(links)))}, made from the name of a service "
            "(in Kubernetes, `enableServiceLinks: false` leaves such variables out)"
        )
    if strangers:
        known = known_names(roles)
        told = (f"{printable(name)}{nearest(name, known, PREFIX)}" for name in sorted(strangers))
        warn(f"unknown in the environment, and ignored: {', '.join(told)}")
    return Variables("environment", {name: value for name, value in values.items() if name not in links})


def of_dotenv(directory: Path | None, environ: Variables, roles: Roles, warn: Callable[[str], None]) -> Variables:
    """Read `.env` in a directory. It may be another program's, in whatever encoding and with whatever rights.

    What the environment says as well is left out: systemd and Docker hand such a file's content on by themselves.

    Raises:
        ConfigurationError: it holds names of ours, but one that nobody knows, or others may write it.
    """
    path = directory / ".env" if directory is not None else None
    if path is None or not is_there(path):
        return Variables(".env")
    try:
        values = _clean(dotenv.dotenv_values(stream=io.StringIO(read_text(path, errors="replace"))))
    except (OSError, ConfigurationError) as error:
        warn(f"ignored: {error}")
        return Variables(".env")
    _refuse_unknown(values, known_names(roles))
    is_ours = (path.parent / "zmqrt.toml").is_file() or any(_is_surely_ours(name, roles) for name in values)
    values = {name: value for name, value in values.items() if environ.values.get(name) != value}
    if any(name.startswith(PREFIX) or name in _bare_names(roles) for name in values):
        refuse_foreign(path)
    return Variables(".env", values, path, frozenset() if is_ours else frozenset(_EVERYBODYS))


def _refuse_unknown(values: Mapping[str, str], known: Iterable[str]) -> None:
    """Names with our prefix are ours alone; bare names belong to everyone and are not judged."""
    for name, value in values.items():
        if not name.startswith(PREFIX):
            continue
        if name not in known:
            guess = nearest(name, known, PREFIX) or "; see `zmqrt config init` for every setting"
            raise ConfigurationError(f"unknown variable {name} in .env{guess}")
        if "\N{REPLACEMENT CHARACTER}" in value:
            raise ConfigurationError(f"{name} in .env is not UTF-8 text; save the file as UTF-8")


def known_names(roles: Roles) -> set[str]:
    """Return every name that some role, or none in particular, has a use for."""
    return {name for cls in roles.values() for one in settings_of(cls) for name in one.env_names} | _NO_SETTINGS


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Guess what was meant; a prefix that all names share must not make them look alike."""
    bare = [one.removeprefix(prefix) for one in known if one.startswith(prefix)]
    near = difflib.get_close_matches(name.removeprefix(prefix), bare, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _clean(values: Mapping[str, str | None]) -> dict[str, str]:
    """Drop empty values (compose files pass variables on that nobody set), and quotes that Docker leaves."""
    cleaned = ((name, unquoted(value)) for name, value in values.items() if value)
    return {name: value for name, value in cleaned if value}


def _unknown(values: Mapping[str, str], roles: Roles) -> Iterator[str]:
    known = known_names(roles)
    return (name for name in values if name.startswith(PREFIX) and name not in known)


def _is_service_link(name: str, value: str, roles: Roles) -> bool:
    """Say whether a service of this name is behind it: `ZMQRT_PORT=tcp://10.0.0.1:8000`, `ZMQRT_SERVICE_HOST`, …"""
    if not name.startswith(PREFIX):
        return False
    if name.endswith("_PORT") and _LINK_VALUE.fullmatch(value):
        return True
    return bool(_LINK_NAME.fullmatch(name)) and name not in known_names(roles)


def _bare_names(roles: Roles) -> set[str]:
    return {name for cls in roles.values() for one in settings_of(cls) for name in one.declared.env}


def _is_surely_ours(name: str, roles: Roles) -> bool:
    return name.startswith(PREFIX) or name in _bare_names(roles) - _EVERYBODYS - {"API_KEYS"}
