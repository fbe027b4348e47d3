"""OpenAI's SDK for JavaScript and Vercel's AI SDK, each in a Node process of its own."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from answers import usage_of
from conftest import EACH_UPSTREAM, check_record
from models import BREAKS, CITY, FAILING, FRAGMENTS, GATED, LIMITED, LONG, PARALLEL, PLAIN
from models import PROBABLE, REJECTED, UNICODE
from servers import HERE, environment
from test_hang_up import check_gone, settle_after_gate, whole_usage
from test_limits import make_older

pytestmark = EACH_UPSTREAM
CLIENTS = pytest.mark.parametrize("client", ["openai", "vercel"])


def script(folder: Path) -> Path:
    """The driver, beside the packages that it imports."""
    place = folder / "node"
    if not place.exists():
        place.mkdir()
        (place / "node_modules").symlink_to(os.environ["SDK_TESTS_NODE_MODULES"])
        shutil.copy(HERE / "node" / "client.mjs", place)
    return place / "client.mjs"


def run(customer, client: str, scenario: str, model, *, retries: int = 0, key=None) -> dict:
    env = {
        "BASE_URL": customer.stack.base_url,
        "API_KEY": key or customer.key,
        "RETRIES": str(retries),
        "AI_SDK_LOG_WARNINGS": "false",
    }
    command = ["node", script(customer.stack.tollgate.folder), client, scenario, model.name]
    done = subprocess.run(
        command, env=environment(env), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@CLIENTS
@pytest.mark.parametrize("scenario", ["plain", "stream"])
@pytest.mark.parametrize("model", [UNICODE, LONG], ids=lambda model: model.name)
def test_an_answer(customer, client, scenario, model):
    seen = run(customer, client, scenario, model)
    assert seen.get("text") == model.text, seen
    (record,) = customer.books.settled(1)
    check_record(record, model, SimpleNamespace(**seen["usage"]), streamed=scenario == "stream")
    assert seen.get("id", record["id"]) == record["id"]


@CLIENTS
@pytest.mark.parametrize("model", [FRAGMENTS, PARALLEL], ids=lambda model: model.name)
def test_arguments_of_tools_come_in_fragments(customer, client, model):
    seen = run(customer, client, "tools", model)
    calls = [{"name": name, "arguments": arguments} for name, arguments in model.calls]
    assert seen.get("calls") == calls, seen
    (record,) = customer.books.settled(1)
    check_record(record, model, SimpleNamespace(**usage_of(model)), streamed=True)


@CLIENTS
def test_structured_output(customer, client):
    seen = run(customer, client, "structured", CITY)
    assert seen.get("parsed") == {"city": "Zürich"}, seen
    (asked,) = customer.asked()
    assert asked["response_format"]["type"] == "json_schema", "it is forwarded"
    assert asked["response_format"]["json_schema"]["schema"]["required"] == ["city"]
    customer.books.settled(1)


@CLIENTS
def test_an_abort_is_charged(customer, client):
    seen = run(customer, client, "abort", GATED)
    assert GATED.text.startswith(seen["first"]), seen
    check_gone(settle_after_gate(customer), whole_usage(customer))


def test_probabilities(customer):
    seen = run(customer, "openai", "probabilities", PROBABLE)
    assert tuple(seen.get("tokens", ())) == PROBABLE.tokens, seen
    customer.books.settled(1)


def test_several_choices(customer):
    seen = run(customer, "openai", "choices", PLAIN)
    assert seen.get("texts") == [PLAIN.text] * 2, seen
    customer.books.settled(1)


def test_the_raw_answer(customer):
    seen = run(customer, "openai", "raw", UNICODE)
    assert seen["type"].startswith("text/event-stream"), seen
    assert (seen["first"][:7], seen["last"]) == ("data: {", "data: [DONE]")
    (record,) = customer.books.settled(1)
    assert seen["id"] == record["id"]


def test_models(customer):
    seen = run(customer, "openai", "models", UNICODE)
    assert seen["one"] == UNICODE.name, "an id with slashes"
    assert {PLAIN.name, UNICODE.name} <= set(seen["names"])


@pytest.mark.parametrize(
    ("model", "name", "status", "code"),
    [
        (REJECTED, "BadRequestError", 400, "context_length_exceeded"),
        (LIMITED, "RateLimitError", 429, "rate_limit_exceeded"),
        (FAILING, "InternalServerError", 502, "upstream_error"),
        (SimpleNamespace(name="no/such"), "NotFoundError", 404, "model_not_found"),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_errors_are_openais_classes(customer, model, name, status, code):
    seen = run(customer, "openai", "plain", model)
    assert (seen["error"], seen["status"], seen["code"]) == (name, status, code), seen
    assert seen["requestID"] and seen["type"], seen
    vercel = run(customer, "vercel", "plain", model)
    assert (vercel["error"], vercel["status"]) == ("APICallError", status), vercel
    assert vercel["retryable"] == (status in (429, 502)), vercel


@CLIENTS
def test_a_wrong_key(customer, client):
    seen = run(customer, client, "plain", PLAIN, retries=2, key="sk-tg-wrong")
    assert (seen["status"], seen["attempts"]) == (401, 1), seen
    assert customer.books.records() == []


@CLIENTS
def test_no_credit(make_customer, client):
    customer = make_customer(credit=None)
    seen = run(customer, client, "plain", PLAIN, retries=2)
    assert seen["status"] == 429, seen
    # Vercel's SDK does not know x-should-retry; nothing is forwarded by it all the same.
    assert seen["attempts"] == (1 if client == "openai" else 3), seen
    assert customer.books.records() == []


@CLIENTS
def test_a_stream_that_breaks_off_raises(customer, client):
    seen = run(customer, client, "stream", BREAKS)
    assert seen.get("error"), seen
    (record,) = customer.books.settled(1)
    assert record["ending"] == "upstream_failed" and record["charge_nusd"] > 0


@CLIENTS
def test_it_comes_back_when_it_is_told_to(make_customer, client):
    customer = make_customer(key_options=("--rpm", "1"))
    run(customer, client, "plain", PLAIN)
    customer.books.settled(1)
    make_older(customer, 57)
    seen = run(customer, client, "plain", PLAIN, retries=1)
    assert seen.get("text") == PLAIN.text, seen
    # One, where this machine was so slow that the minute was over by itself.
    assert seen["attempts"] in (1, 2)
    customer.books.settled(2)
