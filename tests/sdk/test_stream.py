"""Streamed answers through the official SDK, with and without the usage chunk."""

import asyncio
from decimal import Decimal

import pytest
from conftest import check_record, messages
from counting import check_count
from models import LONG, NANO, PLAIN, UNICODE
from types import SimpleNamespace

MODELS = pytest.mark.parametrize("model", [PLAIN, UNICODE, LONG], ids=lambda model: model.name)
WITH_USAGE = {"include_usage": True}


def text_of(chunks: list) -> str:
    return "".join(
        choice.delta.content or "" for chunk in chunks for choice in chunk.choices
    )


@MODELS
def test_the_usage_chunk_comes_last_at_the_clients_price(customer, model):
    stream = customer.client().chat.completions.create(
        model=model.name, messages=messages(), stream=True, stream_options=WITH_USAGE
    )
    chunks = list(stream)
    *answer, last = chunks
    assert text_of(chunks) == model.text
    assert last.choices == []
    assert all(chunk.choices and chunk.usage is None for chunk in answer)
    assert len({chunk.id for chunk in chunks}) == 1
    (record,) = customer.books.settled(1)
    check_record(record, model, last.usage, streamed=True)
    check_count(record, model.text, exact=model is PLAIN)
    assert record["id"] == stream.response.headers["x-request-id"]
    assert record["generation_id"] == last.id
    # The upstream puts the operator's cost there; the client reads its own.
    assert Decimal(str(last.usage.cost)) == record["charge_nusd"] * NANO


@MODELS
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": False}}], ids=str)
def test_a_client_that_does_not_ask_sees_no_usage(customer, model, options):
    stream = customer.client().chat.completions.create(
        model=model.name, messages=messages(), stream=True, **options
    )
    chunks = list(stream)
    assert text_of(chunks) == model.text
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    (asked,) = customer.asked()
    assert asked["stream_options"] == WITH_USAGE, "Tollgate asks for itself"
    (record,) = customer.books.settled(1)
    # Nobody showed the usage, so the price is held against the record's own tokens.
    tokens = SimpleNamespace(
        prompt_tokens=record["prompt_tokens"], completion_tokens=record["completion_tokens"]
    )
    assert min(tokens.prompt_tokens, tokens.completion_tokens) > 0
    check_record(record, model, tokens, streamed=True)
    check_count(record, model.text, exact=model is PLAIN)


def test_several_choices_stream_side_by_side(customer):
    stream = customer.client().chat.completions.create(
        model=PLAIN.name, messages=messages(), stream=True, stream_options=WITH_USAGE, n=2
    )
    texts = {0: "", 1: ""}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage
    assert texts == {0: PLAIN.text, 1: PLAIN.text}
    (record,) = customer.books.settled(1)
    check_record(record, PLAIN, usage, streamed=True)


def test_the_sdks_own_accumulator_agrees(customer):
    with customer.client().chat.completions.stream(
        model=UNICODE.name, messages=messages(), stream_options=WITH_USAGE
    ) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == UNICODE.text
    (record,) = customer.books.settled(1)
    check_record(record, UNICODE, answer.usage, streamed=True)


def test_raw_lines_are_events_that_end_with_done(customer):
    with customer.client().chat.completions.with_streaming_response.create(
        model=UNICODE.name, messages=messages(), stream=True
    ) as raw:
        assert raw.headers["content-type"].startswith("text/event-stream")
        assert [name for name in raw.headers if name.startswith("x-litellm")] == []
        lines = [line for line in raw.iter_lines() if line]
        request_id = raw.headers["x-request-id"]
    # Comments are for whoever looks at the wire.
    assert all(line.startswith(("data: {", ": ")) for line in lines[:-1])
    assert lines[-1] == "data: [DONE]"
    (record,) = customer.books.settled(1)
    assert record["id"] == request_id


def test_the_async_client_streams_at_once(customer):
    async def read(client, model):
        stream = await client.chat.completions.create(
            model=model.name, messages=messages(), stream=True, stream_options=WITH_USAGE
        )
        chunks = [chunk async for chunk in stream]
        assert text_of(chunks) == model.text
        return stream.response.headers["x-request-id"], (model, chunks[-1].usage)

    async def all_of_them():
        async with customer.async_client() as client:
            return await asyncio.gather(*(read(client, m) for m in [PLAIN, UNICODE] * 4))

    seen = dict(asyncio.run(all_of_them()))
    records = customer.books.settled(8)
    assert {record["id"] for record in records} == set(seen)
    for record in records:
        check_record(record, *seen[record["id"]], streamed=True)
