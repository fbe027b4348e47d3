"""A chat page of another origin, in Chromium: preflight, stream, stop."""

from urllib.parse import urlencode

import pytest
from browser import open_page, origin
from conftest import EACH_UPSTREAM
from models import GATED, UNICODE
from test_hang_up import check_gone, settle_after_gate, whole_usage

pytestmark = EACH_UPSTREAM
STATE = "document.getElementById('state').textContent"
ANSWER = "document.getElementById('answer').textContent"


@pytest.fixture(scope="session")
def site():
    with origin() as url:
        yield url


@pytest.fixture
def open_chat(chromium, site):
    def of(customer, model):
        asks = {"base": customer.stack.base_url, "key": customer.key, "model": model.name}
        return open_page(chromium, f"{site}/page.html#{urlencode(asks)}")

    return of


def test_it_streams(make_customer, open_chat):
    customer = make_customer(key_options=("--rpm", "60"))
    with open_chat(customer, UNICODE) as page:
        page.click("send")
        page.wait(STATE, "done")
        assert page.value(ANSWER) == UNICODE.text
        seen = page.value("window.seen")
    (record,) = customer.books.settled(1)
    assert (seen["status"], seen["id"]) == (200, record["id"]), "exposed to the page"
    assert seen["limit"] == "60"
    assert (record["ending"], bool(record["streamed"])) == ("completed", True)


def test_the_text_shows_while_it_comes_and_stop_is_charged(customer, open_chat):
    with open_chat(customer, GATED) as page:
        page.click("send")
        page.wait(f"{ANSWER}.length > 0", True)
        assert page.value(STATE) == "streaming"
        assert GATED.text.startswith(page.value(ANSWER))
        page.click("stop")
        page.wait(STATE, "AbortError")
        record = settle_after_gate(customer)
    check_gone(record, whole_usage(customer))


def test_a_refusal_can_be_read(make_customer, open_chat):
    customer = make_customer(key_options=("--rpm", "1"))
    with open_chat(customer, UNICODE) as page:
        page.click("send")
        page.wait(STATE, "done")
        page.click("send")
        page.wait(STATE, "rate_limit_exceeded")
        seen = page.value("window.seen")
        assert seen["status"] == 429
        assert int(seen["after"]) > 0, "exposed to the page"
    customer.books.settled(1)
