"""The web console in Chromium, over books made by real requests: what it shows is held against the
tables, what its buttons do against the API, and how it is built against axe-core's rules."""

import os
import threading
import time
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import openai
import pytest
from books import Books
from conftest import messages, own_server
from models import GATED, HOSTILE, PLAIN, UNICODE
from people import (
    ENTER,
    NARROW,
    PASSWORD,
    TAB,
    WIDE,
    Auth,
    at_console,
    dollars,
    go,
    nano,
    owner_of,
    rows,
    settled,
    sign_in,
    sign_in_as,
    signing_in,
    submit,
    text,
)
from servers import serving

AXE = Path(os.environ["SDK_TESTS_NODE_MODULES"]) / "axe-core" / "axe.min.js"
HOSTILE_KEY = '"><img src=x onerror=alert(3)><script>alert(4)</script>'


class Refusing(BaseHTTPRequestHandler):
    """A webhook's receiver that wants nothing until it is told to."""

    wants = threading.Event()

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204 if self.wants.is_set() else 410)
        self.end_headers()

    def log_message(self, *_):
        """Nothing on the terminal."""


class House:
    """A Tollgate with a console, a sink and users, and an account with some calls behind it."""

    def __init__(self, server, database, base_url, auth, upstream):
        self.server, self.database, self.base_url, self.auth = server, database, base_url, auth
        self.upstream = upstream
        self.origin = base_url.removesuffix("/v1")
        run = server.run
        self.account = run("account", "create", "--name", "<b>Shop</b> & sons", "--credit", "5")
        self.key = run("key", "create", "--account", self.account, "--name", "shop")
        house = run("account", "create", "--name", "house")
        self.operator = run("key", "create", "--account", house, "--role", "service")
        self.email = "owner@example.com"
        owner_of(server, self.account, self.email)
        self.books = Books(database, self.account)
        for model in (PLAIN, UNICODE, HOSTILE):
            for stream in (False, True):
                self.ask(self.key, model, stream)
        self.records = self.books.settled(6)

    def ask(self, key: str, model, stream: bool = False) -> None:
        with openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=0) as client:
            answer = client.chat.completions.create(
                model=model.name, messages=messages(), stream=stream
            )
            for _ in answer if stream else ():
                pass


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def house(request, tmp_path_factory, scripted):
    folder = tmp_path_factory.mktemp("console")
    Refusing.wants.clear()
    with serving(Refusing) as hooks, serving(Auth) as auth:
        more = {
            "TOLLGATE_WEBHOOK_URL": f"{hooks}/hooks",
            "TOLLGATE_WEBHOOK_SECRET": "whsec_dG9sbGdhdGUtc2RrLXRlc3RzLTAxMjM0NTY3ODk=",
        }
        more |= signing_in(auth)
        with own_server("console", request.param, folder, scripted, more) as made:
            yield House(*made, auth, scripted)


@pytest.fixture
def console(chromium, house):
    """A tab at the console, which must not have left it."""
    with at_console(chromium, house.origin) as page:
        yield page
        allowed = (house.origin, house.auth, "data:,")
        assert [url for url in page.requested() if not url.startswith(allowed)] == []


def test_an_account_sees_what_the_books_say(console, house):
    sign_in(console, house.key)
    settled(console)
    row = house.books.account_row()
    assert nano(console.value(text("#balance"))) == row["balance_nusd"]
    assert nano(console.value(text("#available"))) == row["balance_nusd"]
    charged = sum(record["charge_nusd"] for record in house.books.records())
    assert row["balance_nusd"] == 5 * 10**9 - charged, "something was spent"
    assert nano(console.value(text("#spent"))) == charged
    models = {}
    for record in house.books.records():
        used = models.setdefault(record["model"], [0, 0, 0, 0])
        more = (1, record["prompt_tokens"], record["completion_tokens"], record["charge_nusd"])
        models[record["model"]] = [one + other for one, other in zip(used, more)]
    shown = {
        name: [*(int(cell.replace(",", "")) for cell in cells[:3]), nano(cells[3])]
        for name, *cells in rows(console, "#by-model")
    }
    assert shown == models, "names that look like markup are text"
    # The chart: its figures, by day and model, and something drawn.
    console.wait("document.querySelector('#spend-chart canvas').width > 100", True)
    table = rows(console, "#spend-chart table")
    assert len(table) == 7
    assert sum(nano(cell) for _, *cells in table for cell in cells) == charged
    drawn = (
        "(canvas => { const {data} = canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height);"
        " return new Set(new Uint32Array(data.buffer)).size > 3; })"
        "(document.querySelector('#spend-chart canvas'))"
    )
    console.wait(drawn, True)
    picture = "document.querySelector('#spend-chart canvas').toDataURL()"
    ground = "getComputedStyle(document.body).backgroundColor"
    light = console.value(picture), console.value(ground)
    console.value(
        "(choice => { choice.value = 'dark'; choice.dispatchEvent(new Event('change')); })"
        "(document.getElementById('theme'))"
    )
    dark = console.value(picture), console.value(ground)
    assert light[0] != dark[0] and light[1] != dark[1], "the chart goes with the theme"
    assert len(rows(console, "#latency-chart table")) == 7
    today = rows(console, "#latency-chart table")[-1]
    assert all(cell.endswith(" ms") for cell in today[1:]), today
    assert console.value("document.querySelector('nav').textContent") == "Account"


def test_what_is_under_way_is_shown(console, house):
    key = house.server.run("key", "create", "--account", house.account)
    before = len(house.books.records())
    asking = threading.Thread(target=house.ask, args=(key, GATED, True))
    asking.start()
    try:
        deadline = time.monotonic() + 30
        while not house.books.holds() and time.monotonic() < deadline:
            time.sleep(0.02)
        sign_in(console, house.key)
        settled(console)
        (hold,) = house.books.holds()
        ((model, *_, amount),) = rows(console, "#live-requests")
        assert (model, nano(amount)) == (GATED.name, hold["amount_nusd"])
        assert nano(console.value(text("#held"))) == hold["amount_nusd"]
    finally:
        house.upstream.open_gate(house.account)
        asking.join()
    house.books.settled(before + 1)
    # It asks again by itself.
    console.wait(text("#live-requests"), "No request is under way.")


def test_an_owner_makes_a_key_and_ends_it(console, house):
    sign_in_as(console, house)
    go(console, "keys")
    console.click("new-key")
    submit(console, "name", HOSTILE_KEY)
    submit(console, "day", "1.x")
    console.press(*ENTER)
    console.wait(text("dialog .error"), "Please give an amount like 5 or 0.50, or none.")
    console.value("document.querySelector('[name=day]').value = '1.50'")
    console.press(*ENTER)
    console.wait("document.getElementById('secret') !== null", True)
    secret = console.value("document.getElementById('secret').value")
    before = len(house.books.records())
    house.ask(secret, PLAIN)
    house.books.settled(before + 1)
    console.press("Escape", 27)
    console.wait("document.getElementById('dialog').open", False)
    settled(console)
    newest = rows(console, "#key-list")[0]
    assert newest[0] == HOSTILE_KEY and newest[2] == "in use"
    (row,) = house.database.rows("SELECT * FROM api_keys WHERE name = ?", HOSTILE_KEY)
    sql = "SELECT * FROM key_budgets WHERE api_key_id = ?"
    (budget,) = house.database.rows(sql, row["id"])
    assert budget["day_limit_nusd"] == 1_500_000_000
    console.wait("document.getElementById('dialog').textContent", "")
    assert secret not in console.value("document.documentElement.outerHTML")

    console.click_at("document.querySelector('#key-list tbody .danger')")
    console.click_at("document.querySelector('dialog .primary')")
    console.wait("document.getElementById('dialog').open", False)
    console.wait(text("#key-list tbody tr td:nth-child(3)"), "ended")
    with pytest.raises(openai.AuthenticationError):
        house.ask(secret, PLAIN)


def test_a_wrong_password_and_a_lost_key_are_told(console, house):
    submit(console, "email", house.email)
    submit(console, "password", "wrong")
    console.press(*ENTER)
    console.wait(text("main > .error"), "E-mail address or password is wrong.")
    submit(console, "key", "sk-tg-nonsense")
    console.press(*ENTER)
    console.wait(text("main > .error"), "Incorrect API key provided. Please sign in.")
    key = house.server.run("key", "create", "--account", house.account, "--name", "lost")
    sign_in(console, key)
    settled(console)
    (row,) = house.database.rows("SELECT id FROM api_keys WHERE name = ?", "lost")
    house.server.run("key", "revoke", row["id"])
    # The server notices within a second.
    deadline = time.monotonic() + 20
    while console.value(text("h1")) != "Sign in" and time.monotonic() < deadline:
        console.value("document.querySelector('.range select').dispatchEvent(new Event('change'))")
        time.sleep(0.2)
    console.wait(text("main > .error"), "Incorrect API key provided. Please sign in.")
    assert console.value("sessionStorage.getItem('tollgate-session')") is None


def test_a_users_token_is_renewed_and_signing_out_forgets_it(console, house):
    Auth.spoilt = 1
    submit(console, "email", house.email)
    submit(console, "password", PASSWORD)
    console.press(*ENTER)
    console.wait("document.getElementById('nav').hidden", False)
    settled(console)
    assert Auth.spoilt == 0
    assert [url for url in console.requested() if "grant_type=refresh_token" in url]
    assert console.value("document.querySelector('nav').textContent") == "AccountKeys"
    console.click("sign-out")
    console.wait(text("h1"), "Sign in")
    assert console.value("sessionStorage.length") == 0
    console.call("Page.reload")
    console.wait(text("h1"), "Sign in")


def test_an_operator_sees_margins_and_sends_parked_events(console, house):
    sign_in(console, house.operator)
    go(console, "margins")
    records = house.database.rows("SELECT * FROM usage_records")
    expected = {}
    for record in records:
        sums = expected.setdefault(record["model"], [0, Decimal(0), Decimal(0)])
        charge = Decimal(record["charge_nusd"]) / 10**9
        cost = Decimal(record["upstream_cost_pusd"]) / 10**12
        more = (1, charge, cost)
        expected[record["model"]] = [one + other for one, other in zip(sums, more)]
    shown = {}
    for name, requests, charge, cost, failed, margin, *_ in rows(console, "#margins"):
        shown[name] = [int(requests), dollars(charge), dollars(cost)]
        assert dollars(margin) == dollars(charge) - dollars(cost) - dollars(failed)
    assert shown == expected
    days = rows(console, "#margin-chart table")
    assert sum(dollars(day[1]) for day in days) == sum(row[1] for row in expected.values())
    assert sum(dollars(day[2]) for day in days) == sum(row[2] for row in expected.values())
    console.value(
        "(choice => { choice.value = 'account'; choice.dispatchEvent(new Event('change')); })"
        "(document.querySelectorAll('.range select')[1])"
    )
    console.wait(text("#margins tbody th"), "<b>Shop</b> & sons")

    go(console, "accounts")
    names = [row[0] for row in rows(console, "#accounts")]
    assert set(names) >= {"<b>Shop</b> & sons", "house"}
    balance = nano(rows(console, "#accounts")[names.index("<b>Shop</b> & sons")][3])
    assert balance == house.books.account_row()["balance_nusd"]
    go(console, "drift")
    assert {row[0] for row in rows(console, "#drift-list")} >= {PLAIN.name, HOSTILE.name}
    go(console, "health")
    assert console.value(text("#readiness")) == "ready"
    assert rows(console, "#upstreams")[0][:2] == ["openrouter", "openrouter"]

    parked = "SELECT * FROM billing_events WHERE state = 'parked' AND kind = 'usage'"
    wait_for(lambda: len(house.database.rows(parked)) >= len(records))
    waits = "SELECT id FROM billing_events WHERE state = 'waiting'"
    wait_for(lambda: not house.database.rows(waits))
    go(console, "sinks")
    events = house.database.rows("SELECT * FROM billing_events WHERE state = 'parked'")
    ((_, _, waiting, _, count, _),) = rows(console, "#sink-list")
    assert (int(waiting), int(count)) == (0, len(events))
    first = rows(console, "#parked-events")[0]
    assert first[1] == "webhook"
    Refusing.wants.set()
    console.click_at("document.querySelector('#parked-events tbody button')")
    # By its kind too: a request may have several.
    sent = "SELECT * FROM billing_events WHERE state = 'exported' AND kind = ?"
    wait_for(lambda: house.database.rows(sent, first[2]))
    ids = [row["request_id"] for row in house.database.rows(sent, first[2])]
    assert ids == [first[0]]
    audit = house.database.rows("SELECT * FROM audit_log WHERE action = 'event.retry'")
    assert len(audit) == 1


def wait_for(ready) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_nothing_and_nothing_is_cut_off(console, house, scheme, size):
    emulated = [{"name": "prefers-color-scheme", "value": scheme}]
    console.call("Emulation.setEmulatedMedia", features=emulated)
    console.call("Emulation.setDeviceMetricsOverride", **size)
    console.value(AXE.read_text() + "; 0")
    check_with_axe(console, "sign in")
    sign_in(console, house.operator)
    for view in ("account", "keys", "accounts", "margins", "sinks", "drift", "health"):
        go(console, view)
        picture(console, f"{scheme}-{size['width']}-{view}")
        check_with_axe(console, view)
        if view == "keys":
            console.click("new-key")
            check_with_axe(console, "a dialog")
            console.press("Escape", 27)
    console.click("sign-out")
    console.wait(text("h1"), "Sign in")
    sign_in(console, house.key)
    settled(console)
    console.wait("document.querySelector('#spend-chart canvas').width > 100", True)
    picture(console, f"{scheme}-{size['width']}-shop")
    console.click_at("document.querySelector('#spend-chart button')")
    check_with_axe(console, "the account of a customer, with the table of a chart")


def check_with_axe(page, what: str) -> None:
    found = page.value(
        "axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations"
        ".map(({id, impact, nodes}) => `${impact} ${id}: ${nodes.map((it) => it.html)}`))"
    )
    assert found == [], what
    assert page.value("document.documentElement.scrollWidth <= innerWidth"), f"{what} is too wide"


def picture(page, name: str) -> None:
    """For whoever wants to look: SDK_TESTS_PICTURES names a folder."""
    folder = os.environ.get("SDK_TESTS_PICTURES")
    if not folder:
        return
    import base64

    time.sleep(0.5)
    taken = page.call("Page.captureScreenshot", captureBeyondViewport=True)
    Path(folder, f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


def test_it_works_with_the_keyboard_alone(console, house):
    """From the address bar: the link past the navigation, the key, a view, the table of a chart."""
    assert console.value("document.activeElement.name") in ("email", "key")
    submit(console, "key", house.key)
    console.press(*ENTER)
    settled(console)
    console.call("Page.reload")
    console.wait("document.getElementById('nav')?.hidden", False)
    settled(console)
    seen = []
    for _ in range(40):
        console.press(*TAB)
        focused = "document.activeElement"
        seen.append(console.value(f"{focused}.textContent.trim() || {focused}.id"))
        outline = console.value(f"getComputedStyle({focused}).outlineStyle")
        assert outline != "none" or seen[-1] == "main", f"the focus shows on {seen[-1]}"
        if seen[-1] == "Show the table":
            break
    assert seen[:2] == ["Skip to the contents", "Account"], seen
    assert seen[-1] == "Show the table", seen
    assert console.value(f"{focused}.getAttribute('aria-expanded')") == "false"
    console.press(*ENTER)
    assert console.value(f"{focused}.getAttribute('aria-expanded')") == "true"
    shown = "document.querySelector('#spend-chart table').getBoundingClientRect().width"
    assert console.value(shown) > 200
