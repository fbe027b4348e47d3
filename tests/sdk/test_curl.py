"""curl, as in every quick start: what it prints, how it exits, and the record that it leaves."""

import json
import subprocess

from conftest import EACH_UPSTREAM, messages
from models import FAILING, GATED, PLAIN, UNICODE
from servers import environment
from test_hang_up import check_gone, settle_after_gate, whole_usage
from test_limits import make_older

pytestmark = EACH_UPSTREAM


def command(customer, model, *more: str, **members) -> list[str]:
    body = json.dumps({"model": model.name, "messages": messages()} | members)
    return [
        *("curl", "--silent", "--show-error", "--no-buffer", "--max-time", "60"),
        f"{customer.stack.base_url}/chat/completions",
        *("-H", f"Authorization: Bearer {customer.key}"),
        *("-H", "Content-Type: application/json", "--data-binary", body, *more),
    ]


def curl(*arguments, status: int = 0, **options) -> str:
    done = subprocess.run(
        command(*arguments, **options), env=environment({}), capture_output=True, timeout=90
    )
    assert done.returncode == status, done
    return done.stdout.decode()


def test_a_plain_answer(customer):
    answer = json.loads(curl(customer, UNICODE))
    assert answer["choices"][0]["message"]["content"] == UNICODE.text
    customer.books.settled(1)


def test_a_stream_over_both_protocols(customer):
    for protocol in ("--http1.1", "--http2-prior-knowledge", "--http1.0"):
        lines = curl(customer, UNICODE, protocol, stream=True).split("\n\n")
        lines = [line for line in lines if not line.startswith(":")]
        assert lines[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        said = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
        assert "".join(said) == UNICODE.text
    customer.books.settled(3)


def test_fail_on_errors(customer):
    assert curl(customer, FAILING, "--fail", status=22) == ""
    (record,) = customer.books.settled(1)
    assert record["charge_nusd"] == 0


def test_it_comes_back_when_it_is_told_to(make_customer):
    """curl waits as `Retry-After` says."""
    customer = make_customer(key_options=("--rpm", "1"))
    curl(customer, PLAIN)
    customer.books.settled(1)
    make_older(customer, 57)
    answer = curl(customer, PLAIN, "--retry", "1", "--fail")
    assert json.loads(answer)["choices"][0]["message"]["content"] == PLAIN.text
    customer.books.settled(2)


def test_no_credit_is_told(make_customer):
    customer = make_customer(credit=None)
    told = curl(customer, PLAIN, "--fail-with-body", status=22)
    assert json.loads(told)["error"]["code"] == "insufficient_quota"
    assert customer.books.records() == []


def test_an_interrupt_is_charged(customer):
    child = subprocess.Popen(
        command(customer, GATED, stream=True), env=environment({}), stdout=subprocess.PIPE
    )
    with child:
        while not child.stdout.readline().startswith(b"data: {"):
            assert child.poll() is None
        child.kill()
    check_gone(settle_after_gate(customer), whole_usage(customer))
