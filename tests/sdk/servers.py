"""Starts LiteLLM and Tollgate as child processes, waits until they are ready, and ends them.

Everything listens on loopback and gets an environment made here, so that nothing set on the machine
(a key, a proxy, another database) has a say. A child dies with this process, however it ends.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import models

HERE = Path(__file__).parent
MASTER_KEY = "sk-sdk-tests-master"
START_SECONDS = 90
STOP_SECONDS = 20
PR_SET_PDEATHSIG = 1


@contextmanager
def serving(handler):
    """A server in this process, on loopback; its origin."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Server:
    """A child process with its output in a file."""

    def __init__(self, name: str, command: list, env: dict, folder: Path):
        self.name = name
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=environment(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                preexec_fn=die_with_parent,
            )

    def poll(self, what: str, ready):
        """Returns what `ready` gives as soon as that is something."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if (value := ready()) is not None:
                return value
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended before {what}:\n{self.output()}")
            time.sleep(0.05)
        raise AssertionError(f"{self.name}: no {what} within {START_SECONDS} s:\n{self.output()}")

    def output(self) -> str:
        """The end of what it has printed."""
        return "\n".join(path.read_text(errors="replace")[-4000:] for path in (self.out, self.err))

    def stop(self) -> int:
        """Asks it to end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.output()}") from None


class LiteLlm(Server):
    """A real LiteLLM proxy whose models are mocked by LiteLLM itself."""

    kind, key = "litellm", MASTER_KEY

    def __init__(self, folder: Path, provider: str):
        self.folder = folder
        # The hooks are looked for beside the configuration.
        shutil.copy(HERE / "litellm_hooks.py", folder)
        config = {
            "model_list": [model.entry(provider) for model in models.ALL],
            "general_settings": {"master_key": MASTER_KEY},
            "litellm_settings": {
                "callbacks": ["litellm_hooks.hooks"],
                "telemetry": False,
                "num_retries": 0,
            },
            # A mocked failure must not take its model out of service for the next test.
            "router_settings": {"disable_cooldowns": True, "num_retries": 0},
        }
        # JSON is YAML, except for the escapes of letters beyond 16 bits.
        (folder / "litellm.yaml").write_text(json.dumps(config, ensure_ascii=False))
        self.port = free_port()
        self.base_url = self.url("/v1")
        command = [Path(sys.executable).parent / "litellm", "--config", folder / "litellm.yaml"]
        command += ["--host", "127.0.0.1", "--port", self.port, "--telemetry", "False"]
        # Its price list ships with the package; by default it fetches a newer one at start.
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "SDK_TESTS_FOLDER": str(folder)}
        super().__init__("litellm", command, env, folder)

    def wait(self) -> None:
        """Until it answers."""
        self.poll("answer to /health/liveliness", lambda: get(self.url("/health/liveliness")))

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def asked(self, user: str) -> list[dict]:
        """The requests that have reached it for an account, as it got them."""
        path = self.folder / "asked.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [body for line in lines if (body := json.loads(line)).get("user") == user]

    def open_gate(self, user: str) -> None:
        (self.folder / f"{user}.gate").touch()


class Tollgate(Server):
    """The program under test."""

    def __init__(self, name: str, binary: Path, env: dict, folder: Path):
        self.binary, self.env, self.folder = binary, env, folder
        super().__init__(name, [binary], env, folder)

    def wait(self) -> str:
        """Its base URL, once it says that it listens."""

        def first_line():
            head, ended, _ = self.out.read_text().partition("\n")
            return head if ended else None

        says = "Tollgate listening on "
        line = self.poll("base URL", first_line)
        assert line.startswith(says), line
        return line.removeprefix(says)

    def connections(self, base_url: str) -> set[str]:
        """The other ends of those that it has not closed."""
        local = f"0100007F:{urllib.parse.urlsplit(base_url).port:04X}"
        # Established, or closed by the client only.
        open_states = {"01", "08"}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return {row[2] for row in rows if row[1] == local and row[3] in open_states}

    def wait_until_alone(self, base_url: str, others: set[str]) -> None:
        """Until it has closed every connection: then it knows of a client that has gone. Those of
        clients of earlier tests, which may be kept for as long as they like, do not count."""
        self.poll(
            "end of its connections", lambda: None if self.connections(base_url) - others else True
        )

    def run(self, *arguments: str) -> str:
        """A command beside the running server; what it prints."""
        done = subprocess.run(
            [self.binary, *arguments],
            env=environment(self.env),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"tollgate {arguments}: {done}"
        return done.stdout.strip()


def environment(own: dict) -> dict:
    """What a child gets: a PATH, a language, and its own settings."""
    inherited = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return inherited | {"LANG": "C.UTF-8"} | own


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A port that is free now, below the range from which connections get theirs."""
    for port in range(20000 + os.getpid() % 10000, 32000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no free port")


def get(url: str) -> bytes | None:
    """The answer, when there is one already."""
    # No proxy: this is loopback, whatever the machine's settings are.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return answer.read()
    except (urllib.error.URLError, OSError):
        return None
