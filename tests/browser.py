"""Headless Chromium for tests of pages: opened from disk without a network, driven through its debugging pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "--no-first-run",
)
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
PATIENCE = 60.0
"""Seconds until something waited for counts as missing."""


class Tab:
    """One page. `errors` holds what its console complained of: exceptions, files not found, refusals of its policy."""

    def __init__(self, send: BinaryIO, receive: BinaryIO) -> None:
        self._send, self._receive, self._number, self._session = send, receive, 0, ""
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                found: dict[str, Any] = answer["result"]
                return found
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"])[:500])
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(answer["params"]["entry"]["text"])

    def _read(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser has gone"
            data += byte
        answer: dict[str, Any] = json.loads(data)
        return answer

    def open(self, page: Path, fragment: str = "") -> None:
        self.call("Page.navigate", url=page.as_uri() + fragment)

    def value(self, expression: str) -> Any:
        """What an expression is in the page; promises are waited for."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The expression's value once it is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := self.value(expression):
                return found
            time.sleep(0.02)
        raise AssertionError(f"{expression} never came true; {self.errors}; {self.value('document.body.innerText')}")

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                text="\r" * (code == 13),
            )

    def look(self, width: int, theme: str, height: int = 900) -> None:
        """A window of this width, in the light or the dark theme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def screenshot(self, target: Path) -> None:
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        target.write_bytes(base64.b64decode(taken["data"]))


def chromium() -> str:
    """The browser's command; the test is skipped where none is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name)) is not None), None)
    if found is None:
        pytest.skip(f"no browser is installed (none of {', '.join(names)} is on the path)")
    return found


@contextmanager
def opened(profile: Path) -> Iterator[Tab]:
    """A browser with an empty profile; the test is skipped where none is installed."""
    browser, shell = chromium(), shutil.which("bash")
    if shell is None:
        pytest.skip("no bash is installed")
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    # The browser reads its commands from descriptor 3 and answers on 4.
    script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    command = [shell, "-c", script, shell, browser, *OPTIONS, OFFLINE, f"--user-data-dir={profile}"]
    with (
        subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL) as process,
        os.fdopen(ours_out, "wb") as send,
        os.fdopen(ours_in, "rb") as receive,
    ):
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Tab(send, receive)
        finally:
            process.terminate()
