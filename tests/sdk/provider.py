"""A provider behind LiteLLM whose bytes are written here: what LiteLLM's own mocks cannot say."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# A call whose arguments come in pieces, cut within a word and before a letter of two bytes.
FRAGMENTS = ['{"ci', 'ty":"Z', "ürich", '"}']
USAGE = {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}


def chunk(delta: dict | None, finish: str | None = None, usage: dict | None = None) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 1764000000}
    body |= {"model": "scripted", "choices": choices} | ({"usage": usage} if usage else {})
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def call(name: str | None, arguments: str) -> dict:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    head = {"id": "call_1", "type": "function"} if name else {}
    return {"tool_calls": [{"index": 0, "function": function} | head]}


def tool_call() -> list[bytes]:
    pieces = [chunk(call(None, piece)) for piece in FRAGMENTS]
    first = chunk({"role": "assistant", "content": None} | call("weather", ""))
    return [first, *pieces, chunk({}, "tool_calls"), chunk(None, usage=USAGE), b"data: [DONE]\n\n"]


class Provider(BaseHTTPRequestHandler):
    """Answers every chat completion with the call, streamed."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for event in tool_call():
            self.wfile.write(event)

    def log_message(self, *_):
        """Says nothing."""


@contextmanager
def running():
    """Its base URL, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
