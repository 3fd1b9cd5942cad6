"""Two roles of tests, and a place from which their settings are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from zmqrt.protocol.errors import ConfigurationError
from zmqrt.protocol.settings import (
    CommonSettings,
    Resolved,
    Surroundings,
    resolve,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class Kitchen(CommonSettings):
    """One field of every kind."""

    role: ClassVar[str] = "kitchen"

    request_timeout_s: float = setting(30.0, env=("REQUEST_TIMEOUT_SEC",), minimum=0.001, help="Longest wait.")
    batch_max_latency_ms: float = setting(50.0, env=("BATCH_MAX_LATENCY_MS",), help="Longest wait for a batch.")
    held_bytes: int = setting(1 << 30, help="Most memory for bodies.")
    port: int = setting(8000, env=("PORT",), minimum=0, maximum=65535, help="Port.")
    broker: tuple[str, ...] = setting(("tcp://127.0.0.1:7555",), env=("GATEWAY_URL",), help="Where the broker is.")
    mock: bool = setting(False, env=("USE_MOCK_MODEL",), help="No model.")
    api_keys: tuple[str, ...] = setting((), env=("API_KEYS",), secret=True, help="Who may ask.")
    share: float | None = setting(None, minimum=0, maximum=1, help="Part of a whole.")
    old_limit: int | None = setting(None, env=("OLD_LIMIT",), deprecated="use port", help="Gone.")

    def __post_init__(self) -> None:
        """Refuse a contradiction."""
        if self.mock and self.port == 1:
            raise ValueError("mock needs another port than 1")


@dataclass(frozen=True, kw_only=True)
class Garden(CommonSettings):
    """A second role, to be checked though it is not started."""

    role: ClassVar[str] = "garden"

    broker: tuple[str, ...] = setting(("tcp://127.0.0.1:7555",), help="Where the broker is.")
    trees: int = setting(3, help="How many.")
    pause_s: float = setting(0.0, help="Pause.")


ROLES: Mapping[str, type[CommonSettings]] = {"kitchen": Kitchen, "garden": Garden}


class House:
    """A folder, a user's folder and an environment to load from."""

    def __init__(self, path: Path) -> None:
        self.directory = path / "here"
        self.user_directory = path / "user"
        self.directory.mkdir()
        self.user_directory.mkdir()

    def toml(self, text: str) -> None:
        """Write zmqrt.toml into the working directory."""
        (self.directory / "zmqrt.toml").write_text(text, encoding="utf-8")

    def dotenv(self, text: str) -> None:
        """Write .env into the working directory."""
        (self.directory / ".env").write_text(text, encoding="utf-8")

    def resolve(
        self, environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
    ) -> Resolved[Kitchen]:
        """Load the kitchen's settings."""
        around = Surroundings(
            environ=environ or {}, directory=self.directory, user_directory=self.user_directory, roles=ROLES
        )
        return resolve(Kitchen, flags, surroundings=around)

    def load(self, **environ: str) -> Kitchen:
        """Load from files and the environment."""
        return self.resolve(environ).settings

    def refusal(self, **environ: str) -> str:
        """Return the words with which loading is refused."""
        with pytest.raises(ConfigurationError) as caught:
            self.load(**environ)
        return str(caught.value).replace(str(self.directory), "HERE")


def origin_of(resolved: Resolved[Kitchen], name: str) -> str:
    """Return where a setting's value came from, by the name of the file alone."""
    origin = next(each.origin for each in resolved.origins if each.name == name)
    return origin.rsplit("/", 1)[-1]
