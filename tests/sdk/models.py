"""The models behind Tollgate, what they say and cost, and the charge for a usage.

LiteLLM mocks them, or asks provider.py; provider.py knows them all. Prices are written once, as
decimal text, and reach LiteLLM as JSON numbers; the charge is computed from the same text with exact arithmetic, so that neither LiteLLM's floats nor Tollgate's rounding
can vouch for themselves.
"""

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal

# Tollgate's default, which the servers under test are started with.
MARKUP = Decimal("1.20")
NANO, PICO = Decimal("1e-9"), Decimal("1e-12")

# Where LiteLLM would call, were its answer not mocked: nothing listens there.
NOWHERE = "http://127.0.0.1:9/v1"


@dataclass(frozen=True)
class Model:
    """One of them."""

    name: str
    text: str
    prompt_usd: Decimal | None = Decimal("0.0000025")
    completion_usd: Decimal | None = Decimal("0.00001")
    # What LiteLLM's mock of it needs besides.
    params: dict = field(default_factory=dict)
    # Behind LiteLLM too it is answered by provider.py: no mock says such a thing.
    scripted: bool = False
    # The tools that it calls: name and arguments.
    calls: tuple = ()
    # Its text as tokens, told with their probabilities.
    tokens: tuple = ()

    def charge_nusd(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What the client owes: price times tokens times markup, rounded once, up."""
        cost = self.prompt_usd * prompt_tokens + self.completion_usd * completion_tokens
        return int((cost * MARKUP / NANO).to_integral_value(ROUND_CEILING))

    def cost_pusd(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What the operator owes; no price here is finer than a pico-USD."""
        cost = self.prompt_usd * prompt_tokens + self.completion_usd * completion_tokens
        assert cost % PICO == 0
        return int(cost / PICO)

    def entry(self, provider: str) -> dict:
        """The model as LiteLLM's configuration has it; `provider` is the scripted one's address."""
        info = {}
        if self.prompt_usd is not None:
            info["input_cost_per_token"] = float(self.prompt_usd)
            info["output_cost_per_token"] = float(self.completion_usd)
        params = {"model": f"openai/{self.name}", "api_base": NOWHERE, "api_key": "none"}
        if self.scripted:
            params["api_base"] = provider
        else:
            params |= {"mock_response": self.text} | self.params
        return {"model_name": self.name, "litellm_params": params, "model_info": info}

    def listed(self) -> dict:
        """The model as OpenRouter's list has it: prices are decimal text."""
        listed = {"id": self.name, "created": 1764000000, "context_length": 128_000}
        if self.prompt_usd is not None:
            prices = {"prompt": self.prompt_usd, "completion": self.completion_usd}
            listed["pricing"] = {kind: format(price, "f") for kind, price in prices.items()}
        return listed


# tiktoken knows this name, so Tollgate's own count is exact. LiteLLM multiplies with floats: by its
# reckoning this costs 0.00022500000000000002 dollars plain, and 0.00018500000000000002 streamed.
PLAIN = Model("gpt-4o", "Hello there! This is a mock of an answer, and it is short.")
# Slashes in the name; letters of two to four bytes, joined emoji, right-to-left, combining marks;
# prices with so many digits that nearly every charge has to be rounded.
UNICODE = Model(
    "house/multi/lingual",
    "Grüße aus Zürich 👩‍👩‍👧‍👦 — 日本語のテキスト, ελληνικά, עברית, हिन्दी, "
    'e\u0301, \u200b🏴󠁧󠁢󠁳󠁣󠁴󠁿, "quoted\\" \n\t end',
    Decimal("0.000000123457"),
    Decimal("0.000000457013"),
)
# A name that would be a script, were it ever taken for markup.
HOSTILE = Model("house/<script>alert(1)</script>\"><img src=x onerror=alert(2)>", PLAIN.text)
LONG = Model(
    "house/long",
    " ".join(f"Paragraph {n}: the quick brown fox jumps over the lazy dog." for n in range(120)),
    Decimal("0.000003"),
    Decimal("0.000015"),
)
ZURICH, GENEVA = ("weather", '{"city":"Zürich"}'), ("weather", '{"city":"Genève"}')
TOOLS = Model(
    "house/tools",
    "",
    params={
        "mock_tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": ZURICH[0], "arguments": ZURICH[1]},
            }
        ]
    },
    calls=(ZURICH,),
)
# The same call, streamed in fragments; and two of them in one answer.
FRAGMENTS = Model("house/fragments", "", scripted=True, calls=(ZURICH,))
PARALLEL = Model("house/parallel", "", scripted=True, calls=(ZURICH, GENEVA))
PROBABLE = Model("house/probable", "Zürich!", scripted=True, tokens=("Z", "ür", "ich", "!"))
# An answer in the form that was asked for.
CITY = Model("house/city", '{"city":"Zürich"}')
# These wait for a gate, see litellm_hooks.py.
GATED = Model("gated/stream", "One word after another. " * 20)
GATED_HEAD = Model("gated/head", PLAIN.text)
# A stream that fails in the middle.
BREAKS = Model("faults/breaks", GATED.text)
# LiteLLM's own spellings for mocked failures.
LIMITED = Model("faults/limited", "litellm.RateLimitError")
REJECTED = Model("faults/rejected", "litellm.ContextWindowExceededError")
FAILING = Model("faults/failing", "litellm.InternalServerError")
UNPRICED = Model("faults/unpriced", PLAIN.text, None, None)

ALL = [PLAIN, UNICODE, HOSTILE, LONG, TOOLS, FRAGMENTS, PARALLEL, PROBABLE, CITY]
ALL += [GATED, GATED_HEAD]
ALL += [BREAKS, LIMITED, REJECTED, FAILING, UNPRICED]
