"""Who asks where a proxy asks for them. Pure.

Anybody can send `X-Forwarded-For`; only what a trusted proxy says of its own peer is known. So the list is read from
its end, past the proxies that are trusted too, to the first address that is not: what stands before that, its owner
may have made up. Proxies write one of two notations, and pass on the other as it came: where both are there and
differ, neither counts.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_PAIR: Final = re.compile(r'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^;,"\s]*)\s*')
_WITH_PORT: Final = re.compile(r"\[(?P<v6>[^\]]*)\](?::\d+)?|(?P<v4>[0-9.]+):\d+")
_SCHEMES: Final = ("http", "https")


class Forwarded(NamedTuple):
    """Whom a request is from, and over what it came to the first proxy; "" where that was not said."""

    address: str
    scheme: str = ""


def read_networks(values: Iterable[str]) -> tuple[Network, ...]:
    """Read addresses and networks. Raises ValueError."""
    try:
        return tuple(ipaddress.ip_network(value.strip("[]"), strict=False) for value in values)
    except ValueError as error:
        raise ValueError(f"{error}; name the addresses of proxies, like 10.0.0.5 or 10.0.0.0/24") from None


class TrustedProxies:
    """The proxies whose word counts."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks

    def include(self, address: str) -> bool:
        """Whether a peer is one of them."""
        if not self._networks:
            return False
        found = _read(address)
        return found is not None and any(found in network for network in self._networks)

    def asked_by(self, peer: str, fields: Iterable[tuple[bytes, bytes]]) -> Forwarded:
        """Return who asks through a proxy: PEER itself where that says nothing that can be believed."""
        listed: list[str] = []
        protos: list[str] = []
        elements: list[dict[str, str]] = []
        for name, raw in fields:
            if name == b"x-forwarded-for":
                listed += raw.decode("latin-1").split(",")
            elif name == b"x-forwarded-proto":
                protos += raw.decode("latin-1").split(",")
            elif name == b"forwarded":
                elements += _elements(raw.decode("latin-1"))
        named = [element.get("for", "") for element in elements]
        addresses = {self._first_stranger(peer, found) for found in (listed, named) if found}
        schemes = {_scheme(protos[-1] if protos else ""), _scheme(elements[-1].get("proto", "") if elements else "")}
        return Forwarded(_only(addresses) or peer, _only(schemes - {""}))

    def _first_stranger(self, peer: str, addresses: Sequence[str]) -> str:
        known = peer
        for text in reversed(addresses):
            found = _read(text)
            if found is None:  # "unknown", a name that hides somebody, or nonsense
                return known
            known = str(found)
            if not any(found in network for network in self._networks):
                return known
        return known


def _read(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    bare = text.strip(' \t"').partition("%")[0]  # the name of an interface is no part of who asks
    if found := _WITH_PORT.fullmatch(bare):
        bare = found["v6"] or found["v4"] or ""
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped  # how a socket of both families names the older one
    return address


def _elements(value: str) -> list[dict[str, str]]:
    """Read RFC 7239, section 4. What cannot be read is one element that says nothing."""
    elements: list[dict[str, str]] = [{}]
    at = 0
    while at < len(value):
        pair = _PAIR.match(value, at)
        if pair is None:
            return [{}]
        elements[-1].setdefault(pair[1].lower(), pair[2].strip('"'))
        at = pair.end()
        if at < len(value) and value[at] == ",":
            elements.append({})
        elif at < len(value) and value[at] != ";":
            return [{}]
        at += 1
    return elements


def _only(values: set[str]) -> str:
    """Return what all say; "" where nobody does, or they differ."""
    return values.pop() if len(values) == 1 else ""


def _scheme(text: str) -> str:
    scheme = text.strip().lower()
    return scheme if scheme in _SCHEMES else ""
