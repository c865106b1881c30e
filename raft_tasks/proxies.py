"""Which proxy of the environment a request goes through: none forwards to this machine's own servers."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host in LOOPBACK or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reach_directly(*hosts: str) -> None:
    """Except the hosts from the proxies of this process and its children; both spellings are read by some library."""
    direct = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(filter(None, [*direct, *hosts])))


def proxy_note(url: str) -> str:
    """ " through the proxy ..." for messages about `url`, without credentials; "" where no proxy is in play."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_loopback(url) or proxy_bypass(parts.hostname or ""):
        return ""
    address = proxy if "@" not in proxy else f"{urlsplit(proxy).scheme}://{proxy.rpartition('@')[2]}"
    return f" through the proxy {address} of the environment (NO_PROXY names hosts that are reached without it)"
