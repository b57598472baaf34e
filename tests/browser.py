"""Headless chromium through its DevTools protocol: open a page, read its text, take a picture.

with chromium(tmp_path, {"Authorization": "Basic ..."}) as browser:
    browser.open("http://127.0.0.1:5000/")
    browser.until(lambda text: "Experiments" in text)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.services import missing

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--window-size=1400,900",
    "--remote-debugging-port=0",
)


class Browser:
    """One page of a running chromium."""

    def __init__(self, address: str, headers: Mapping[str, str]) -> None:
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self._run(self._connect(address))
        self.call("Network.enable")
        self.call("Network.setExtraHTTPHeaders", headers=dict(headers))
        self.call("Page.enable")

    def _run(self, work: Any, seconds: float = 60.0) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, seconds))

    async def _connect(self, address: str) -> None:
        import aiohttp

        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(address, max_msg_size=0)

    async def _call(self, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters}
        await self._socket.send_json(request)
        while True:  # events of the page come in between
            answer = await self._socket.receive_json()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                found: dict[str, Any] = answer["result"]
                return found

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol."""
        found: dict[str, Any] = self._run(self._call(method, parameters))
        return found

    def open(self, url: str) -> None:
        """Load a page anew, also one that differs behind the # only."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    def until(self, condition: Callable[[str], Any], seconds: float = 60.0) -> str:
        """Wait for the page's visible text to satisfy a condition; the text."""
        deadline = time.monotonic() + seconds
        while True:
            text = str(self.evaluate("document.body ? document.body.innerText : ''"))
            if condition(text):
                return text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        async def end() -> None:
            await self._socket.close()
            await self._session.close()

        self._run(end())
        self._loop.close()


@contextlib.contextmanager
def chromium(folder: Path, headers: Mapping[str, str]) -> Iterator[Browser]:
    """A browser of its own, ended with the block; skips the test where there is none.

    Args:
        folder: for its profile.
        headers: sent with every request.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        missing("no chromium: apt-get install chromium (tests/install_services.sh does)")
    profile = folder / "profile"
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=log,
            stderr=log,
            start_new_session=True,  # it has a dozen processes
        )
    try:
        browser = Browser(_page(profile / "DevToolsActivePort", process), headers)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _page(path: Path, process: subprocess.Popen[bytes]) -> str:
    """The websocket address of the first page."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError, ValueError, IndexError):
            port = int(path.read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            return str(pages[0]["webSocketDebuggerUrl"])
        assert process.poll() is None, path.parent.with_name("chromium.log").read_text()
        assert time.monotonic() < deadline, "chromium does not answer"
        time.sleep(0.05)
