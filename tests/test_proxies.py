"""Servers of this machine are reached round every proxy; a message about another one names the proxy."""

import os

import pytest

from raft_tasks.errors import InputError
from raft_tasks.proxies import check_schemes, is_loopback, proxy_note, reach_directly


@pytest.fixture
def proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://clerk:secret@proxy.example.org:3128")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example.org")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000/v1", True), ("http://localhost/v1", True), ("http://[::1]:8000", True),
        ("http://127.8.0.1", True), ("http://models.localhost/v1", True), ("http://10.0.0.1/v1", False),
        ("https://localhost.example.org", False),
    ],
)  # fmt: skip
def test_loopback(proxy, url, expected):
    assert is_loopback(url) == expected
    assert not (expected and proxy_note(url))


def test_a_note_names_the_proxy_without_its_password(proxy):
    assert proxy_note("http://api.example.org/v1").startswith(" through the proxy http://proxy.example.org:3128 of")
    assert proxy_note("https://api.example.org/v1").startswith(" through the proxy socks5://127.0.0.1:9 of")
    assert proxy_note("http://intranet.example.org/v1") == ""


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        ("a.example.org", "b.example.org, 10.0.0.0/8", "a.example.org,b.example.org,10.0.0.0/8,::1"),
        ("", " a.example.org ,, ::1", "a.example.org,::1"),
        ("*", "a.example.org", "*"),
        ("", "a.example.org,*", "*"),
    ],
)
def test_what_the_user_excepts_stays_excepted(proxy, monkeypatch, lower, upper, expected):
    monkeypatch.setenv("no_proxy", lower)
    monkeypatch.setenv("NO_PROXY", upper)
    reach_directly("::1")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == expected


def test_a_desktops_socks_proxy_is_one_and_an_unknown_scheme_is_named(proxy, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1080/")
    check_schemes()
    assert os.environ["ALL_PROXY"] == "socks5://127.0.0.1:1080/"
    monkeypatch.setenv("https_proxy", "proxy.example.org:3128")  # http is meant
    check_schemes()
    monkeypatch.setenv("HTTPS_PROXY", "socks4://proxy.example.org:1080")
    with pytest.raises(InputError, match="HTTPS_PROXY names a proxy with the scheme socks4://; expected http"):
        check_schemes()
