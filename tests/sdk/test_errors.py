"""Errors as the SDK's classes, how often it tries, and that a failure is never charged."""

import asyncio
import time

import openai
import pytest
from answers import PROMPT_TOKENS
from conftest import messages
from models import BREAKS, FAILING, GATED_HEAD, LIMITED, PLAIN, REJECTED, UNPRICED

PATIENT = {"max_retries": 2}


def ask(client: openai.OpenAI, model=PLAIN, **options):
    options = {"messages": messages()} | options
    return client.chat.completions.create(model=model.name, **options)


def check_untouched(customer, attempts: int = 1) -> None:
    """Nothing was forwarded, recorded or charged, and the SDK tried this often."""
    assert len(customer.attempts) == attempts
    assert customer.asked() == []
    assert customer.books.records() == []
    assert [e["kind"] for e in customer.books.entries() if e["kind"] != "credit"] == []


def check_nothing_used(records: list[dict], status: int) -> None:
    """A failure before the first byte leaves a record without a charge."""
    for record in records:
        assert (record["ending"], record["source"]) == ("upstream_failed", "none")
        assert record["upstream_status"] == status
        assert record["charge_nusd"] == 0
        assert (record["prompt_tokens"], record["completion_tokens"]) == (0, 0)


@pytest.mark.parametrize("key", ["sk-tg-wrong", "sk-nothing-of-ours"])
def test_a_wrong_key_is_an_authentication_error(customer, key):
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(customer.client(api_key=key, **PATIENT))
    assert caught.value.status_code == 401
    assert caught.value.code == "invalid_api_key"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id, "support can find the call"
    check_untouched(customer)


def test_a_revoked_key_is_an_authentication_error(customer):
    client = customer.client(**PATIENT)
    ask(client)
    sql = "SELECT id FROM api_keys WHERE account_id = ?"
    (key,) = customer.stack.database.rows(sql, customer.account)
    customer.stack.tollgate.run("key", "revoke", key["id"])
    with pytest.raises(openai.AuthenticationError):
        # The server notices soon, not at once.
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            client.models.list()
    with pytest.raises(openai.AuthenticationError):
        ask(client)
    customer.books.settled(1)


def test_an_unknown_model_is_not_found(customer):
    with pytest.raises(openai.NotFoundError) as caught:
        customer.client(**PATIENT).chat.completions.create(
            model="house/no-such-model", messages=messages()
        )
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    check_untouched(customer)


def test_a_model_without_a_price_is_refused(customer):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(customer.client(**PATIENT), UNPRICED)
    assert (caught.value.code, caught.value.param) == ("model_not_priced", "model")
    check_untouched(customer)


def test_a_key_for_other_models_is_denied(make_customer):
    customer = make_customer(key_options=("--models", "house/*"))
    with pytest.raises(openai.PermissionDeniedError) as caught:
        ask(customer.client(**PATIENT))
    assert (caught.value.code, caught.value.param) == ("model_not_allowed", "model")
    check_untouched(customer)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"n": 0}, "n"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens"),
        ({"stream_options": "yes"}, "stream_options"),
    ],
    ids=str,
)
def test_a_bad_request_names_its_parameter(customer, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(customer.client(**PATIENT), **options)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    check_untouched(customer)


@pytest.mark.parametrize("credit", [None, "0.0001"], ids=["nothing", "too-little"])
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_no_credit_is_a_rate_limit_error_that_is_not_tried_again(make_customer, credit, streamed):
    customer = make_customer(credit=credit)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(customer.client(**PATIENT), stream=streamed)
    assert caught.value.status_code == 429
    assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
    assert caught.value.response.headers["x-should-retry"] == "false"
    check_untouched(customer)


def test_a_little_credit_lowers_the_cap_and_says_so(make_customer):
    customer = make_customer(credit="0.01")
    raw = customer.client().chat.completions.with_raw_response.create(
        model=PLAIN.name, messages=messages(), max_tokens=10_000
    )
    told = int(raw.headers["x-tollgate-completion-tokens-max"])
    (asked,) = customer.asked()
    assert asked["max_tokens"] == told < 10_000
    (record,) = customer.books.settled(1)
    assert record["hold_nusd"] <= 10_000_000
    assert PLAIN.charge_nusd(0, told) <= 10_000_000, "as many tokens as it can pay for"


def test_a_little_credit_is_enough_for_a_short_answer(make_customer):
    customer = make_customer(credit="0.01")
    raw = customer.client().chat.completions.with_raw_response.create(
        model=PLAIN.name, messages=messages(), max_tokens=40
    )
    assert "x-tollgate-completion-tokens-max" not in raw.headers
    (asked,) = customer.asked()
    assert asked["max_tokens"] == 40
    customer.books.settled(1)


def test_many_at_once_never_hold_more_than_there_is(make_customer):
    """All are under way at once: as many as the credit covers, and the others are refused."""
    customer, calls = make_customer(credit="0.01"), 20

    async def one(client):
        try:
            return await client.chat.completions.create(
                model=GATED_HEAD.name, messages=messages(), max_completion_tokens=100
            )
        except openai.RateLimitError as error:
            assert error.code == "insufficient_quota"
            return None

    async def all_of_them():
        async with customer.async_client() as client:
            tasks = [asyncio.create_task(one(client)) for _ in range(calls)]
            while sum(task.done() for task in tasks) + len(customer.asked()) < calls:
                await asyncio.sleep(0.02)
            held = [hold["amount_nusd"] for hold in customer.books.holds()]
            customer.stack.upstream.open_gate(customer.account)
            return held, await asyncio.gather(*tasks)

    held, answers = asyncio.run(asyncio.wait_for(all_of_them(), 60))
    answered = [answer for answer in answers if answer]
    assert 0 < len(answered) == len(held) < calls
    assert 10_000_000 - max(held) < sum(held) <= 10_000_000
    assert len(customer.books.settled(len(held))) == len(customer.asked())


def test_an_upstreams_rate_limit_is_tried_again(customer):
    with pytest.raises(openai.RateLimitError) as caught:
        ask(customer.client(max_retries=1), LIMITED)
    assert caught.value.code == "rate_limit_exceeded"
    assert len(customer.attempts) == 2
    assert len(customer.asked()) == 6, "Tollgate tries three times for each"
    check_nothing_used(customer.books.settled(2), 429)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_a_request_that_the_upstream_rejects(customer, streamed):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(customer.client(**PATIENT), REJECTED, stream=streamed)
    assert "this is a mock context window exceeded error" in caught.value.message
    assert caught.value.code == "context_length_exceeded"
    assert len(customer.attempts) == 1
    check_nothing_used(customer.books.settled(1), 400)


def test_an_upstream_that_fails(customer):
    with pytest.raises(openai.InternalServerError) as caught:
        ask(customer.client(max_retries=1), FAILING)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_error")
    assert "mock" not in caught.value.message, "the upstream's own words are not for the client"
    assert len(customer.attempts) == 2
    check_nothing_used(customer.books.settled(2), 500)


def test_a_stream_that_breaks_off_raises_and_what_came_is_charged(customer):
    stream = ask(customer.client(**PATIENT), BREAKS, stream=True)
    text = ""
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert not isinstance(caught.value, openai.APIConnectionError), "told, not cut"
    assert text and BREAKS.text.startswith(text)
    (record,) = customer.books.settled(1)
    assert record["ending"] == "upstream_failed"
    assert record["completion_tokens"] == record["counted_completion_tokens"] > 0
    if customer.stack.upstream.kind == "openrouter":
        assert record["source"] == "lookup", "it was asked what it bills"
        assert record["prompt_tokens"] == PROMPT_TOKENS
    else:
        assert record["source"] in ("counted", "estimated")
        assert record["prompt_tokens"] == record["counted_prompt_tokens"] > 0
    used = record["prompt_tokens"], record["completion_tokens"]
    assert record["charge_nusd"] == BREAKS.charge_nusd(*used)
