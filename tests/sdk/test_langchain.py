"""LangChain's chat model for OpenAI, which leans on OpenAI's SDK and adds its own reading."""

import asyncio
import json
from types import SimpleNamespace

import openai
import pytest
from conftest import EACH_UPSTREAM, check_record
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from models import CITY, FAILING, FRAGMENTS, GATED, PARALLEL, PLAIN, PROBABLE, REJECTED, TOOLS
from models import UNICODE
from test_hang_up import check_gone, settle_after_gate, whole_usage
from test_limits import make_older
from test_plain import TOOL

pytestmark = EACH_UPSTREAM


def chat(customer, model, **options) -> ChatOpenAI:
    usual = {"base_url": customer.stack.base_url, "api_key": customer.key, "max_retries": 0}
    # Else its connections stay open, and a later test waits for the server to be alone.
    http = customer.open_clients.enter_context(openai.DefaultHttpxClient())
    usual["http_client"] = http
    return ChatOpenAI(model=model.name, stream_usage=True, **usual | options)


def usage_of(message) -> SimpleNamespace:
    usage = message.usage_metadata
    return SimpleNamespace(
        prompt_tokens=usage["input_tokens"], completion_tokens=usage["output_tokens"]
    )


def test_a_plain_answer(customer):
    answer = chat(customer, UNICODE).invoke("hi there you")
    assert answer.content == UNICODE.text
    (record,) = customer.books.settled(1)
    check_record(record, UNICODE, usage_of(answer), streamed=False)


def test_a_streamed_answer(customer):
    first, *rest = chat(customer, UNICODE).stream("hi there you")
    answer = sum(rest, first)
    assert answer.content == UNICODE.text
    (record,) = customer.books.settled(1)
    check_record(record, UNICODE, usage_of(answer), streamed=True)


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_tools(customer, streamed):
    if streamed:
        first, *rest = chat(customer, FRAGMENTS).bind_tools([TOOL]).stream("hi")
        answer = sum(rest, first)
    else:
        answer = chat(customer, TOOLS).bind_tools([TOOL]).invoke("hi")
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Zürich"})
    customer.books.settled(1)


def test_parallel_tools_in_fragments(customer):
    first, *rest = chat(customer, PARALLEL).bind_tools([TOOL]).stream("hi")
    calls = [(call["name"], call["args"]) for call in sum(rest, first).tool_calls]
    assert calls == [(name, json.loads(arguments)) for name, arguments in PARALLEL.calls]
    customer.books.settled(1)


def test_probabilities(customer):
    answer = chat(customer, PROBABLE, logprobs=True).invoke("hi")
    told = answer.response_metadata["logprobs"]["content"]
    assert tuple(one["token"] for one in told) == PROBABLE.tokens
    customer.books.settled(1)


def test_several_choices(customer):
    (answers,) = chat(customer, PLAIN, n=2).generate([[HumanMessage("hi")]]).generations
    assert [answer.text for answer in answers] == [PLAIN.text] * 2
    customer.books.settled(1)


def test_async_answers_and_a_task_that_is_cancelled(customer):
    async def all_of_them():
        async with openai.DefaultAsyncHttpxClient() as http:
            plain = await chat(customer, UNICODE, http_async_client=http).ainvoke("hi")
            streamed = [piece async for piece in
                        chat(customer, UNICODE, http_async_client=http).astream("hi")]
            assert plain.content == UNICODE.text == "".join(it.content for it in streamed)
            got = asyncio.Event()

            async def read():
                async for _ in chat(customer, GATED, http_async_client=http).astream("hi"):
                    got.set()

            task = asyncio.create_task(read())
            await got.wait()
            # Python 3.11 loses a cancellation that comes at the same time as an event.
            while not task.done():
                task.cancel()
                await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(all_of_them(), 60))
    customer.wait_until_gone()
    customer.stack.upstream.open_gate(customer.account)
    gone = customer.books.settled(3)[2]
    assert (gone["ending"], gone["model"]) == ("client_gone", GATED.name)


def test_structured_output(customer):
    schema = {"title": "city"} | TOOL["function"]["parameters"]
    model = chat(customer, CITY).with_structured_output(schema, method="json_schema")
    assert model.invoke("hi") == {"city": "Zürich"}
    (asked,) = customer.asked()
    assert asked["response_format"]["type"] == "json_schema"
    customer.books.settled(1)


def test_a_stream_that_is_left_is_charged(customer):
    stream = chat(customer, GATED).stream("hi there you")
    next(stream)
    stream.close()
    check_gone(settle_after_gate(customer), whole_usage(customer))


@pytest.mark.parametrize(
    ("model", "error"),
    [(REJECTED, openai.BadRequestError), (FAILING, openai.InternalServerError)],
    ids=["rejected", "failing"],
)
def test_errors(customer, model, error):
    with pytest.raises(error):
        chat(customer, model).invoke("hi")
    (record,) = customer.books.settled(1)
    assert record["charge_nusd"] == 0


def test_it_tries_again_as_the_sdk_does(customer):
    with pytest.raises(openai.InternalServerError):
        chat(customer, FAILING, max_retries=1).invoke("hi")
    customer.books.settled(2)


def test_it_comes_back_when_it_is_told_to(make_customer):
    customer = make_customer(key_options=("--rpm", "1"))
    chat(customer, PLAIN).invoke("hi")
    customer.books.settled(1)
    make_older(customer, 57)
    assert chat(customer, PLAIN, max_retries=1).invoke("hi").content == PLAIN.text
    customer.books.settled(2)


def test_a_wrong_key(customer):
    with pytest.raises(openai.AuthenticationError):
        chat(customer, PLAIN, api_key="sk-tg-wrong").invoke("hi")
