"""A headless Chromium, driven over its DevTools protocol: for tests of the page, as a reader would see it.

One page, one socket, no framework. What the browser complains about (exceptions, console errors, refused by policy) is
kept, so that a test can say that there was nothing.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here (chromium, chromium-browser, google-chrome)"
)
START_S = 60.0
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._count = 0
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have the browser do something and return what it answers."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message: dict[str, Any] = json.loads(self._socket.recv(timeout=30))
            if message.get("id") != self._count:
                self._note(message)
            elif "error" in message:
                raise AssertionError(f"{method}: {message['error']}")
            else:
                result: dict[str, Any] = message["result"]
                return result

    def open(self, url: str) -> None:
        """Go there; the document is there afterwards, what it asks for may not be."""
        said = self.command("Page.navigate", url=url)
        assert "errorText" not in said, said
        while self.value("document.readyState") != "complete" or self.value("location.href") == "about:blank":
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript (a promise is waited for) and return its value as JSON."""
        said = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, f"{expression}: {said['exceptionDetails']}"
        return said["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the text of the first element that matches; "" without one."""
        return str(self.value(f"document.querySelector({json.dumps(selector)})?.textContent.trim() ?? ''"))

    def click(self, selector: str) -> None:
        """Click the first element that matches."""
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, text: str) -> None:
        """Put text into whatever has the focus, as a keyboard would."""
        self.command("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press and release a key (Shift is modifier 8)."""
        same = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {}
        self.command("Input.dispatchKeyEvent", type="keyDown", **same, **text)
        self.command("Input.dispatchKeyEvent", type="keyUp", **same)

    def look(self, *, width: int, height: int, theme: str = "light", still: bool = True) -> None:
        """Be a window of that size, on a system of that theme; `still`: the system asks for less motion."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        motion = "reduce" if still else "no-preference"
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.command("Emulation.setEmulatedMedia", features=features)

    def _note(self, message: dict[str, Any]) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(" ".join(str(one.get("value", one)) for one in told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            case _:
                pass


@contextlib.contextmanager
def browsing(profile: Path) -> Generator[Page]:
    """Start a browser with an empty profile, give its page, end it and its children."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a group of its own, so that its children end with it
    )
    try:
        with connect(_page_url(process, profile / "DevToolsActivePort"), max_size=None) as socket:
            yield Page(socket)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _page_url(process: subprocess.Popen[bytes], told: Path) -> str:
    """Wait for the port that the browser has taken, and ask it for its page."""
    give_up_at = time.monotonic() + START_S
    while time.monotonic() < give_up_at:
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        lines = told.read_text().splitlines() if told.exists() else []
        if len(lines) == 2:
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                pages = [one for one in json.loads(answer.read()) if one["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError(f"the browser did not get ready within {START_S} s")
