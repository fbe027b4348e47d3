"""Answers against their schemas: OpenAI's own for its surface, openapi.yaml for all of it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
from books import Sqlite
from conftest import BINARY, messages
from jsonschema import Draft202012Validator
from models import LONG, PLAIN, REJECTED
from servers import HERE, Tollgate, environment

ROOT = HERE.parent.parent
# Any seed finds something sooner or later; a fixed one finds the same in every run.
SEED, EXAMPLES = "1", "5"


def with_nulls(schema):
    """OpenAI still says `nullable`, which JSON Schema does not know."""
    if isinstance(schema, list):
        return [with_nulls(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: with_nulls(part) for name, part in schema.items() if name != "nullable"}
    return {"anyOf": [parts, {"type": "null"}]} if schema.get("nullable") is True else parts


SPEC = with_nulls(json.loads((HERE.parent / "specs" / "openai.json").read_text()))


def check(answer, name: str) -> None:
    """Against one of OpenAI's schemas."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": SPEC["components"]}
    errors = list(Draft202012Validator(schema).iter_errors(answer))
    assert errors == [], [(list(error.path), error.message) for error in errors]


def raw(call, **options):
    return call.with_raw_response.create(messages=messages(), **options)


def test_models_have_openais_form(customer):
    client = customer.client()
    check(json.loads(client.models.with_raw_response.list().text), "ListModelsResponse")
    check(json.loads(client.models.with_raw_response.retrieve(LONG.name).text), "Model")


def test_errors_have_openais_form(customer):
    for client, model in [
        (customer.client(), REJECTED.name),
        (customer.client(), "no/such"),
        (customer.client(api_key="sk-tg-wrong"), PLAIN.name),
    ]:
        with pytest.raises(openai.APIStatusError) as caught:
            raw(client.chat.completions, model=model)
        check(caught.value.response.json(), "ErrorResponse")
    customer.books.settled(1)


@pytest.fixture
def demo(tmp_path):
    """A Tollgate that answers by itself, and whose accounts and prices are nobody else's."""
    database = Sqlite(tmp_path)
    env = {"DATABASE_URL": database.url, "TOLLGATE_LISTEN": "127.0.0.1:0"}
    # Schemathesis tries wrong keys too.
    env["TOLLGATE_AUTH_FAILURES_PER_MINUTE"] = "0"
    # Else there is no such webhook, whatever is sent to it.
    env["STRIPE_WEBHOOK_SECRET"] = "whsec_of_schemas"
    server = Tollgate("tollgate-schemas", BINARY, env, tmp_path)
    try:
        url = server.wait()
        account = server.run("account", "create", "--name", "schemas", "--credit", "5")
        key = server.run("key", "create", "--account", account, "--role", "service")
        yield SimpleNamespace(url=url, key=key)
        assert server.stop() == 0
        # Beside it, what is settled only now would be a difference.
        server.run("verify")
        assert "panicked" not in server.err.read_text()
    finally:
        server.stop()


def test_completions_have_openais_form(demo):
    with openai.OpenAI(base_url=demo.url, api_key=demo.key) as client:
        completions = client.chat.completions
        plain = raw(completions, model="tollgate-demo")
        check(json.loads(plain.text), "CreateChatCompletionResponse")
        with completions.with_streaming_response.create(
            model="tollgate-demo", messages=messages(), stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        for line in lines[:-1]:
            check(json.loads(line), "CreateChatCompletionStreamResponse")


def test_schemathesis_finds_nothing(demo, tmp_path):
    """Requests made from openapi.yaml, valid and not, with the key of whoever runs the service."""
    command = [Path(sys.executable).parent / "schemathesis", "run", ROOT / "openapi.yaml"]
    command += ["--url", demo.url.removesuffix("/v1"), "--no-color"]
    command += ["--header", f"Authorization: Bearer {demo.key}"]
    command += ["--seed", SEED, "--max-examples", EXAMPLES]
    command += ["--phases", "examples,coverage,fuzzing"]
    # A cursor, a name that is taken, two members that do not fit each other: refused by meaning,
    # not by form.
    command += ["--exclude-checks", "positive_data_acceptance"]
    done = subprocess.run(
        command, env=environment({}), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
