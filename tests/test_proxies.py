"""Servers of this machine are reached round every proxy; a message about another one names the proxy."""

import pytest

from raft_tasks.proxies import is_loopback, proxy_note


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
