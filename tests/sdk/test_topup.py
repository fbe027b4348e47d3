"""Topping up in the console: from the button to a page of Stripe's and back, with the money there;
and what is said when it cannot be."""

import json
from uuid import uuid4

import pytest
from books import Books
from conftest import own_server
from paying import KEY, Till, post_event, sign
from people import (
    ENTER,
    Auth,
    at_console,
    nano,
    owner_of,
    settled,
    sign_in,
    sign_in_as,
    signing_in,
    submit,
    text,
)
from servers import free_port, serving

SECRET = "whsec_of_the_top_up_tests"
BUTTON = "[...document.querySelectorAll('#money button')].find((it) => it.textContent === 'Top up')"


class Shop:
    """A Tollgate that is paid by Stripe, and an account with its owner."""

    def __init__(self, server, database, origin, auth, till):
        self.server, self.origin, self.auth, self.till = server, origin, auth, till
        self.account = server.run("account", "create", "--name", "shop", "--credit", "5")
        self.key = server.run("key", "create", "--account", self.account)
        self.email = f"{uuid4().hex}@example.com"
        owner_of(server, self.account, self.email)
        self.books = Books(database, self.account)

    def balance(self) -> int:
        return self.books.account_row()["balance_nusd"]

    def deliver(self, event: dict) -> None:
        payload = json.dumps(event)
        got = post_event(self.origin, payload, sign(payload, SECRET))
        assert got == (200, {"received": True})


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shop(request, tmp_path_factory, scripted):
    folder = tmp_path_factory.mktemp("topup")
    till, listen = Till(), f"127.0.0.1:{free_port()}"
    with serving(till.handler()) as stripe, serving(Auth) as auth:
        till.url = stripe
        more = {
            "TOLLGATE_LISTEN": listen,
            "STRIPE_SECRET_KEY": KEY,
            "STRIPE_API_BASE": stripe,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            # What is tested here is paying, and what an account has used is nobody's business.
            "STRIPE_METERING": "off",
            "TOLLGATE_BILLING_RETURN_URL": f"http://{listen}/console",
        }
        more |= signing_in(auth)
        with own_server("topup", request.param, folder, scripted, more) as made:
            server, database, _ = made
            yield Shop(server, database, f"http://{listen}", auth, till)


@pytest.fixture
def console(chromium, shop):
    with at_console(chromium, shop.origin) as page:
        yield page
        allowed = (shop.origin, shop.auth, f"{shop.till.url}/c/pay/", "data:,")
        assert [url for url in page.requested() if not url.startswith(allowed)] == []


def top_up(page, amount: str) -> None:
    page.click_at(BUTTON)
    page.wait("document.getElementById('dialog').open", True)
    submit(page, "amount", amount)
    page.press(*ENTER)


def at_stripe(page, till: Till, session: str) -> None:
    page.wait("location.href", f"{till.url}/c/pay/{session}")
    page.wait("document.title", "Pay")


def new_session(till: Till, before: set[str], page) -> str:
    """The only one since."""
    page.wait("location.pathname.startsWith('/c/pay/')", True)
    (session,) = till.sessions.keys() - before
    return session


def test_what_is_paid_at_stripe_is_on_the_account(console, shop):
    till = shop.till
    sign_in_as(console, shop)
    settled(console)
    shown, before = nano(console.value(text("#balance"))), shop.balance()
    assert shown == before
    known = set(till.sessions)
    top_up(console, "25.50")
    session = new_session(till, known, console)
    at_stripe(console, till, session)
    asked = till.sessions[session]
    assert asked["mode"] == "payment"
    assert asked["line_items[0][price_data][unit_amount]"] == "2550"
    assert asked["line_items[0][price_data][currency]"] == "usd"
    assert asked["customer"] == shop.books.account_row()["stripe_customer_id"]
    assert till.customers[asked["customer"]]["metadata[tollgate_account_id]"] == shop.account
    assert asked["metadata[tollgate_account_id]"] == shop.account
    assert asked["metadata[tollgate_credit_nusd]"] == "25500000000"
    assert asked["success_url"] == asked["cancel_url"] == f"{shop.origin}/console"
    # Nothing of who came is told to the page.
    (visit,) = till.visits
    assert not {"Authorization", "Referer", "Cookie"} & visit.keys()
    assert shop.balance() == before, "it is not paid yet"

    event = till.paid(session)
    for _ in range(2):
        shop.deliver(event)
    assert shop.balance() == before + 25_500_000_000
    console.click("back")
    console.wait("location.pathname", "/console")
    console.wait("document.getElementById('nav')?.hidden", False)
    settled(console)
    assert nano(console.value(text("#balance"))) == shown + 25_500_000_000
    references = [entry["reference"] for entry in shop.books.entries()]
    assert references.count(f"stripe:{session}") == 1


def test_a_top_up_that_cannot_be_says_why(console, shop):
    till, balance = shop.till, shop.balance()
    sign_in_as(console, shop)
    settled(console)
    known = set(till.sessions)
    console.click_at(BUTTON)
    refused = [
        ("a lot", None, "Please give an amount like 25 or 25.50."),
        ("4.99", None, "Please give an amount from $5.00 to $1,000.00."),
        ("1000.01", None, "Please give an amount from $5.00 to $1,000.00."),
        ("25", (500, {"type": "api_error", "message": "secret"}), "is unavailable"),
        ("25", (400, {"type": "invalid_request_error", "message": "secret"}), "The payment provider did not take this."),
    ]
    for amount, till.refusal, said in refused:
        console.value("document.querySelector('[name=amount]').value = ''")
        console.value("document.querySelector('dialog .error').textContent = ''")
        submit(console, "amount", amount)
        console.press(*ENTER)
        console.wait("document.querySelector('dialog .error').textContent !== ''", True)
        shown = console.value(text("dialog .error"))
        assert said in shown and "secret" not in shown, f"{amount}: {shown}"
        console.wait("document.querySelector('dialog .primary').disabled", False)
        assert console.value("document.getElementById('dialog').open")
        assert console.value("location.pathname") == "/console"
    assert set(till.sessions) == known and shop.balance() == balance
    # It is not the end: the same dialog goes there when it can.
    till.refusal = None
    console.press(*ENTER)
    session = new_session(till, known, console)
    assert till.sessions[session]["line_items[0][price_data][unit_amount]"] == "2500"
    assert shop.balance() == balance


def test_a_key_of_an_application_cannot_pay(console, shop):
    sign_in(console, shop.key)
    settled(console)
    assert console.value(f"{BUTTON} === undefined")
    said = "Only the account's owner can pay. Sign in as one to top up."
    assert said in console.value(text("#money"))
