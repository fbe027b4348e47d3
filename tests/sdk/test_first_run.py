"""What a new user sees on a fresh SQLite file: a key and lines to paste, which work."""

import os
import subprocess
import sys
from pathlib import Path

import openai
from books import Sqlite
from conftest import BINARY
from servers import Tollgate, environment


def first_steps(server: Tollgate) -> tuple[str, str, str]:
    """The key, the curl line and the Python line that it printed."""

    def printed():
        lines = server.out.read_text().splitlines()
        key = [line for line in lines if line.startswith("API key (shown once): ")]
        curl = [line for line in lines if line.startswith("curl ")]
        python = [line for line in lines if line.startswith("python3 ")]
        return (key[0].split()[-1], curl[0], python[0]) if key and curl and python else None

    return server.poll("first steps", printed)


def paste(line: str, folder: Path) -> str:
    """Runs a line as a shell would, with the Python that has the SDK."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env=environment({"PATH": path}),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done
    return done.stdout


def test_the_demo_answers_to_the_printed_lines(tmp_path):
    database = Sqlite(tmp_path)
    env = {"DATABASE_URL": database.url, "TOLLGATE_LISTEN": "127.0.0.1:0"}
    server = Tollgate("tollgate-demo", BINARY, env, tmp_path)
    try:
        server.wait()
        _, curl, python = first_steps(server)
        assert paste(curl, tmp_path).rstrip().endswith("data: [DONE]")
        assert "demo" in paste(python, tmp_path).lower(), "it says that it is a demo"
        assert server.stop() == 0
        server.run("verify")
    finally:
        server.stop()
    records = database.rows("SELECT streamed, ending, source FROM usage_records")
    assert sorted(record["streamed"] for record in records) == [0, 1]
    endings = {(record["ending"], record["source"]) for record in records}
    assert endings == {("completed", "upstream")}


def test_with_an_upstream_the_printed_lines_name_a_model_that_it_has(stack):
    if not isinstance(stack.database, Sqlite):
        assert "API key" not in stack.tollgate.out.read_text(), "on PostgreSQL nothing is made"
        return
    key, curl, python = first_steps(stack.tollgate)
    with openai.OpenAI(base_url=stack.base_url, api_key=key) as client:
        names = [model.id for model in client.models.list()]
    assert any(f'"model":"{name}"' in curl for name in names), curl
    assert any(f'model="{name}"' in python for name in names), python
