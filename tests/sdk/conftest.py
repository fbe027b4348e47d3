"""Fixtures: a real LiteLLM and a scripted upstream, a Tollgate before either on a database of its
own, and an account for every test."""

import os
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import models
import openai
import provider
import pytest
from books import Books, Postgres, Sqlite
from browser import Chromium
from provider import Scripted
from servers import LiteLlm, Tollgate

BINARY = Path(os.environ["SDK_TESTS_TOLLGATE"])
POSTGRES = os.environ["TOLLGATE_TEST_POSTGRES"]
STACKS = ["litellm-sqlite", "litellm-postgres", "scripted-sqlite"]
# For clients other than OpenAI's for Python: each is another wire, but not another database.
EACH_UPSTREAM = pytest.mark.parametrize("stack", STACKS[1:], indirect=True, scope="session")

# What is printed at the end: the rows of each database in short, and when something failed what the
# servers said last.
ROWS, SAID = [], {}


@dataclass
class Stack:
    """A Tollgate with what is behind it."""

    tollgate: Tollgate
    upstream: LiteLlm | Scripted
    database: Sqlite | Postgres
    base_url: str


@dataclass
class Customer:
    """An account with a key, the SDK's clients for it, and its rows."""

    stack: Stack
    account: str
    key: str
    books: Books
    others: set[str]
    attempts: list = field(default_factory=list)
    open_clients: ExitStack = field(default_factory=ExitStack)

    def client(self, **options) -> openai.OpenAI:
        """OpenAI's client; what it really sends is counted in `attempts`."""
        http = openai.DefaultHttpxClient(event_hooks={"request": [self.attempts.append]})
        client = openai.OpenAI(**self._options(options), http_client=http)
        return self.open_clients.enter_context(client)

    def async_client(self, **options) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self._options(options))

    def wait_until_gone(self) -> None:
        """Until Tollgate has noticed that this test's only client has hung up."""
        self.stack.tollgate.wait_until_alone(self.stack.base_url, self.others)

    def asked(self) -> list[dict]:
        """What reached the upstream for this account."""
        return self.stack.upstream.asked(self.account)

    def _options(self, options: dict) -> dict:
        return {"base_url": self.stack.base_url, "api_key": self.key, "max_retries": 0} | options


@pytest.fixture(scope="session")
def folder():
    with tempfile.TemporaryDirectory(prefix="tollgate-sdk.") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def chromium(folder):
    browser = Chromium(folder)
    yield browser
    browser.stop()


@pytest.fixture(scope="session")
def scripted():
    with provider.running() as server:
        yield server


@pytest.fixture(scope="session")
def litellm(folder, scripted):
    server = LiteLlm(folder, scripted.base_url)
    try:
        server.wait()
        yield server
    except AssertionError as error:
        pytest.exit(f"{error}", returncode=pytest.ExitCode.INTERNAL_ERROR)
    finally:
        server.stop()
        SAID[server.name] = server.output()


@contextmanager
def own_server(name: str, store: str, folder: Path, upstream, more: dict):
    """A Tollgate of a test's own before an upstream; its database, and its address up to `/v1`. The
    books are right in the end."""
    database = Sqlite(folder) if store == "sqlite" else Postgres(POSTGRES)
    env = {"DATABASE_URL": database.url, "TOLLGATE_LISTEN": "127.0.0.1:0"} | before(upstream) | more
    server = Tollgate(f"tollgate-{name}-{store}", BINARY, env, folder)
    try:
        yield server, database, server.wait()
        # Beside it, what is settled only now would be a difference.
        assert server.stop() == 0, server.output()
        server.run("verify")
    finally:
        server.stop()
        database.drop()


def before(upstream) -> dict:
    return {
        "UPSTREAM_KIND": upstream.kind,
        "UPSTREAM_BASE_URL": upstream.base_url,
        "UPSTREAM_API_KEY": upstream.key,
    }


@pytest.fixture(scope="session", params=STACKS)
def stack(request, folder):
    behind, database = request.param.split("-")
    upstream = request.getfixturevalue(behind)
    own = folder / request.param
    own.mkdir()
    database = Sqlite(own) if database == "sqlite" else Postgres(POSTGRES)
    env = {
        "DATABASE_URL": database.url,
        "TOLLGATE_LISTEN": "127.0.0.1:0",
        "TOLLGATE_LOOKUP_FIRST_MS": "100",
    } | before(upstream)
    server = Tollgate(f"tollgate-{request.param}", BINARY, env, own)
    try:
        yield Stack(server, upstream, database, server.wait())
        assert server.stop() == 0, server.output()
        assert "panicked" not in server.err.read_text()
        sql = """SELECT ending, source, count(*) AS records, sum(charge_nusd) AS charged_nusd
                 FROM usage_records GROUP BY ending, source ORDER BY ending, source"""
        ROWS.append((request.param, database.rows(sql)))
    finally:
        server.stop()
        SAID[server.name] = server.output()
        database.drop()


@pytest.fixture
def make_customer(stack):
    """Makes accounts; when the test is over their books, and all books, must be in order."""
    made = []

    def make(*, credit: str | None = "5", key_options: tuple = ()) -> Customer:
        run = stack.tollgate.run
        grant = ("--credit", credit) if credit else ()
        account = run("account", "create", "--name", f"test-{uuid4().hex[:12]}", *grant)
        key = run("key", "create", "--account", account, *key_options)
        others = stack.tollgate.connections(stack.base_url)
        customer = Customer(stack, account, key, Books(stack.database, account), others)
        made.append(customer)
        return customer

    yield make
    for customer in made:
        customer.open_clients.close()
        customer.books.check()
        asked = {record["upstream"] for record in customer.books.records()}
        assert asked <= {stack.upstream.kind}
    stack.tollgate.run("verify")


@pytest.fixture
def customer(make_customer):
    return make_customer()


def messages(text: str = "hi there you") -> list[dict]:
    return [{"role": "user", "content": text}]


def check_record(record: dict, model: models.Model, usage, *, streamed: bool) -> None:
    """A completed call's record: the upstream's numbers as the SDK saw them, and their price."""
    seen = (usage.prompt_tokens, usage.completion_tokens)
    assert (record["prompt_tokens"], record["completion_tokens"]) == seen
    assert record["ending"] == "completed"
    assert record["source"] == "upstream"
    assert (record["model"], record["model_served"]) == (model.name, model.name)
    assert bool(record["streamed"]) == streamed
    assert record["upstream_status"] == 200
    assert record["attempts"] == 1
    assert record["started_at"] <= record["first_byte_at"] <= record["ended_at"]
    assert record["upstream_cost_pusd"] == model.cost_pusd(*seen)
    assert record["charge_nusd"] == model.charge_nusd(*seen)
    assert record["charge_nusd"] <= record["hold_nusd"]


def pytest_terminal_summary(terminalreporter):
    for database, rows in ROWS:
        for row in rows:
            said = ", ".join(f"{name} {value}" for name, value in row.items())
            terminalreporter.write_line(f"{database}: {said}")
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        for name, output in SAID.items():
            terminalreporter.section(name)
            terminalreporter.write_line(output)
