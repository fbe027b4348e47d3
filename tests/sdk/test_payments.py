"""Signatures, made and checked by others: Stripe's own SDK signs what Tollgate takes, and the
library of Standard Webhooks checks what Tollgate sends."""

import json
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from uuid import uuid4

import openai
import pytest
import stripe
from books import Books
from conftest import messages, own_server
from models import PLAIN
from paying import SECONDS, post_event, sign
from servers import serving
from standardwebhooks import Webhook, WebhookVerificationError

# Two of them, as while one is rolled.
STRIPE_SECRETS = ["whsec_tollgate_sdk_tests_new", "whsec_tollgate_sdk_tests_old"]
WEBHOOK_SECRET = "whsec_dG9sbGdhdGUtc2RrLXRlc3RzLTAxMjM0NTY3ODk="


@contextmanager
def receiver():
    """A webhook's receiver that keeps what it gets."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            """Nothing on the terminal."""

    with serving(Handler) as url:
        yield f"{url}/hooks", got


class Paid:
    """A Tollgate that Stripe and a receiver know of, and an account there."""

    def __init__(self, server, database, base_url, got):
        self.server, self.base_url, self.got = server, base_url, got
        self.account = server.run("account", "create", "--name", f"paid-{uuid4().hex}")
        self.key = server.run("key", "create", "--account", self.account)
        self.books = Books(database, self.account)

    def send(self, payload: str, header: str | None) -> tuple[int, dict]:
        """As Stripe posts it; status and body."""
        return post_event(self.base_url.removesuffix("/v1"), payload, header)

    def balance(self) -> int:
        return self.books.account_row()["balance_nusd"]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def paid(request, tmp_path_factory, litellm):
    folder = tmp_path_factory.mktemp("paid")
    with receiver() as (url, got):
        more = {
            "STRIPE_WEBHOOK_SECRET": ",".join(STRIPE_SECRETS),
            "TOLLGATE_WEBHOOK_URL": url,
            "TOLLGATE_WEBHOOK_SECRET": WEBHOOK_SECRET,
        }
        with own_server("paid", request.param, folder, litellm, more) as made:
            yield Paid(*made, got)


def completed(account: str, cents: int = 1_500) -> dict:
    number = uuid4().hex
    session = {
        "id": f"cs_test_{number}",
        "object": "checkout.session",
        "mode": "payment",
        "payment_status": "paid",
        "currency": "usd",
        "amount_total": cents,
        "payment_intent": f"pi_{number}",
        "metadata": {"tollgate_account_id": account},
    }
    return {
        "id": f"evt_{number}",
        "object": "event",
        "type": "checkout.session.completed",
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": session},
    }


def believes(payload: str, header: str | None, secret: str) -> bool:
    """Whether Stripe's own SDK takes it for an event."""
    try:
        return stripe.Webhook.construct_event(payload, header, secret).object == "event"
    except stripe.SignatureVerificationError:
        return False


@pytest.mark.parametrize("secret", STRIPE_SECRETS)
def test_what_stripes_sdk_signs_is_credited_once(paid, secret):
    event = completed(paid.account)
    event["note"] = "é 漢 🦀 \u2028"
    before = paid.balance()
    # Both forms of JSON: what is signed is the bytes.
    for payload in (json.dumps(event), json.dumps(event, ensure_ascii=False, indent=2)):
        header = sign(payload, secret)
        assert believes(payload, header, secret)
        assert paid.send(payload, header) == (200, {"received": True})
    assert paid.balance() - before == 15_000_000_000


def forged(payload: str) -> dict[str, tuple[str, str | None]]:
    """Bodies and headers, good and bad ones."""
    now, secret = int(time.time()), STRIPE_SECRETS[0]
    good = sign(payload, secret)
    time_part, _, tag = good.partition(",v1=")
    return {
        "good": (payload, good),
        "good among others": (payload, f"{time_part},v1={'0' * 64},v0=x,v1={tag}"),
        "a while ago": (payload, sign(payload, secret, now - 280)),
        "too old": (payload, sign(payload, secret, now - 320)),
        "another secret": (payload, sign(payload, "whsec_of_somebody_else")),
        "an altered body": (payload.replace("1500", "9500"), good),
        "a space behind": (payload + " ", good),
        "another time": (payload, f"t={now - 1},v1={tag}"),
        "no time": (payload, f"v1={tag}"),
        "no v1": (payload, time_part),
        "v0 only": (payload, f"{time_part},v0={tag}"),
        "half of it": (payload, f"{time_part},v1={tag[:32]}"),
        "empty": (payload, ""),
        "none": (payload, None),
    }


@pytest.mark.parametrize("name", forged("").keys())
def test_tollgate_believes_what_stripes_sdk_believes(paid, name):
    body, header = forged(json.dumps(completed(paid.account)))[name]
    before = paid.balance()
    status, answer = paid.send(body, header)
    if believes(body, header, STRIPE_SECRETS[0]):
        assert (status, answer) == (200, {"received": True})
        assert paid.balance() - before == 15_000_000_000
    else:
        assert (status, answer["error"]["code"]) == (400, "invalid_signature")
        assert paid.balance() == before


def test_a_signature_from_the_future_is_refused(paid):
    """Stripe's SDK lets these pass; nothing good comes from there."""
    payload = json.dumps(completed(paid.account))
    header = sign(payload, STRIPE_SECRETS[0], int(time.time()) + 600)
    assert believes(payload, header, STRIPE_SECRETS[0])
    assert paid.send(payload, header)[0] == 400


def test_standard_webhooks_verifies_what_tollgate_signs(paid):
    payload = json.dumps(completed(paid.account, 50_000))
    assert paid.send(payload, sign(payload, STRIPE_SECRETS[0]))[0] == 200
    with openai.OpenAI(base_url=paid.base_url, api_key=paid.key, max_retries=0) as client:
        client.chat.completions.create(model=PLAIN.name, messages=messages())
    (record,) = paid.books.settled(1)
    deadline = time.monotonic() + SECONDS
    while not paid.got and time.monotonic() < deadline:
        time.sleep(0.05)
    headers, body = paid.got[0]
    told = Webhook(WEBHOOK_SECRET).verify(body, headers)
    assert told["type"] == "usage.recorded"
    assert told["data"]["request_id"] == record["id"]
    assert told["data"]["charge_nusd"] == record["charge_nusd"]
    other = "whsec_" + "A" * 32
    for secret, altered in [(WEBHOOK_SECRET, body + b" "), (other, body)]:
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(altered, headers)
