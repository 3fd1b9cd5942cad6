"""Hosts and origins as browsers name them, and the patterns that operators write for them. Pure.

A browser tells in `Host` which name it was sent to, and in `Origin` where the page is from that asks. A name can be
made to point here by whoever owns it (DNS rebinding); an address, and the names in `is_this_machine`, cannot.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

_HOST: Final = re.compile(r"(?P<name>\[[0-9A-Fa-f:.%\w]+\]|[^\s/@\\:?#\[\]]+)(?::(?P<port>[0-9]{1,5}|\*))?")
_ORIGIN: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>.*)")
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_NUMBERS: Final = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+)){0,3}")
"""An IPv4 address as old programs write it (127.1). No browser takes such a name for anything else."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_LONGEST: Final = 255
"""Characters of a host, as DNS has it: longer ones are no host."""
_CONTAINER_HOSTS: Final = frozenset(
    ("host.docker.internal", "gateway.docker.internal", "host.containers.internal", "host.lima.internal")
)
"""What container runtimes call the machine that they run on. Nobody can own a name below `.internal` (ICANN, 2024)."""
ANY: Final = "*"


@dataclass(frozen=True, slots=True)
class Host:
    """A host and its port: of a header, or of a pattern. None: none was named. A pattern's port 0 is any."""

    name: str
    port: int | None = None

    def __str__(self) -> str:
        """Write it as a header has it."""
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if self.port is None else f"{name}:{self.port or ANY}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a page is from. `null` has neither scheme nor host: a file, or a frame that hides where it is from."""

    scheme: str
    host: Host

    def __str__(self) -> str:
        """Write it as a header has it."""
        return f"{self.scheme}://{self.host}" if self.scheme else "null"


NULL: Final = Origin("", Host(""))


def read_host(text: str) -> Host | None:
    """Read a `Host` header; None where it is none."""
    return _read_host(text, is_dns=True)


def _read_host(text: str, *, is_dns: bool) -> Host | None:
    found = _HOST.fullmatch(text) if len(text) <= _LONGEST + 8 else None
    if found is None or found["port"] == ANY or ANY in found["name"]:
        return None
    try:
        return Host(_plain(found["name"], is_dns=is_dns), _port(found["port"]))
    except ValueError:
        return None


def read_origin(text: str) -> Origin | None:
    """Read an `Origin` header; None where it is none, or more than one."""
    if text == "null":
        return NULL
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return None
    scheme = found["scheme"].lower()
    if not found["host"]:
        return Origin(scheme, Host("")) if scheme not in _DEFAULT_PORTS else None
    host = _read_host(found["host"], is_dns=scheme in _DEFAULT_PORTS)
    return None if host is None else _usual(scheme, host)


def is_address(name: str) -> bool:
    """Say whether it is an IP address, in whatever way it may be written."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return _NUMBERS.fullmatch(name) is not None
    return True


def is_localhost(name: str) -> bool:
    """Say whether a name is this machine by definition (RFC 6761), wherever it is asked."""
    return name == "localhost" or name.endswith(".localhost")


def is_this_machine(name: str) -> bool:
    """Say whether nobody can have made a name point here who could not be here anyway."""
    return is_localhost(name) or is_address(name) or name in _CONTAINER_HOSTS


# --- patterns --------------------------------------------------------------------------------------------------------


def host_pattern(text: str) -> Host:
    """Read what an operator wrote for hosts: NAME, NAME:PORT, *.NAME, or * for any.

    Raises:
        ValueError: no host could ever match; says what would be right.
    """
    if found := _ORIGIN.fullmatch(text):
        rest = found["host"].partition("/")[0]
        raise ValueError(f"{text!r} is an address of a page; a host has no scheme: write {rest or 'a name'}")
    bare, slash, _ = text.partition("/")
    if slash:
        raise ValueError(f"{text!r} has a path, and a host has none: write {bare or 'a name'}")
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    return _host(text, is_dns=True)


def origin_pattern(text: str) -> Origin:
    """Read what an operator wrote for origins: SCHEME://HOST, with :PORT, *.HOST or * for any host, `null`, or *.

    Raises:
        ValueError: no origin could ever match; says what would be right.
    """
    if text in ("null", ANY):
        return NULL if text == "null" else Origin(ANY, Host(ANY))
    found = _ORIGIN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} has no scheme, and an origin has one: write https://{text} or http://{text}")
    scheme, rest = found["scheme"].lower(), found["host"]
    host, slash, path = rest.partition("/")
    if path or (slash and not host):
        right = f"{scheme}://{host}" if host else f"{scheme}://"
        raise ValueError(f"{text!r} has a path, and an origin has none: write {right}")
    if not host:
        if scheme in _DEFAULT_PORTS:
            raise ValueError(f"{text!r} names no host: write {scheme}://NAME, or {scheme}://* for any")
        return Origin(scheme, Host(""))
    return _usual(scheme, _host(host, is_dns=scheme in _DEFAULT_PORTS))


def matches_host(host: Host, pattern: Host) -> bool:
    """Say whether a host is meant by a pattern."""
    if pattern.port == 0:
        pattern = Host(pattern.name)
    elif pattern.port is not None:
        asked = (host.port,) if host.port is not None else tuple(_DEFAULT_PORTS.values())
        if pattern.port not in asked:
            return False
    return _matches_name(host.name, pattern.name)


def matches_origin(origin: Origin, pattern: Origin) -> bool:
    """Say whether an origin is meant by a pattern: unlike in one for hosts, no port means the scheme's own."""
    if pattern.scheme == ANY:
        return True
    if origin.scheme != pattern.scheme:
        return False
    of_any_port = pattern.host.port == 0 or pattern.host == Host(ANY)
    is_port = of_any_port or origin.host.port == pattern.host.port
    return is_port and _matches_name(origin.host.name, pattern.host.name)


def _matches_name(name: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return pattern in (ANY, name)


def _host(text: str, *, is_dns: bool) -> Host:
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no host: write NAME, NAME:PORT or *.NAME")
    name, port = found["name"], 0 if found["port"] == ANY else _port(found["port"])
    if name == ANY:
        return Host(ANY, port)
    if name.startswith("*."):
        return Host("*." + _plain(name[2:], is_dns=is_dns), port)
    if ANY in name:
        right = name.replace(ANY, "").strip(".-") or "NAME"
        raise ValueError(f"{text!r}: a * stands for whole labels in front: write *.{right}")
    return Host(_plain(name, is_dns=is_dns), port)


def _usual(scheme: str, host: Host) -> Origin:
    """Leave out a port that browsers leave out."""
    return Origin(scheme, Host(host.name) if host.port == _DEFAULT_PORTS.get(scheme, -1) else host)


def _plain(name: str, *, is_dns: bool) -> str:
    """Write a name in the one way that is compared: small letters, punycode, no last dot. Raises ValueError.

    What stands behind the scheme of an app (`app://-`) is no name of DNS, and may be anything.
    """
    if name.startswith("["):
        return str(ipaddress.ip_address(name[1:-1].replace("%25", "%")))
    if not is_dns:
        return name.lower()
    plain = name.lower().removesuffix(".")
    if not plain.isascii():
        try:
            plain = plain.encode("idna").decode("ascii")
        except UnicodeError:
            raise ValueError(f"{name!r} is no name of a host") from None
    if len(plain) > _LONGEST or not all(_LABEL.fullmatch(label) for label in plain.split(".")):
        raise ValueError(f"{name!r} is no name of a host")
    return plain


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not 0 < int(text) < 1 << 16:
        raise ValueError(f"{text} is no port: there are 1 to 65535")
    return int(text)
