"""Plain answers through the official SDK: what it gets, and the one record each of them leaves."""

import asyncio
import json
from uuid import UUID

import pytest
from conftest import check_record, messages
from counting import check_count
from models import GATED_HEAD, LONG, PLAIN, TOOLS, UNICODE

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city, e.g. «Zürich»",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.mark.parametrize("model", [PLAIN, UNICODE, LONG], ids=lambda model: model.name)
def test_an_answer_is_whole_and_recorded_once(customer, model):
    answer = customer.client().chat.completions.create(model=model.name, messages=messages())
    assert answer.choices[0].message.content == model.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == model.name
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    (record,) = customer.books.settled(1)
    check_record(record, model, answer.usage, streamed=False)
    check_count(record, model.text, exact=model is PLAIN)
    assert record["id"] == answer._request_id
    assert record["generation_id"] == answer.id
    assert record["finish_reason"] == "stop"


def test_the_ledger_shows_credit_then_charge(customer):
    customer.client().chat.completions.create(model=PLAIN.name, messages=messages())
    (record,) = customer.books.settled(1)
    credit, charge = customer.books.entries()
    assert (credit["kind"], credit["amount_nusd"]) == ("credit", 5_000_000_000)
    assert (charge["kind"], charge["amount_nusd"]) == ("charge", -record["charge_nusd"])
    assert charge["request_id"] == record["id"]
    assert charge["previous_hash"] == credit["hash"]
    shown = json.loads(
        customer.stack.tollgate.run("account", "show", "--account", customer.account, "--json")
    )
    assert shown["balance_nusd"] == 5_000_000_000 - record["charge_nusd"]


def test_several_choices_are_all_counted(customer):
    answer = customer.client().chat.completions.create(
        model=PLAIN.name, messages=messages(), n=3
    )
    assert [choice.message.content for choice in answer.choices] == [PLAIN.text] * 3
    (record,) = customer.books.settled(1)
    check_record(record, PLAIN, answer.usage, streamed=False)
    assert record["counted_completion_tokens"] % 3 == 0
    assert record["counted_completion_tokens"] > 0


def test_tools_reach_the_upstream_and_calls_come_back(customer):
    answer = customer.client().chat.completions.create(
        model=TOOLS.name,
        messages=messages(),
        tools=[TOOL],
        tool_choice="auto",
        parallel_tool_calls=False,
        user="someone-elses-account",
        extra_body={"unknown_to_everyone": {"kept": [1.50, "\u2028"]}},
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Zürich"}')
    (asked,) = customer.asked()
    assert asked["tools"] == [TOOL]
    assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("auto", False)
    assert asked["unknown_to_everyone"] == {"kept": [1.50, "\u2028"]}
    assert asked["user"] == customer.account, "the client cannot name another account"
    assert "stream_options" not in asked
    (record,) = customer.books.settled(1)
    check_record(record, TOOLS, answer.usage, streamed=False)
    assert record["counted_completion_tokens"] > 0, "a call's name and arguments are counted"


def test_headers_name_the_record_and_nothing_of_the_upstream(customer):
    raw = customer.client().chat.completions.with_raw_response.create(
        model=PLAIN.name, messages=messages()
    )
    assert raw.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    assert UUID(raw.headers["x-request-id"]).version == 7
    of_upstreams = ("x-litellm", "llm_provider", "set-cookie")
    leaks = [name for name in raw.headers if name.startswith(of_upstreams)]
    assert leaks == []
    answer = raw.parse()
    assert answer.choices[0].message.content == PLAIN.text
    (record,) = customer.books.settled(1)
    assert record["id"] == raw.headers["x-request-id"] == raw.request_id


def test_the_async_client_at_once(customer):
    async def ask():
        async with customer.async_client() as client:
            calls = (
                client.chat.completions.create(model=model.name, messages=messages(f"call {n}"))
                for n in range(4)
                for model in (PLAIN, UNICODE)
            )
            return await asyncio.gather(*calls)

    answers = {answer._request_id: answer for answer in asyncio.run(ask())}
    records = customer.books.settled(8)
    assert {record["id"] for record in records} == set(answers)
    for record in records:
        model = PLAIN if record["model"] == PLAIN.name else UNICODE
        answer = answers[record["id"]]
        assert answer.choices[0].message.content == model.text
        check_record(record, model, answer.usage, streamed=False)


def test_a_client_that_goes_before_the_answer_still_pays_for_it(customer):
    async def ask_and_leave():
        async with customer.async_client() as client:
            call = client.chat.completions.create(model=GATED_HEAD.name, messages=messages())
            task = asyncio.create_task(call)
            while not customer.asked():
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    asyncio.run(asyncio.wait_for(ask_and_leave(), 30))
    customer.wait_until_gone()
    assert len(customer.books.holds()) == 1
    customer.stack.upstream.open_gate(customer.account)
    (record,) = customer.books.settled(1)
    assert (record["ending"], record["source"]) == ("client_gone", "upstream")
    used = record["prompt_tokens"], record["completion_tokens"]
    assert min(used) > 0
    assert record["charge_nusd"] == GATED_HEAD.charge_nusd(*used)
