"""Chromium without a window, and one page in it, driven over its DevTools protocol.

<https://chromedevtools.github.io/devtools-protocol/>
"""

import functools
import http.server
import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from servers import HERE, Server
from websockets.sync.client import connect

WAIT_SECONDS = 30


class Chromium(Server):
    """A browser with a profile of its own."""

    def __init__(self, folder: Path):
        self.profile = folder / "chromium"
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={self.profile}"]
        # Nothing but this test's pages: no look-ups of its own.
        command += ["--disable-background-networking", "--disable-component-update"]
        command += ["--disable-dev-shm-usage", "--no-proxy-server", "about:blank"]
        super().__init__("chromium", command, {"HOME": str(folder)}, folder)

    def address(self) -> str:
        """Its DevTools socket."""
        told = self.profile / "DevToolsActivePort"

        def lines():
            said = told.read_text().splitlines() if told.exists() else []
            return said if len(said) == 2 else None

        port, path = self.poll("DevTools port", lines)
        return f"ws://127.0.0.1:{port}{path}"


class Page:
    """A tab."""

    def __init__(self, socket, url: str):
        self.socket, self.number, self.session = socket, 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.call("Page.navigate", url=url)
        self.wait("document.readyState", "complete")

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=WAIT_SECONDS))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, wanted) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while (value := self.value(expression)) != wanted:
            assert time.monotonic() < deadline, f"{expression} is {value!r}, not {wanted!r}"
            time.sleep(0.02)

    def click(self, name: str) -> None:
        """As a hand does it: with the mouse, where the button is."""
        box = self.value(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.getElementById('{name}').getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            at = {"x": box[0], "y": box[1]}
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)



@contextmanager
def open_page(chromium: Chromium, url: str):
    with connect(chromium.address(), max_size=None, proxy=None) as socket:
        yield Page(socket, url)


@contextmanager
def origin():
    """A server of static files at an origin of its own."""
    handler = functools.partial(Quiet, directory=HERE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        # Another host name than Tollgate's as well.
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing."""
