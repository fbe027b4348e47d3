"""The reference for Tollgate's own count: tiktoken itself."""

import os
from importlib.util import find_spec
from pathlib import Path

# tiktoken fetches its vocabularies; LiteLLM ships them in the form of tiktoken's cache. Found
# without importing LiteLLM, which takes seconds.
PACKAGE = Path(find_spec("litellm").submodule_search_locations[0])
os.environ["TIKTOKEN_CACHE_DIR"] = str(PACKAGE / "litellm_core_utils" / "tokenizers")

import tiktoken  # noqa: E402  (reads the variable when it is first used)

VOCABULARY = tiktoken.get_encoding("o200k_base")


def count(text: str) -> int:
    return len(VOCABULARY.encode(text, disallowed_special=()))


def check_count(record: dict, text: str, *, exact: bool) -> None:
    """Tollgate counted what it passed on, and says whether it knew the model's vocabulary."""
    assert record["counted_completion_tokens"] == count(text)
    assert record["counter"] == "o200k_base"
    assert bool(record["counter_exact"]) == exact
