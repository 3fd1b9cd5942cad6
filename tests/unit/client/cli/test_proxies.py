"""What `zmqrt submit --url` does with proxies and redirections: real sockets, each in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from support.web_server import Web, serving
from zmqrt.client.cli.cmd_submit import command
from zmqrt.client.cli.http_submit import SubmitError, post
from zmqrt.client.cli.proxies import proxy_for

FAR = "http://bridge.invalid:8000"


@pytest.fixture
def two() -> Iterator[tuple[Web, Web]]:
    """A bridge, and another server."""
    with serving() as bridge, serving() as other:
        yield bridge, other


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without any."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_loopback_is_asked_directly(two: tuple[Web, Web], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxy is named, prompt and key stay on this machine."""
    bridge, proxy = two
    monkeypatch.setenv(name, proxy.url)

    assert post(bridge.url, {"prompt": "Hi"}, timeout_s=5, api_key="k")["text"] == "Hello"
    assert (bridge.asked, proxy.asked) == ([("/infer", "Bearer k")], [])


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1.2.3", "[::1]", "localhost", "LOCALHOST", "a.localhost", "0.0.0.0", "[::ffff:127.0.0.1]"],
)
def test_this_machine_by_every_name_has_no_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each family."""
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")

    assert proxy_for(f"http://{host}:8000/infer") is None
    assert proxy_for(f"https://{host}/infer") is None
    assert proxy_for(FAR) is not None


def test_another_machine_is_asked_through_the_proxy_unless_exempted(
    two: tuple[Web, Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every other program does it."""
    _, proxy = two
    monkeypatch.setenv("http_proxy", proxy.url)
    assert post(FAR, {"prompt": "Hi"}, timeout_s=5)["text"] == "Hello"
    assert [path for path, _ in proxy.asked] == [f"{FAR}/infer"]

    monkeypatch.setenv("no_proxy", "bridge.invalid")
    assert proxy_for(FAR) is None


def test_a_proxy_that_fails_is_named_without_its_password(
    two: tuple[Web, Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens there; or it answers by itself. The variable and the way around are told."""
    _, proxy = two
    proxy.status, proxy.body = 502, b"<html>"
    proxy_address = proxy.url.removeprefix("http://")
    monkeypatch.setenv("http_proxy", f"http://me:s3cret@{proxy_address}")
    with pytest.raises(SubmitError, match=rf"answered 502: .*the proxy {proxy_address} \(from http_proxy\)") as error:
        post(FAR, {"prompt": "Hi"}, timeout_s=5)

    monkeypatch.setenv("http_proxy", "me:s3cret@127.0.0.1:1")
    words = r"cannot be reached through the proxy 127\.0\.0\.1:1 \(from http_proxy\): nobody listens there.*no_proxy="
    with pytest.raises(SubmitError, match=words) as unreachable:
        post(FAR, {"prompt": "Hi"}, timeout_s=5)
    assert unreachable.value.exit_code == 69
    assert "s3cret" not in str(error.value) + str(unreachable.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_named_and_not_followed(two: tuple[Web, Web], status: int) -> None:
    """The body would be lost, and the key given to whoever is named."""
    bridge, other = two
    bridge.status, bridge.body, bridge.headers = status, b"", {"Location": f"{other.url}/infer"}

    with pytest.raises(SubmitError, match=rf"answered {status}: it points to {other.url}/infer; .*--url"):
        post(bridge.url, {"prompt": "Hi"}, timeout_s=5, api_key="k")
    assert other.asked == []


def test_the_bare_variable_of_other_products_is_not_sent(two: tuple[Web, Web], monkeypatch: pytest.MonkeyPatch) -> None:
    """API_KEY is not ours; ZMQRT_API_KEY is, with or without quotes, and a 401 says so."""
    bridge, _ = two
    monkeypatch.setenv("API_KEY", "sk-of-another-product")
    words = ["--url", bridge.url, "--prompt", "Hi"]
    assert CliRunner().invoke(command, words).exit_code == 0
    assert CliRunner().invoke(command, words, env={"ZMQRT_API_KEY": '"mine"'}).exit_code == 0
    by_flag = CliRunner().invoke(command, [*words, "--api-key", "mine"])

    assert [key for _, key in bridge.asked] == [None, "Bearer mine", "Bearer mine"]
    assert "list of processes; set ZMQRT_API_KEY" in by_flag.stderr
    bridge.status, bridge.body = 401, b""
    with pytest.raises(SubmitError, match=r"the variable API_KEY is not read.*ZMQRT_API_KEY"):
        post(bridge.url, {"prompt": "Hi"}, timeout_s=5)
