"""CURVE keys of a fleet as files: who holds which, and how a role reads its own part.

    DIR/broker/public.key, secret.key          the broker's own pair
    DIR/worker/public.key, secret.key          the pair of workers
    DIR/client/public.key, secret.key          the pair of clients
    DIR/authorized_workers, authorized_clients one "<public key in Z85> <principal>" a line

A worker or client machine needs only its own folder and broker/public.key. Secrets are written 0600 and never logged.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import zmq

from .errors import ConfigurationError

PeerRole = Literal["worker", "client"]
_Z85: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_ADMIN: Final = "admin"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE pair, each key as 40 characters of Z85 (ZeroMQ RFC 32)."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PeerKeys:
    """What a worker or client needs: its own pair, and the public key of the broker."""

    own: KeyPair
    server_public: bytes


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a listed key stands for. Admins may drain, load and unload."""

    name: str
    is_admin: bool = False


def generate(directory: Path) -> list[Path]:
    """Make a fleet's keys: broker, worker and client pairs, and the two lists that name them.

    Args:
        directory: Made if absent; nothing in it is overwritten.

    Returns:
        The files written.

    Raises:
        ConfigurationError: a key file is already there.
    """
    present = [
        directory / role for role in ("broker", "worker", "client") if (directory / role / "secret.key").exists()
    ]
    if present:
        raise ConfigurationError(
            f"{present[0]} already holds a secret key; choose an empty directory, or delete it first"
        )
    written: list[Path] = []
    pairs = {role: _new_pair() for role in ("broker", "worker", "client")}
    for role, pair in pairs.items():
        written += _write_pair(directory / role, pair)
    for role, rights in (("worker", ""), ("client", f" {_ADMIN}")):
        listing = directory / f"authorized_{role}s"
        head = f"# public keys of {role}s, one a line: <key> <name> [{_ADMIN}]\n"
        listing.write_text(f"{head}{pairs[role].public.decode()} {role}{rights}\n", encoding="utf-8")
        written.append(listing)
    return written


def _new_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public, secret)


def _write_pair(folder: Path, pair: KeyPair) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # a file system without modes: the secret itself is checked below
        folder.chmod(0o700)
    public, secret = folder / "public.key", folder / "secret.key"
    public.write_text(pair.public.decode() + "\n", encoding="ascii")
    handle = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(pair.secret.decode() + "\n")
    return [public, secret]


def load_server(directory: Path) -> KeyPair:
    """Read the broker's own pair. Raises ConfigurationError naming the file that is missing or wrong."""
    return _load_pair(directory / "broker")


def load_peer(directory: Path, role: PeerRole) -> PeerKeys:
    """Read a worker's or client's pair and the broker's public key. Raises ConfigurationError naming the file."""
    return PeerKeys(_load_pair(directory / role), _read_key(directory / "broker" / "public.key"))


def load_allowed(directory: Path, group: Literal["workers", "clients"]) -> dict[bytes, Principal]:
    """Read an allow-list: public key in Z85 -> principal. Raises ConfigurationError naming file and line."""
    path = directory / f"authorized_{group}"
    allowed: dict[bytes, Principal] = {}
    for number, line in enumerate(_read(path).splitlines(), 1):
        words = line.split()
        if not words or words[0] == "#":  # a key may begin with #, but a word of its own is a comment
            continue
        if not _Z85.fullmatch(words[0]) or len(words) > 3 or words[2:] not in ([], [_ADMIN]):
            raise ConfigurationError(f"{path}, line {number}: expected '<40 characters of key> <name> [{_ADMIN}]'")
        name = words[1] if len(words) > 1 else words[0][:8]
        allowed[words[0].encode()] = Principal(name, is_admin=_ADMIN in words[2:])
    return allowed


def _load_pair(folder: Path) -> KeyPair:
    pair = KeyPair(_read_key(folder / "public.key"), _read_key(folder / "secret.key"))
    if zmq.curve_public(pair.secret) != pair.public:
        raise ConfigurationError(f"{folder}: public.key and secret.key do not belong together")
    return pair


def _read_key(path: Path) -> bytes:
    text = _read(path).strip()
    if not _Z85.fullmatch(text):
        raise ConfigurationError(f"{path} is not a key: expected 40 characters of Z85")
    return text.encode("ascii")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"{path} is missing; 'zmqrt keygen DIR' makes a fleet's keys") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
