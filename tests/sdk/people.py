"""A person at the console in Chromium: signs in, clicks, and reads what is shown. With as much of an
auth server as a browser asks for."""

import json
import time
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from uuid import uuid4

import jwt
from browser import open_page

JWT_SECRET = "the-secret-of-a-project-that-is-not-one"
ANON_KEY = "the-public-key"
PASSWORD = "correct horse"
TAB, ENTER = ("Tab", 9), ("Enter", 13)
NARROW = {"width": 360, "height": 720, "deviceScaleFactor": 1, "mobile": True}
WIDE = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}


class Auth(BaseHTTPRequestHandler):
    """As much of Supabase's auth server as a browser asks it for, at an origin of its own."""

    users: dict[str, str] = {}
    # The next tokens, so many, are over when they are given.
    spoilt = 0

    def do_OPTIONS(self):
        self.answer(200, {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "{}")
        grant = self.path.partition("grant_type=")[2]
        user = self.users.get(body.get("email") or body.get("refresh_token"))
        is_right = grant == "refresh_token" or body.get("password") == PASSWORD
        if self.headers["apikey"] != ANON_KEY:
            self.answer(401, {"msg": "no API key"})
        elif self.path.startswith("/auth/v1/logout"):
            self.answer(204, {})
        elif user and is_right:
            self.answer(200, {"access_token": self.token(user), "refresh_token": user})
        else:
            self.answer(400, {"error_code": "invalid_credentials", "msg": "<b>no</b>"})

    def token(self, user: str) -> str:
        now, lifetime = int(time.time()), 3600
        if type(self).spoilt > 0:
            type(self).spoilt -= 1
            lifetime = -120
        claims = {"iss": f"http://127.0.0.1:{self.server.server_port}/auth/v1", "sub": user}
        claims |= {"aud": "authenticated", "role": "authenticated", "is_anonymous": False}
        claims |= {"iat": now, "exp": now + lifetime}
        return jwt.encode(claims, JWT_SECRET, "HS256")

    def answer(self, status: int, body: dict) -> None:
        self.send_response(status)
        for name in ("Origin", "Headers", "Methods"):
            self.send_header(f"Access-Control-Allow-{name}", "*")
        self.send_header("Access-Control-Allow-Headers", "apikey, authorization, content-type")
        text = json.dumps(body).encode() if status != 204 else b""
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        """Nothing on the terminal."""


def signing_in(auth: str) -> dict:
    """What lets the users of that auth server in."""
    return {
        "SUPABASE_URL": auth,
        "SUPABASE_JWT_SECRET": JWT_SECRET,
        "SUPABASE_ANON_KEY": ANON_KEY,
    }


def owner_of(server, account: str, email: str) -> None:
    """Somebody who signs in with this address is a member of the account."""
    user = str(uuid4())
    Auth.users |= {email: user, user: user}
    server.run("member", "add", "--account", account, "--user", user)


@contextmanager
def at_console(chromium, origin: str):
    """A tab at the console; afterwards nothing may have gone wrong in it."""
    with open_page(chromium, f"{origin}/console") as page:
        page.call("Emulation.setDeviceMetricsOverride", **WIDE)
        # As if the window were in front: else nothing in it has the focus.
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        page.wait("document.querySelector('h1')?.textContent", "Sign in")
        yield page
        assert page.value("document.querySelectorAll('main img, main script').length") == 0
        assert page.complaints() == []
        assert [url for url in page.requested() if "sk-tg" in url or PASSWORD in url] == []


def text(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})?.textContent ?? null"


def submit(page, name: str, value: str) -> None:
    page.value(f"document.querySelector('[name={name}]').focus()")
    page.type(value)


def sign_in(page, key: str) -> None:
    submit(page, "key", key)
    page.press(*ENTER)
    page.wait("document.getElementById('nav').hidden", False)


def sign_in_as(page, house) -> None:
    submit(page, "email", house.email)
    submit(page, "password", PASSWORD)
    page.press(*ENTER)
    page.wait("document.getElementById('nav').hidden", False)


def go(page, view: str) -> None:
    page.click_at(f"document.querySelector('nav a[href=\"#/{view}\"]')")
    here = "document.querySelector('nav a[aria-current]').getAttribute('href')"
    page.wait(here, f"#/{view}")
    settled(page)


def settled(page) -> None:
    """Until every part of the view is there."""
    page.wait("document.querySelectorAll('main [aria-busy=true]').length", 0)
    page.wait("document.querySelectorAll('main .content').length > 0", True)


def rows(page, table: str) -> list[list[str]]:
    return page.value(
        f"[...document.querySelectorAll('{table} tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )


def dollars(shown: str) -> Decimal:
    sign = -1 if shown.startswith("−") else 1
    return sign * Decimal(shown.lstrip("−").removeprefix("$").replace(",", ""))


def nano(shown: str) -> int:
    return int(dollars(shown) * 10**9)
