"""Variables of the environment and of a `.env`: which are ours, and what is said of those that are not.

Names with our prefix are meant for us, except those that Kubernetes or Docker make from the name of a service. Historic
bare names (PORT, LOG_LEVEL, …) belong to everybody: a value that cannot be ours is left alone, with one warning.
"""

import difflib
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..errors import ConfigurationError
from ..own_files import is_there, read_text, refuse_foreign
from ..sanitize import printable
from .declare import PREFIX, CommonSettings, Setting, settings_of
from .values import FALSE, unquoted

Roles = Mapping[str, type[CommonSettings]]
Warn = Callable[[str], None]

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
class Found:
    """A value as it was written, and where it stands."""

    raw: object
    origin: str
    path: Path | None = None


@dataclass(frozen=True)
class Variables:
    """What one place holds, cleaned: no empty values, no quotes around them. `origin` precedes a name in words."""

    origin: str
    warn: Warn
    values: Mapping[str, str] = field(default_factory=dict[str, str])
    path: Path | None = None
    ignored: frozenset[str] = frozenset()

    def find(self, setting: Setting) -> Found | None:
        """Return the value of a setting; the first of its names wins."""
        for name in setting.env_names:
            if name in self.values and (name.startswith(PREFIX) or self._is_meant(setting, name)):
                return Found(self.values[name], f"{self.origin} {name}", self.path)
        return None

    def _is_meant(self, setting: Setting, name: str) -> bool:
        if name in self.ignored:
            reason = "nothing else there is zmqrt's"
        elif setting.is_foreign(self.values[name]):
            shown = "its value" if setting.declared.secret else repr(printable(self.values[name]))
            reason = f"{shown} cannot be the {setting.name} of zmqrt"
        else:
            return True
        instead = f"if it is meant for zmqrt, say {setting.env_names[0]} or {setting.flag}"
        self.warn(f"{name} in the {self.origin} is ignored: {reason}; {instead}")
        return False


def of_environment(environ: Mapping[str, str], roles: Roles, warn: Warn) -> Variables:
    """Take what is ours from the environment, where others put things too: what nobody knows is told once."""
    values = _clean(environ)
    known = _known_names(roles)
    prefixed = [name for name in sorted(values) if name.startswith(PREFIX)]
    links = [name for name in prefixed if _is_service_link(name, values[name], known)]
    if links:
        warn(
            f"ignored in the environment: {', '.join(map(printable, links))}, made from the name of a service "
            "(in Kubernetes, `enableServiceLinks: false` leaves such variables out)"
        )
    unknown = [f"{printable(name)}{nearest(name, known, PREFIX)}" for name in prefixed if name not in {*known, *links}]
    if unknown:
        warn(f"unknown in the environment, and ignored: {', '.join(unknown)}")
    return Variables("environment", warn, {name: value for name, value in values.items() if name not in links})


def of_dotenv(directory: Path | None, environ: Variables, roles: Roles, warn: Warn) -> Variables:
    """Read `.env` in a directory. It may be another program's, in whatever encoding and with whatever rights.

    What the environment says as well is left out: systemd and Docker hand such a file's content on by themselves.

    Raises:
        ConfigurationError: it holds names of ours, but one that nobody knows, or others may write it.
    """
    path = directory / ".env" if directory is not None else None
    if path is None or not is_there(path):
        return Variables(".env", warn)
    try:
        text = read_text(path, errors="replace")
    except (OSError, ConfigurationError) as error:
        warn(f"ignored: {error}")
        return Variables(".env", warn)
    import dotenv  # takes longer to import than everything else here, and most directories have no .env

    values = _clean(dotenv.dotenv_values(stream=io.StringIO(text)))
    _refuse_unknown(values, _known_names(roles))
    bare = {name for cls in roles.values() for setting in settings_of(cls) for name in setting.declared.env}
    ours = {name for name in values if name.startswith(PREFIX) or name in bare}
    is_ours = bool(ours - _EVERYBODYS - {"API_KEYS"}) or (path.parent / "zmqrt.toml").is_file()
    values = {name: value for name, value in values.items() if environ.values.get(name) != value}
    if not ours.isdisjoint(values):
        refuse_foreign(path)
    return Variables(".env", warn, values, path, frozenset() if is_ours else frozenset(_EVERYBODYS))


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Guess what was meant; a prefix that all names share must not make them look alike."""
    bare = [other.removeprefix(prefix) for other in known if other.startswith(prefix)]
    near = difflib.get_close_matches(name.removeprefix(prefix), bare, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _refuse_unknown(values: Mapping[str, str], known: Iterable[str]) -> None:
    """Names with our prefix are ours alone; bare names belong to everyone and are not judged."""
    for name in values:
        if name.startswith(PREFIX) and name not in known:
            guess = nearest(name, known, PREFIX) or "; see `zmqrt config init` for every setting"
            raise ConfigurationError(f"unknown variable {name} in .env{guess}")
        if name.startswith(PREFIX) and "\N{REPLACEMENT CHARACTER}" in values[name]:
            raise ConfigurationError(f"{name} in .env is not UTF-8 text; save the file as UTF-8")


def _clean(values: Mapping[str, str | None]) -> dict[str, str]:
    """Drop empty values (compose files pass variables on that nobody set), and quotes that Docker leaves."""
    cleaned = ((name, unquoted(value or "")) for name, value in values.items())
    return {name: value for name, value in cleaned if value}


def _known_names(roles: Roles) -> set[str]:
    """Return every name that some role, or none in particular, has a use for."""
    return {name for cls in roles.values() for setting in settings_of(cls) for name in setting.env_names} | _NO_SETTINGS


def _is_service_link(name: str, value: str, known: Iterable[str]) -> bool:
    """Say whether a service of this name is behind it: `ZMQRT_PORT=tcp://10.0.0.1:8000`, `ZMQRT_SERVICE_HOST`, …"""
    is_address = name.endswith("_PORT") and _LINK_VALUE.fullmatch(value)
    return bool(is_address or (_LINK_NAME.fullmatch(name) and name not in known))
