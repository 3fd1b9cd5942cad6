"""Says why a broker could not be used, in words for people. The same for clients and for nodes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PeerRole = Literal["client", "worker"]
PORTS: Final[dict[PeerRole, int]] = {"client": 7555, "worker": 7556}
"""Where a broker listens for each, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a broker could not be used.

    Attributes:
        is_final: Trying again cannot help (a wrong key, an HTTP server).
    """

    text: str
    is_final: bool = False
    not_authorised: bool = False


def other(role: PeerRole) -> PeerRole:
    """Return who the broker's other port is for."""
    return "worker" if role == "client" else "client"


def of_other_port(endpoint: str, role: PeerRole) -> Failure:
    """Explain a message that only the other role is sent."""
    there = other(role)
    text = f"{endpoint} is the broker's port for {there}s; {role}s connect to the other one ({PORTS[role]} by default)"
    return Failure(text, is_final=True)


def of_silence(endpoint: str, role: PeerRole) -> Failure:
    """Explain that a greeting is not answered though ZeroMQ is."""
    there = other(role)
    return Failure(
        f"{endpoint}: something there speaks ZeroMQ but does not answer as a broker answers {role}s; is it the "
        f"broker's port for {there}s ({PORTS[there]} by default; {role}s use {PORTS[role]}), or another program?"
    )


def of_version(lowest: int, highest: int, own: int, endpoint: str, role: PeerRole) -> Failure:
    """Explain a version answer."""
    text = f"{endpoint}: the broker speaks ZRT/{lowest} to ZRT/{highest}, this {role} ZRT/{own}; update the older one"
    return Failure(text, is_final=True)


def of_stranger(endpoint: str) -> Failure:
    """Explain an envelope that is not ZRT."""
    return Failure(f"{endpoint}: something there speaks ZeroMQ but not ZRT; is it another program?", is_final=True)
