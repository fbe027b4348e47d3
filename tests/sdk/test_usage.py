"""The caller's own figures, read by tools that were not made for Tollgate: OpenAI's typed client
for its usage and costs, the JSON reader for exact amounts, Python's reader for CSV."""

import csv
import io
import json
import time
from decimal import Decimal
from urllib.request import Request, urlopen

import pytest
from conftest import messages
from models import PLAIN, UNICODE
from openai import BadRequestError

NANO = Decimal("1e-9")


def get(customer, path: str) -> bytes:
    headers = {"Authorization": f"Bearer {customer.key}"}
    with urlopen(Request(customer.stack.base_url + path, headers=headers), timeout=20) as answer:
        return answer.read()


@pytest.fixture
def used(customer):
    """A customer with three calls, and their records."""
    client = customer.client()
    for model in [PLAIN, UNICODE, PLAIN]:
        client.chat.completions.create(model=model.name, messages=messages())
    return customer, customer.books.settled(3)


def organization(customer):
    """OpenAI's administration, which takes another key than the rest of its client."""
    return customer.client(admin_api_key=customer.key).admin.organization


def test_usage_is_of_openais_types(used):
    customer, records = used
    page = organization(customer).usage.completions(
        start_time=int(time.time()) - 3600, bucket_width="1h", group_by=["model", "api_key_id"]
    )
    assert (page.object, page.has_more, page.next_page) == ("page", False, None)
    results = [result for bucket in page.data for result in bucket.results]
    # Validated, not only taken over: the SDK itself is lenient.
    type(page).model_validate(page.model_dump(), strict=True)
    kinds = {type(result).__name__ for result in results}
    assert kinds == {"DataResultOrganizationUsageCompletionsResult"}
    for model in [PLAIN, UNICODE]:
        own = [record for record in records if record["model"] == model.name]
        seen = [result for result in results if result.model == model.name]
        assert sum(result.num_model_requests for result in seen) == len(own)
        assert sum(r.input_tokens for r in seen) == sum(r["prompt_tokens"] for r in own)
        assert sum(r.output_tokens for r in seen) == sum(r["completion_tokens"] for r in own)
        assert {result.api_key_id for result in seen} == {own[0]["api_key_id"]}


def test_costs_are_of_openais_types_and_exact(used):
    customer, records = used
    start = int(time.time()) - 3600
    page = organization(customer).usage.costs(start_time=start, group_by=["line_item"])
    type(page).model_validate(page.model_dump(), strict=True)
    results = [result for bucket in page.data for result in bucket.results]
    assert {type(result).__name__ for result in results} == {"DataResultOrganizationCostsResult"}
    assert {result.line_item for result in results} == {PLAIN.name, UNICODE.name}
    body = get(customer, f"/organization/costs?start_time={start}")
    exact = json.loads(body, parse_float=Decimal, parse_int=Decimal)
    amounts = [result["amount"]["value"] for b in exact["data"] for result in b["results"]]
    assert sum(amounts) == sum(record["charge_nusd"] for record in records) * NANO


def test_a_refusal_is_openais_error(customer):
    with pytest.raises(BadRequestError) as refused:
        organization(customer).usage.completions(start_time=1, limit=999)
    assert refused.value.param == "limit"


def test_pages_are_followed_by_their_cursor(used):
    customer, records = used
    start, end = int(time.time()) - 600, int(time.time()) + 60
    usage, page, requests, pages = organization(customer).usage, {}, 0, 0
    while True:
        answer = usage.completions(
            start_time=start, end_time=end, bucket_width="1m", limit=4, **page
        )
        pages += 1
        requests += sum(r.num_model_requests for bucket in answer.data for r in bucket.results)
        if not answer.has_more:
            break
        page = {"page": answer.next_page}
    assert requests == len(records)
    assert pages == 3


def test_the_csv_is_the_records(used):
    customer, records = used
    body = get(customer, f"/usage.csv?start_time={int(time.time()) - 3600}")
    rows = list(csv.DictReader(io.StringIO(body.decode(), newline=""), strict=True))
    assert [row["request_id"] for row in rows] == [record["id"] for record in records]
    for row, record in zip(rows, records):
        assert Decimal(row["charge_usd"]) == record["charge_nusd"] * NANO
        assert int(row["prompt_tokens"]) == record["prompt_tokens"]
        assert row["model"] == record["model"]


def test_credits_are_what_is_left(used):
    customer, records = used
    answer = json.loads(get(customer, "/credits"), parse_float=Decimal, parse_int=Decimal)
    used_nusd = sum(record["charge_nusd"] for record in records)
    assert answer["data"] == {"total_credits": 5, "total_usage": used_nusd * NANO}
