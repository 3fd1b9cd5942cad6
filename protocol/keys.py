"""Makes and reads the CURVE keys of a fleet, which are files: who holds which, and what each role reads.

    DIR/broker/public.key, secret.key          the broker's own pair
    DIR/worker/public.key, secret.key          the pair of workers
    DIR/client/public.key, secret.key          the pair of clients
    DIR/admin/public.key, secret.key           the pair of whoever may drain, load and see everybody's requests
    DIR/authorized_workers, authorized_clients who may connect (authorized_keys.py)

A worker or client machine needs only its own folder and broker/public.key. Secrets are written 0600, refused when
others may read them, and never logged. Folders from before there was admin/ work as they did: their client/ is listed
as admin.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq

from .errors import ConfigurationError
from .failure import PeerRole
from .file_edits import replace_text
from .own_files import LooseFileError, everybody_may_write, read_text, refuse_readable

Z85_KEY: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_ADMIN: Final = "admin"
_ROLES: Final = ("broker", "worker", "client", _ADMIN)


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


def generate(directory: Path) -> list[Path]:
    """Make a fleet's keys: broker, worker, client and admin pairs, and the two lists that name them.

    Args:
        directory: Made if absent; nothing in it is overwritten.

    Returns:
        The files written.

    Raises:
        ConfigurationError: a key file is already there.
    """
    present = [directory / role for role in _ROLES if (directory / role / "secret.key").exists()]
    if present:
        raise ConfigurationError(
            f"{present[0]} already holds a secret key; choose an empty directory, or delete it first"
        )
    written: list[Path] = []
    pairs = {role: new_pair() for role in _ROLES}
    for role, pair in pairs.items():
        written += _write_pair(directory / role, pair)
    listed = {"workers": ["worker"], "clients": ["client", f"{_ADMIN} {_ADMIN}"]}
    for group, entries in listed.items():
        lines = [f"# public keys of {group}, one a line: <key> <name> [admin] [bridge]"]
        lines += [f"{pairs[entry.split()[0]].public.decode()} {entry}" for entry in entries]
        written.append(_write_open(directory / f"authorized_{group}", "\n".join(lines) + "\n"))
    return written


def _write_open(path: Path, text: str) -> Path:
    """Write what everybody may read and only we may write, whatever the umask is."""
    path.write_text(text, encoding="ascii")
    with contextlib.suppress(OSError):  # a file system without modes
        path.chmod(0o644)
    return path


def pair_of(secret: bytes) -> KeyPair:
    """Return the pair of a secret key."""
    return KeyPair(zmq.curve_public(secret), secret)


def read_secret(path: Path) -> bytes:
    """Read a secret key. Raises ConfigurationError where others may read it, or it is none."""
    refuse_readable(path)
    return _read_key(path)


def new_pair() -> KeyPair:
    """Make a pair that nobody else has."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public, secret)


def _write_pair(folder: Path, pair: KeyPair) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # a file system without modes: the secret itself is checked below
        folder.chmod(0o700)
    public, secret = folder / "public.key", folder / "secret.key"
    _write_open(public, pair.public.decode() + "\n")
    handle = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(pair.secret.decode() + "\n")
    return [public, secret]


def load_server(directory: Path) -> KeyPair:
    """Read the broker's own pair. Raises ConfigurationError naming the file that is missing or wrong."""
    return _load_pair(directory / "broker")


def load_peer(directory: Path, role: PeerRole, *, as_admin: bool = False) -> PeerKeys:
    """Read a worker's or client's pair and the broker's public key.

    Args:
        as_admin: Whether a client takes the admin's pair where there is one.

    Raises:
        ConfigurationError: naming the file that is missing or wrong.
    """
    is_admin_here = (directory / _ADMIN / "secret.key").exists()
    is_plain_here = (directory / role / "secret.key").exists()
    folder = _ADMIN if role == "client" and is_admin_here and (as_admin or not is_plain_here) else role
    own = _load_pair(directory / folder, may_lack_public=True)
    return PeerKeys(own, _read_key(directory / "broker" / "public.key"))


def keep_joined(directory: Path, role: str, keys: PeerKeys) -> None:
    """Keep the keys of a machine that joins in its folder. What is cut off in the middle leaves a pair that fits.

    Args:
        role: Whose pair it is; that of a bridge is where clients look.

    Raises:
        ConfigurationError: the folder is of another fleet, or cannot be written.
    """
    folder = directory / ("client" if role == "bridge" else role)
    public = directory / "broker" / "public.key"
    try:
        for made in (directory, folder, public.parent):
            made.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # a file system without modes
                made.chmod(0o700)
        if public.exists() and _read_key(public) != keys.server_public:
            raise ConfigurationError(f"{directory} holds the keys of another fleet; choose a folder with --keys DIR")
        replace_text(public, keys.server_public.decode() + "\n", mode=0o644)
        (folder / "public.key").unlink(missing_ok=True)
        replace_text(folder / "secret.key", keys.own.secret.decode() + "\n", mode=0o600)
        replace_text(folder / "public.key", keys.own.public.decode() + "\n", mode=0o644)
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be written: {error.strerror}") from None


def _load_pair(folder: Path, *, may_lack_public: bool = False) -> KeyPair:
    secret = folder / "secret.key"
    with contextlib.suppress(FileNotFoundError):  # said below
        refuse_readable(secret)
    if may_lack_public and secret.exists() and not (folder / "public.key").exists():  # `keep_joined` was cut off
        return pair_of(_read_key(secret))
    pair = KeyPair(_read_key(folder / "public.key"), _read_key(secret))
    if zmq.curve_public(pair.secret) != pair.public:
        raise ConfigurationError(f"{folder}: public.key and secret.key do not belong together")
    return pair


def _read_key(path: Path) -> bytes:
    text = read_key_text(path).strip()
    if not Z85_KEY.fullmatch(text):
        raise ConfigurationError(f"{path} is not a key: expected 40 characters of Z85")
    return text.encode("ascii")


def read_key_text(path: Path) -> str:
    """Read a file of keys. Raises ConfigurationError where it is missing, or everybody may change it."""
    try:
        text = read_text(path)
        is_loose = everybody_may_write(path)
    except FileNotFoundError:
        raise ConfigurationError(f"{path} is missing; 'zmqrt keygen DIR' makes a fleet's keys") from None
    if is_loose:
        raise LooseFileError(
            f"{path} may be changed by every user of this machine; run: chmod go-w {shlex.quote(str(path))}"
        )
    return text
