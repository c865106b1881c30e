"""Which proxy of the environment a request goes through: none forwards to this machine's own servers."""

import ipaddress
import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from raft_tasks.errors import InputError

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
    given = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").split(",")]
    direct = ["*"] if "*" in given else [*given, *hosts]  # beside others some libraries do not know the star
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(filter(None, direct)))


def check_schemes() -> None:
    """Desktops write socks://, which httpx does not know; another unknown scheme is an InputError."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            scheme, separator, rest = os.environ.get(variable, "").partition("://")
            if separator and scheme.lower() == "socks":
                os.environ[variable] = f"socks5://{rest}"
            elif separator and scheme.lower() not in ("http", "https", "socks5", "socks5h"):
                raise InputError(
                    f"{variable} names a proxy with the scheme {scheme}://; expected http, https, socks5 or socks5h. "
                    "Correct or unset the variable"
                )


def proxy_note(url: str) -> str:
    """ " through the proxy ..." for messages about `url`, without credentials; "" where no proxy is in play."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_loopback(url) or proxy_bypass(parts.hostname or ""):
        return ""
    address = proxy if "@" not in proxy else f"{urlsplit(proxy).scheme}://{proxy.rpartition('@')[2]}"
    return f" through the proxy {address} of the environment (NO_PROXY names hosts that are reached without it)"
