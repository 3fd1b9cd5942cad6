"""The one settings loader: a role declares a frozen dataclass, everything else follows from it.

Defaults < TOML file < `.env` < environment < flags; each value remembers where it came from. A key that no role knows
is an error in a file, and a warning in the environment, where others put things too. Declare and use:

    @dataclass(frozen=True, kw_only=True)
    class BrokerSettings(CommonSettings):
        role: ClassVar[str] = "broker"  # the TOML table

        request_timeout_s: float = setting(
            30.0, env=("REQUEST_TIMEOUT_SEC",), minimum=0.001, help="Longest wait for an answer."
        )  # --request-timeout 30s, ZMQRT_REQUEST_TIMEOUT, ZMQRT_REQUEST_TIMEOUT_SEC, REQUEST_TIMEOUT_SEC
        bind: tuple[str, ...] = setting(("tcp://127.0.0.1:7555",), help="Where clients connect.")

    @command(BrokerSettings, name="zmqrt-broker", help="Hand requests to workers.")
    def main(settings: BrokerSettings) -> None: ...

A subcommand of a group takes the same flags with `@options(ClientSettings)`. `resolve` does without a command line.
"""

from .commands import SETTINGS_LOGGER, command, is_named, options, version_text
from .declare import LOG_LEVELS, CommonSettings, Setting, setting, settings_of
from .sources import (
    DEFAULT,
    FILE_NAME,
    SHARED_TABLE,
    EffectiveValue,
    Resolved,
    Surroundings,
    joined_folder,
    known_roles,
    resolve,
)
from .values import duration_type, unquoted
from .variables import API_KEY_ENV, CACHE_ENV, CONFIG_ENV, wants_tracebacks

__all__ = [
    "API_KEY_ENV",
    "CACHE_ENV",
    "CONFIG_ENV",
    "DEFAULT",
    "FILE_NAME",
    "LOG_LEVELS",
    "SETTINGS_LOGGER",
    "SHARED_TABLE",
    "CommonSettings",
    "EffectiveValue",
    "Resolved",
    "Setting",
    "Surroundings",
    "command",
    "duration_type",
    "is_named",
    "joined_folder",
    "known_roles",
    "options",
    "resolve",
    "setting",
    "settings_of",
    "unquoted",
    "version_text",
    "wants_tracebacks",
]
