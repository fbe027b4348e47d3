"""Limits of rate as the SDK meets them: it waits for as long as it is told, and gets its answer."""

import openai
import pytest
from conftest import messages
from models import PLAIN


def ask(client: openai.OpenAI, **options):
    create = client.chat.completions.with_raw_response.create
    return create(model=PLAIN.name, messages=messages(), max_tokens=40, **options)


def make_older(customer, seconds: int) -> None:
    """As if so much time had passed since the customer's requests: no test waits for a minute."""
    database = customer.stack.database
    sql = "SELECT id FROM api_keys WHERE account_id = ?"
    (key,) = database.rows(sql, customer.account)
    sql = "SELECT slots FROM rate_windows WHERE subject = ?"
    (window,) = database.rows(sql, key["id"])
    first, rest = window["slots"].split(",", 1)
    older = f"{int(first) - seconds * 1_000_000},{rest}"
    database.change("UPDATE rate_windows SET slots = ? WHERE subject = ?", older, key["id"])


def test_what_is_left_is_told(make_customer):
    customer = make_customer(key_options=("--rpm", "60", "--tpm", "10000"))
    for left in (59, 58):
        headers = ask(customer.client()).headers
        assert headers["x-ratelimit-limit-requests"] == "60"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
        assert headers["x-ratelimit-limit-tokens"] == "10000"
        assert 0 < int(headers["x-ratelimit-remaining-tokens"]) < 10_000
    customer.books.settled(2)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_it_waits_for_as_long_as_it_is_told(make_customer, streamed):
    customer = make_customer(key_options=("--rpm", "1"))
    client = customer.client(max_retries=1)
    ask(client)
    customer.books.settled(1)
    make_older(customer, 57)
    raw = ask(client, stream=streamed)
    answer = raw.parse()
    if streamed:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in answer) == PLAIN.text
    else:
        assert answer.choices[0].message.content == PLAIN.text
    # One for the first call; the second was refused once and came back when there was room, unless
    # this machine was so slow that the minute was over by itself.
    assert len(customer.attempts) in (2, 3)
    assert len(customer.asked()) == 2, "what was refused was not forwarded"
    customer.books.settled(2)


def test_a_refusal_is_a_rate_limit_error(make_customer):
    customer = make_customer(key_options=("--rpm", "1"))
    ask(customer.client())
    with pytest.raises(openai.RateLimitError) as caught:
        ask(customer.client())
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    headers = caught.value.response.headers
    assert 0 < int(headers["retry-after-ms"]) <= 60_000
    assert (int(headers["retry-after"]) - 1) * 1000 < int(headers["retry-after-ms"])
    customer.books.settled(1)


def test_a_request_that_never_fits_is_not_tried_again(make_customer):
    customer = make_customer(key_options=("--tpm", "30"))
    with pytest.raises(openai.RateLimitError) as caught:
        ask(customer.client(max_retries=2))
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "tokens")
    assert "Request too large" in caught.value.message
    assert len(customer.attempts) == 1
    assert customer.asked() == []
    assert customer.books.records() == []
