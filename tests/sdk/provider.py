"""A scripted upstream in OpenRouter's manner, straight behind Tollgate: every byte is written here.

Behind LiteLLM it is the provider of what LiteLLM's own mocks cannot say. An answer that waits, waits
for the gate of its account, so that «in the middle of a stream» is a state and not a matter of luck.
"""

import json
import threading
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count as numbers
from urllib.parse import parse_qs, urlsplit

import models
from answers import Answer, generation, pieces
from counting import count

KEY = "sk-scripted-upstream"
EVENTS_BEFORE = 4
# Longer than a connection that a browser keeps to itself is idle.
GATE_WAIT_SECONDS = 150
# Frames end where they end: within an event, and within a letter.
FRAME_BYTES = 211
BY_NAME = {model.name: model for model in models.ALL}
REFUSALS = {
    models.LIMITED.name: (429, "Rate limit exceeded", "rate_limit_exceeded"),
    models.REJECTED.name: (
        400,
        "this is a mock context window exceeded error",
        "context_length_exceeded",
    ),
    models.FAILING.name: (500, "a mock of a failure", "server"),
}


class Scripted:
    """The server, what it was asked, and what it knows of its answers."""

    kind, key = "openrouter", KEY

    def __init__(self):
        self.bodies, self.generations, self.numbers = [], {}, numbers(1)
        self.gates = defaultdict(threading.Event)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def asked(self, user: str) -> list[dict]:
        """The requests that came straight from Tollgate for an account."""
        return [body for body in list(self.bodies) if body.get("user") == user]

    def open_gate(self, user: str) -> None:
        self.gates[user].set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, scripted: Scripted, *arguments):
        self.scripted = scripted
        super().__init__(*arguments)

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/v1/models":
            listed = {"data": [model.listed() for model in models.ALL]}
            return self._say(200, json.dumps(listed).encode())
        if url.path == "/v1/generation":
            # Until it is over nothing is known of it, as at OpenRouter.
            known = self.scripted.generations.get(parse_qs(url.query)["id"][0])
            return self._say(200, known) if known else self._refuse(404, "not found")
        return self._refuse(404, "not found")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        is_direct = self.headers["authorization"] == f"Bearer {KEY}"
        if is_direct:
            self.scripted.bodies.append(body)
        model = BY_NAME[body["model"]]
        if model.name in REFUSALS:
            return self._refuse(*REFUSALS[model.name])
        if model is models.GATED_HEAD:
            self._wait_for_gate(body)
        number = next(self.scripted.numbers)
        answer = Answer(model, body, number, shows_cost=is_direct)
        if body.get("stream"):
            return self._stream(answer)
        return self._say(200, answer.whole(), {"X-Generation-Id": answer.id})

    def _stream(self, answer: Answer) -> None:
        self._head(200, {"Content-Type": "text/event-stream", "X-Generation-Id": answer.id})
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events, model = answer.events(), answer.model
        completion_tokens = answer.used["completion_tokens"]
        try:
            if model in (models.GATED, models.BREAKS):
                self._write(b"".join(events[:EVENTS_BEFORE]))
                events = events[EVENTS_BEFORE:]
            if model is models.BREAKS:
                told = EVENTS_BEFORE - 1
                completion_tokens = count("".join(pieces(model.text)[:told]))
                # Without the end of the chunked body.
                self.close_connection = True
                return
            if model is models.GATED:
                self._wait_for_gate(answer.body)
            self._write(b"".join(events))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            # Tollgate has left; what was made is billed all the same.
            self.close_connection = True
        finally:
            if model.prompt_usd is not None:
                known = generation(answer.id, model, completion_tokens)
                self.scripted.generations[answer.id] = known

    def _write(self, data: bytes) -> None:
        for at in range(0, len(data), FRAME_BYTES):
            frame = data[at : at + FRAME_BYTES]
            self.wfile.write(f"{len(frame):x}\r\n".encode() + frame + b"\r\n")

    def _wait_for_gate(self, body: dict) -> None:
        if not self.scripted.gates[body["user"]].wait(GATE_WAIT_SECONDS):
            raise TimeoutError(f"nobody opened the gate of {body['user']}")

    def _refuse(self, status: int, message: str, kind: str) -> None:
        metadata = {"error_type": kind}
        said = {"error": {"code": status, "message": message, "metadata": metadata}}
        self._say(status, json.dumps(said).encode())

    def _say(self, status: int, body: bytes, headers: dict | None = None) -> None:
        self._head(status, {"Content-Type": "application/json"} | (headers or {}))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _head(self, status: int, headers: dict) -> None:
        self.send_response(status)
        # These are the operator's business.
        headers = {"X-LiteLLM-Model-Id": "secret", "Set-Cookie": "upstream=1"} | headers
        for name, value in headers.items():
            self.send_header(name, value)

    def log_message(self, *_):
        """Says nothing."""


@contextmanager
def running():
    """The provider, while it runs."""
    scripted = Scripted()
    threading.Thread(target=scripted.server.serve_forever, daemon=True).start()
    try:
        yield scripted
    finally:
        scripted.server.shutdown()
        scripted.server.server_close()
