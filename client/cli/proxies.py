"""Which proxy stands between us and a bridge. Loopback has none: whatever the environment says, it is this machine."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

from ...protocol.addresses import addresses_of, is_loopback_host


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable (or system setting) that names it. `shown` is its address without a password."""

    scheme: str
    url: str

    @property
    def shown(self) -> str:
        """What to call it in words."""
        address = self.url.rpartition("@")[2] if "@" in self.url else self.url.partition("://")[2] or self.url
        return f"the proxy {address.rstrip('/')} (from {self.scheme}_proxy)"


def proxy_for(url: str) -> Proxy | None:
    """Return what the environment names for an address, unless it is this machine or `no_proxy` exempts it."""
    parts = urlsplit(url)
    named = urllib.request.getproxies().get(parts.scheme)
    if not named or _is_here(parts.hostname or "") or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return Proxy(parts.scheme, named)


def _is_here(host: str) -> bool:
    if host in {"0.0.0.0", "::"} or is_loopback_host(host):  # noqa: S104 - compared, not bound
        return True
    if "." in host or ":" in host:
        return False
    try:  # a short name is in /etc/hosts, or may be: this machine's own is, often as 127.0.1.1
        return all(map(is_loopback_host, addresses_of(host)))
    except (OSError, UnicodeError):
        return False


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follow nothing: a redirected POST loses its body, and its key would go to whoever is named there."""

    def redirect_request(self, req: object, fp: object, code: int, msg: str, headers: object, newurl: str) -> None:
        """Leave the answer as it is: an error that names where it points."""


def opener_for(proxy: Proxy | None) -> urllib.request.OpenerDirector:
    """Return what opens an address through this proxy, or through none."""
    proxies = {proxy.scheme: proxy.url} if proxy is not None else {}
    return urllib.request.build_opener(urllib.request.ProxyHandler(proxies), NoRedirects)
