"""Tools, structured output and probabilities, as OpenAI's SDK reads them: pieces put together by its
own helpers, and by hand as an older program does it."""

import asyncio
import json

import openai
import pytest
from answers import usage_of
from conftest import check_record, messages
from models import CITY, FRAGMENTS, PARALLEL, PROBABLE, ZURICH
from pydantic import BaseModel
from test_plain import TOOL
from types import SimpleNamespace

WITH_USAGE = {"include_usage": True}
CALLING = pytest.mark.parametrize("model", [FRAGMENTS, PARALLEL], ids=lambda model: model.name)


class Weather(BaseModel):
    """The weather in a city."""

    city: str


class City(BaseModel):
    city: str


def asking(model, **options) -> dict:
    return {"model": model.name, "messages": messages()} | options


def called(message) -> tuple:
    calls = message.tool_calls
    assert len({call.id for call in calls}) == len(calls), "each has its own id"
    return tuple((call.function.name, call.function.arguments) for call in calls)


@CALLING
def test_calls_in_a_plain_answer(customer, model):
    answer = customer.client().chat.completions.create(**asking(model, tools=[TOOL]))
    assert called(answer.choices[0].message) == model.calls
    assert answer.choices[0].finish_reason == "tool_calls"
    (record,) = customer.books.settled(1)
    check_record(record, model, answer.usage, streamed=False)


@CALLING
def test_fragments_of_calls_put_together_by_hand(customer, model):
    stream = customer.client().chat.completions.create(
        **asking(model, tools=[TOOL], stream=True, stream_options=WITH_USAGE)
    )
    calls, reasons, fragments = {}, [], 0
    for chunk in stream:
        for choice in chunk.choices:
            for piece in choice.delta.tool_calls or []:
                fragments += 1
                call = calls.setdefault(piece.index, {"ids": [], "names": [], "arguments": ""})
                call["ids"] += [piece.id] if piece.id else []
                call["names"] += [piece.function.name] if piece.function.name else []
                call["arguments"] += piece.function.arguments or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert fragments > 2 * len(model.calls), "they come in pieces"
    said = [(call["names"], call["arguments"]) for _, call in sorted(calls.items())]
    assert said == [([name], arguments) for name, arguments in model.calls], "each name once"
    assert all(len(call["ids"]) == 1 for call in calls.values())
    assert reasons == ["tool_calls"]
    (record,) = customer.books.settled(1)
    check_record(record, model, chunk.usage, streamed=True)
    assert record["counted_completion_tokens"] > 0, "names and arguments are counted"


@CALLING
def test_the_stream_helper_reads_calls_into_their_type(customer, model):
    tool = openai.pydantic_function_tool(Weather, name="weather")
    with customer.client().chat.completions.stream(**asking(model, tools=[tool])) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        answer = stream.get_final_completion()
    assert {event.name for event in done} == {"weather"}
    parsed = [call.function.parsed_arguments for call in answer.choices[0].message.tool_calls]
    assert parsed == [Weather(**json.loads(arguments)) for _, arguments in model.calls]
    (record,) = customer.books.settled(1)
    check_record(record, model, SimpleNamespace(**usage_of(model)), streamed=True)


def test_the_async_stream_helper_reads_calls(customer):
    async def ask():
        async with customer.async_client() as client:
            async with client.chat.completions.stream(
                **asking(PARALLEL, tools=[TOOL])
            ) as stream:
                return await stream.get_final_completion()

    answer = asyncio.run(asyncio.wait_for(ask(), 60))
    assert called(answer.choices[0].message) == PARALLEL.calls
    customer.books.settled(1)


def test_an_answer_of_a_type(customer):
    answer = customer.client().chat.completions.parse(**asking(CITY, response_format=City))
    assert answer.choices[0].message.parsed == City(city="Zürich")
    (asked,) = customer.asked()
    assert asked["response_format"]["type"] == "json_schema"
    assert asked["response_format"]["json_schema"]["schema"]["required"] == ["city"]
    (record,) = customer.books.settled(1)
    check_record(record, CITY, answer.usage, streamed=False)


def test_a_streamed_answer_of_a_type(customer):
    with customer.client().chat.completions.stream(
        **asking(CITY, response_format=City, stream_options=WITH_USAGE)
    ) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.parsed == City(**json.loads(ZURICH[1]))
    (record,) = customer.books.settled(1)
    check_record(record, CITY, answer.usage, streamed=True)


def test_probabilities(customer):
    answer = customer.client().chat.completions.create(
        **asking(PROBABLE, logprobs=True, top_logprobs=0)
    )
    check_probabilities(answer.choices[0].logprobs.content)
    (asked,) = customer.asked()
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 0)
    (record,) = customer.books.settled(1)
    check_record(record, PROBABLE, answer.usage, streamed=False)


def test_streamed_probabilities(customer):
    stream = customer.client().chat.completions.create(
        **asking(PROBABLE, logprobs=True, stream=True, stream_options=WITH_USAGE)
    )
    chunks = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.logprobs]
    check_probabilities([one for choice in choices for one in choice.logprobs.content or []])
    (record,) = customer.books.settled(1)
    check_record(record, PROBABLE, chunks[-1].usage, streamed=True)


def check_probabilities(told: list) -> None:
    assert tuple(one.token for one in told) == PROBABLE.tokens
    assert all(one.logprob == -0.25 for one in told)
    assert b"".join(bytes(one.bytes) for one in told).decode() == PROBABLE.text
