"""Headless Chromium driven over its debugging pipe: pages, what their consoles complain of, screenshots."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDE, NARROW = (1360, 900), (390, 844)
# Those with an address: an editor's lines have images without one, to keep places.
IMAGES = "[...document.images].filter(image => image.src)"
NOT_LOADED = (
    f"{IMAGES}.filter(image => !image.complete || !image.naturalWidth)"
    ".map(image => image.outerHTML.slice(0, 300)).join(' ')"
)


class Page:
    """A browser's page; `errors` are its complaints since it was last opened, `asked` all servers that it spoke to."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands, self._replies = os.fdopen(commands, "wb", 0), os.fdopen(replies, "rb", 0)
        self._number, self._buffer, self._session = 0, b"", ""
        self._requests: dict[str, str] = {}
        self.errors: list[str] = []
        self.asked: set[str] = set()
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                received = self._replies.read(1 << 20)
                assert received, "Chromium has ended"
                self._buffer += received
            line, _, self._buffer = self._buffer.partition(b"\0")
            reply = json.loads(line)
            if reply.get("id") == self._number:
                assert "error" not in reply, f"{method}: {reply['error']['message']}"
                return dict(reply["result"])
            self._note(reply.get("method", ""), reply.get("params", {}))

    def _note(self, method: str, event: dict[str, Any]) -> None:
        """Keep what a developer would see in red."""
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and event["type"] == "error":
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.errors.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self._requests[event["requestId"]] = event["request"]["url"]
            self.asked.add("/".join(event["request"]["url"].split("/")[:3]))
        elif method == "Network.loadingFailed" and not event.get("canceled"):
            self.errors.append(f"{event['errorText']} {self._requests.get(event['requestId'], '')[:200]}")

    def open(self, address: str, size: tuple[int, int] = WIDE, dark: bool = False) -> None:
        """Go to an address, in a window of a size (width, height), for a reader who prefers light or dark."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == NARROW}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url="about:blank")
        self.errors.clear()
        self._call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(condition):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"never: {condition}; errors: {self.errors}; images not loaded: {self.evaluate(NOT_LOADED)}; "
                    f"the page says: {str(self.evaluate('document.body && document.body.innerText'))[-600:]}"
                )
            time.sleep(0.2)

    def settle(self, seconds: float = 2) -> None:
        """Let a page finish what it animates, and its complaints arrive."""
        time.sleep(seconds)
        self.evaluate("0")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            base64.b64decode(self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])
        )


def browser_program() -> str:
    """The browser's program; AssertionError naming what to install where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program, f"a browser is missing: install chromium (looked for {', '.join(NAMES)})"
    return program


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A page of a browser with an empty profile; AssertionError where there is no browser."""
    program = browser_program()
    commands, to_browser = os.pipe()
    from_browser, replies = os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands, replies)]
    flags = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    flags += ["--hide-scrollbars", "--disable-background-networking", "--no-proxy-server", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [program, *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,  # all but the two that the browser is told of by number are closed on exec
        preexec_fn=lambda: [os.dup2(end, number) for number, end in zip((3, 4), ends, strict=True)],  # type: ignore[arg-type,return-value]
    )
    for end in (commands, replies, *ends):
        os.close(end)
    page = Page(to_browser, from_browser)
    try:
        yield page
    finally:
        page._commands.close()
        page._replies.close()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
