"""Clients that hang up in the middle of a stream: they pay for what the upstream says of it.

LiteLLM's provider bills the whole answer whoever still listens, so Tollgate's policy for it is to
drain. OpenRouter's call is cancelled, and looked up when it is over. The gate keeps either in the
middle of its answer until the client has gone.
"""

import asyncio

import pytest
from conftest import messages
from models import GATED


def settle_after_gate(customer) -> dict:
    """Opens the gate of a stream whose client has gone; its record."""
    customer.wait_until_gone()
    (hold,) = customer.books.holds()
    assert hold["amount_nusd"] > 0
    assert customer.books.account_row()["held_nusd"] == hold["amount_nusd"]
    assert customer.books.records() == []
    customer.stack.upstream.open_gate(customer.account)
    (record,) = customer.books.settled(1)
    assert record["id"] == hold["request_id"]
    return record


def check_gone(record: dict, whole_usage) -> None:
    assert record["ending"] == "client_gone"
    assert record["source"] == {"litellm": "upstream", "openrouter": "lookup"}[record["upstream"]]
    used = whole_usage.prompt_tokens, whole_usage.completion_tokens
    assert (record["prompt_tokens"], record["completion_tokens"]) == used
    assert record["charge_nusd"] == GATED.charge_nusd(*used)


def whole_usage(customer):
    """What the upstream says of the same answer when somebody reads it; the gate is open by then."""
    stream = customer.client().chat.completions.create(
        model=GATED.name,
        messages=messages(),
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = list(stream)[-1].usage
    customer.books.settled(2)
    return usage


@pytest.mark.parametrize("asks_usage", [True, False], ids=["usage", "no-usage"])
def test_stream_close(customer, asks_usage):
    options = {"stream_options": {"include_usage": True}} if asks_usage else {}
    client = customer.client()
    stream = client.chat.completions.create(
        model=GATED.name, messages=messages(), stream=True, **options
    )
    first = next(iter(stream))
    assert GATED.text.startswith(first.choices[0].delta.content)
    stream.close()
    record = settle_after_gate(customer)
    assert record["generation_id"] == first.id
    check_gone(record, whole_usage(customer))


def test_an_async_task_that_is_cancelled(customer):
    async def read_and_leave():
        async with customer.async_client() as client:
            stream = await client.chat.completions.create(
                model=GATED.name, messages=messages(), stream=True
            )
            got = asyncio.Event()

            async def read():
                async for _ in stream:
                    got.set()

            task = asyncio.create_task(read())
            await got.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            await stream.close()

    asyncio.run(asyncio.wait_for(read_and_leave(), 30))
    check_gone(settle_after_gate(customer), whole_usage(customer))


def test_a_client_that_stops_reading_after_done_is_not_gone(customer):
    """The SDK closes its connection at `[DONE]` without waiting for the end of the body."""
    customer.stack.upstream.open_gate(customer.account)
    with customer.client() as client:
        stream = client.chat.completions.create(
            model=GATED.name, messages=messages(), stream=True
        )
        list(stream)
    (record,) = customer.books.settled(1)
    assert record["ending"] == "completed"
