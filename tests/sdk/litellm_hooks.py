"""Runs inside LiteLLM: writes down what it was asked, and holds answers back or breaks them.

LiteLLM loads this by its own callback setting. A test opens the gate of its account by making a
file of the account's name, so that «in the middle of a stream» is a state and not a matter of luck.
"""

import asyncio
import json
import os
from pathlib import Path

from litellm.integrations.custom_logger import CustomLogger

FOLDER = Path(os.environ["SDK_TESTS_FOLDER"])
CHUNKS_BEFORE = 3
# Longer than a connection that a browser keeps to itself is idle.
GATE_WAIT_SECONDS = 150


async def gate(user: str) -> None:
    """Waits until the test has opened the account's gate."""
    for _ in range(GATE_WAIT_SECONDS * 50):
        if (FOLDER / f"{user}.gate").exists():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(f"nobody opened the gate of {user}")


class Hooks(CustomLogger):
    """LiteLLM calls these around every request."""

    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        body = data["proxy_server_request"]["body"]
        with (FOLDER / "asked.jsonl").open("a") as asked:
            # LiteLLM adds objects of its own to the body.
            asked.write(json.dumps(body, default=repr) + "\n")
        if body["model"] == "gated/head":
            await gate(body["user"])
        return data

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict, response, request_data
    ):
        seen = 0
        async for chunk in response:
            yield chunk
            seen += 1
            if seen == CHUNKS_BEFORE and request_data["model"] == "gated/stream":
                await gate(request_data["user"])
            if seen == CHUNKS_BEFORE and request_data["model"] == "faults/breaks":
                raise RuntimeError("broken off by the test")


hooks = Hooks()
