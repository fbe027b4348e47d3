"""Stripe, as much of it as somebody who pays meets: customers, checkout sessions with their pages,
and events that are signed by Stripe's own SDK."""

import json
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler
from urllib.error import HTTPError
from urllib.parse import parse_qsl
from urllib.request import ProxyHandler, Request, build_opener
from uuid import uuid4

import stripe

KEY = "sk_test_of_the_sdk_tests"
SECONDS = 20
# No proxy: this is loopback, whatever the machine's settings are.
DIRECT = build_opener(ProxyHandler({}))


def sign(payload: str, secret: str, timestamp: int | None = None) -> str:
    return stripe.WebhookSignature.generate_signature_header(payload, secret, timestamp)


def post_event(origin: str, payload: str, header: str | None) -> tuple[int, dict]:
    """As Stripe posts it; status and body."""
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if header is not None:
        headers["Stripe-Signature"] = header
    try:
        with DIRECT.open(
            Request(f"{origin}/webhooks/stripe", payload.encode(), headers), timeout=SECONDS
        ) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


class Till:
    """What Stripe was asked for, and who has come to its pages."""

    def __init__(self):
        self.lock = threading.Lock()
        # Forms by the ids of what they made.
        self.customers, self.sessions = {}, {}
        # Headers of each visit.
        self.visits = []
        # Status and error of the next sessions.
        self.refusal = None
        self.url = None

    def handler(self):
        return partial(Pages, self)

    def paid(self, session: str) -> dict:
        """What it says when a session is paid."""
        form = self.sessions[session]
        metadata = {name[9:-1]: form[name] for name in form if name.startswith("metadata[")}
        said = {"id": session, "object": "checkout.session", "mode": form["mode"]}
        said |= {"payment_status": "paid", "currency": "usd", "customer": form["customer"]}
        said |= {"amount_total": int(form["line_items[0][price_data][unit_amount]"])}
        said |= {"payment_intent": f"pi_{uuid4().hex}", "metadata": metadata}
        event = {"id": f"evt_{uuid4().hex}", "object": "event", "livemode": False}
        event |= {"type": "checkout.session.completed", "created": int(time.time())}
        return event | {"data": {"object": said}}


class Pages(BaseHTTPRequestHandler):
    def __init__(self, till: Till, *arguments):
        self.till = till
        super().__init__(*arguments)

    def do_GET(self):
        if self.path.startswith("/v1/customers/search"):
            self.answer({"object": "search_result", "data": [], "has_more": False})
        elif (session := self.path.removeprefix("/c/pay/")) in self.till.sessions:
            self.till.visits.append(dict(self.headers))
            back = self.till.sessions[session]["success_url"]
            page = '<!doctype html><title>Pay</title><link rel="icon" href="data:,">'
            page += f'<a id="back" href="{back}">Paid, back to the shop</a>'
            self.send(200, "text/html; charset=utf-8", page.encode())
        else:
            self.answer({"error": {"message": "no such thing"}}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        if self.headers["authorization"] != f"Bearer {KEY}":
            self.answer({"error": {"message": "Invalid API Key provided"}}, 401)
        elif self.path == "/v1/customers":
            self.answer({"id": self.make("cus", self.till.customers, body)})
        elif self.path == "/v1/checkout/sessions" and self.till.refusal:
            status, error = self.till.refusal
            self.answer({"error": error}, status)
        elif self.path == "/v1/checkout/sessions":
            session = self.make("cs_test", self.till.sessions, body)
            self.answer({"id": session, "url": f"{self.till.url}/c/pay/{session}"})
        else:
            self.answer({"error": {"message": "no such thing"}}, 404)

    def make(self, kind: str, known: dict, body: str) -> str:
        """Once for each idempotency key."""
        key = self.headers["idempotency-key"]
        assert key, "every call that makes something has a key"
        with self.till.lock:
            made = f"{kind}_{key.replace('-', '')}"
            known.setdefault(made, dict(parse_qsl(body, strict_parsing=True)))
        return made

    def answer(self, body: dict, status: int = 200) -> None:
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing on the terminal."""
