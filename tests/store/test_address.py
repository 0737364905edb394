from __future__ import annotations

import pytest

from redist.store.address import parse


@pytest.mark.parametrize(
    ("text", "url", "kind"),
    [
        ("redis://localhost", "redis://localhost:6379", "tcp"),
        ("localhost:7000", "redis://localhost:7000", "tcp"),
        ("redis.example.com", "redis://redis.example.com:6379", "tcp"),
        ("valkey://h:1/3", "redis://h:1?db=3", "tcp"),
        ("rediss://h", "rediss://h:6379", "tcp"),
        ("valkeys://h", "rediss://h:6379", "tcp"),
        ("redis://[::1]:7", "redis://[::1]:7", "tcp"),
        ("redis://", "redis://localhost:6379", "tcp"),
        ("unix:///a/b.sock", "unix:///a/b.sock", "unix"),
        ("/a/b.sock", "unix:///a/b.sock", "unix"),
        ("redis+unix:///a%20b", "unix:///a%20b", "unix"),
        ("unix:///a?db=2", "unix:///a?db=2", "unix"),
        ("redis+sentinel://a,b:3/main/2", "redis+sentinel://a:26379,b:3/main?db=2", "sentinel"),
        ("rediss+cluster://a,b:3", "rediss+cluster://a:6379,b:3", "cluster"),
    ],
)
def test_forms(text: str, url: str, kind: str) -> None:
    address = parse(text)
    assert address.url() == url
    assert address.kind == kind
    assert parse(url) == address


def test_passwords_are_kept_from_the_url() -> None:
    address = parse("redis://me:p%40ss@h?sentinel_password=x")
    assert address.credentials() == ("me", "p@ss")
    assert address.credentials("sentinel_") == ("", "x")
    assert address.url() == "redis://h:6379?username=me"
    assert "ss" not in repr(address).replace("hosts", "").replace("'h'", "").replace("Address", "")
    assert address.secrets() == {"REDIST_PASSWORD": "p@ss", "REDIST_SENTINEL_PASSWORD": "x"}
    assert parse(address.url(secrets=True)) == address


def test_password_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIST_PASSWORD", "secret")
    monkeypatch.setenv("REDIST_USERNAME", "me")
    assert parse("redis://h").credentials() == ("me", "secret")
    assert parse("redis://you:x@h").credentials() == ("you", "x")


def test_keywords_win() -> None:
    address = parse("redis://h?namespace=a&timeout=3", namespace="b", timeout=None, ssl_check_hostname=False)
    assert (address.namespace, address.timeout) == ("b", 3.0)
    assert address.options["ssl_check_hostname"] == "false"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("http://h", "unknown scheme"),
        ("tcp://h:8786", "unknown scheme"),
        ("redis+foo://h", "unknown scheme"),
        ("redis://a,b", "2 hosts"),
        ("redis://h:x", "port"),
        ("redis://h:99999", "port"),
        ("redis://h/x", "database"),
        ("redis+cluster://h?db=1", "database 0 only"),
        ("redis+sentinel://h", "name the master"),
        ("unix://relative/path", "begins with"),
        ("redis://h?nonsense=1", "unknown option 'nonsense'"),
        ("redis://h?namespace=a{b}", "namespace"),
        ("redis://h?timeout=-1", "timeout"),
        ("redis://h?timeout=soon", "timeout"),
        ("redis://h?ssl_cert_reqs=maybe", "one of"),
        ("redis://h?x", "bad query"),
    ],
)
def test_refused(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse(text)


def test_no_address() -> None:
    with pytest.raises(TypeError, match="an address is a str"):
        parse(None)  # type: ignore[arg-type]
