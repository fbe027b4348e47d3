"""Chromium without a window, and one page in it, driven over its DevTools protocol.

<https://chromedevtools.github.io/devtools-protocol/>
"""

import functools
import http.server
import json
import time
from contextlib import contextmanager
from pathlib import Path

from servers import HERE, Server, serving
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


class Navigated(Exception):
    """The page that was asked has gone."""


class Page:
    """A tab."""

    def __init__(self, socket, url: str):
        self.socket, self.number, self.session = socket, 0, None
        # What the page tells by itself: messages of the console, exceptions, requests.
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")
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
            if "id" not in answer:
                self.events.append(answer)
            if answer.get("id") == self.number:
                if "Inspected target navigated" in str(answer.get("error")):
                    raise Navigated
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, expression: str):
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, wanted) -> None:
        """Also on a page that is being left for another one."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                value = self.value(expression)
            except Navigated:
                continue
            if value == wanted:
                return
            assert time.monotonic() < deadline, f"{expression} is {value!r}, not {wanted!r}"
            time.sleep(0.02)

    def click(self, name: str) -> None:
        """As a hand does it: with the mouse, where the button is."""
        self.click_at(f"document.getElementById('{name}')")

    def click_at(self, element: str) -> None:
        """The same with what an expression gives, which may have to be scrolled to."""
        box = self.value(
            f"(it => {{ it.scrollIntoView({{block: 'center'}});"
            f" const {{x, y, width, height}} = it.getBoundingClientRect();"
            f" return [x + width / 2, y + height / 2]; }})({element})"
        )
        for kind in ("mousePressed", "mouseReleased"):
            at = {"x": box[0], "y": box[1]}
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            extra = text if kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key,
                windowsVirtualKeyCode=code, **extra,
            )

    def told(self, method: str) -> list[dict]:
        return [event["params"] for event in self.events if event.get("method") == method]

    def requested(self) -> list[str]:
        """The addresses that it has asked for."""
        sent = self.told("Network.requestWillBeSent")
        return [event["request"]["url"] for event in sent]

    def complaints(self) -> list[str]:
        """What the browser's console has of errors: the page's own, and violations of its policy."""
        logged = [event["entry"] for event in self.told("Log.entryAdded")]
        # A refusal by the server is logged too; that is for the page to show.
        found = [it["text"] for it in logged if it["level"] == "error" and it["source"] != "network"]
        found += [str(event["exceptionDetails"]) for event in self.told("Runtime.exceptionThrown")]
        said = self.told("Runtime.consoleAPICalled")
        return found + [str(event["args"]) for event in said if event["type"] in ("error", "warning")]


@contextmanager
def open_page(chromium: Chromium, url: str):
    with connect(chromium.address(), max_size=None, proxy=None) as socket:
        yield Page(socket, url)


@contextmanager
def origin():
    """A server of static files at an origin of its own."""
    with serving(functools.partial(Quiet, directory=HERE)) as url:
        # Another host name than Tollgate's as well.
        yield url.replace("127.0.0.1", "localhost")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing."""
