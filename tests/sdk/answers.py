"""What the scripted provider says, in OpenRouter's form: the bytes of each answer are made here."""

import json

from counting import count
from models import Model

PROMPT_TOKENS = 20
DONE = b"data: [DONE]\n\n"
# A comment keeps the connection busy while the provider thinks; clients have to leave it alone.
COMMENT = b": OPENROUTER PROCESSING\n\n"
# Stands for a number that JSON writers would round.
COST = "@cost"
PIECE_CHARS = 5


def usage_of(model: Model, choices: int = 1) -> dict:
    """What a whole answer uses."""
    said = [model.text, *(part for call in model.calls for part in call)]
    return usage(sum(count(text) for text in said) * choices)


def usage(completion_tokens: int) -> dict:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": completion_tokens,
        "total_tokens": PROMPT_TOKENS + completion_tokens,
    }


def usd(model: Model, used: dict) -> str | None:
    """What it costs, in full."""
    if model.prompt_usd is None:
        return None
    cost = model.prompt_usd * used["prompt_tokens"]
    return format(cost + model.completion_usd * used["completion_tokens"], "f")


def pieces(text: str) -> list[str]:
    """Cut without regard for what belongs together."""
    return [text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS)]


def logprobs(tokens) -> dict:
    content = [
        {"token": token, "logprob": -0.25, "bytes": list(token.encode()), "top_logprobs": []}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


class Answer:
    """One answer; with its price where the caller has one to be told."""

    def __init__(self, model: Model, body: dict, number: int, *, shows_cost: bool):
        self.model, self.body, self.shows_cost = model, body, shows_cost
        self.id, self.choices = f"gen-{number:06}", body.get("n") or 1
        self.used = usage_of(model, self.choices)

    def whole(self) -> bytes:
        """As one document."""
        calls = [
            {"id": f"call_{index}", "type": "function", "index": index}
            | {"function": {"name": name, "arguments": arguments}}
            for index, (name, arguments) in enumerate(self.model.calls)
        ]
        message = {"role": "assistant", "content": self.model.text or None, "refusal": None}
        message |= {"tool_calls": calls} if calls else {}
        choice = {"message": message, "logprobs": None} | self._finish()
        if self.model.tokens:
            choice["logprobs"] = logprobs(self.model.tokens)
        choices = [{"index": index} | choice for index in range(self.choices)]
        return self._json("chat.completion", choices, self.used)

    def events(self) -> list[bytes]:
        """As a stream: the choices side by side, then the usage."""
        each = [delta | {"index": index} for delta in self._deltas() for index in range(self.choices)]
        ends = [{"index": index, "delta": {}} | self._finish() for index in range(self.choices)]
        events = [self._event([choice]) for choice in each + ends]
        return [COMMENT, *events, self._event([], self.used), DONE]

    def _deltas(self) -> list[dict]:
        if self.model.tokens:
            return [
                {"delta": {"role": "assistant", "content": token}, "logprobs": logprobs([token])}
                for token in self.model.tokens
            ]
        if self.model.calls:
            deltas = [{"role": "assistant", "content": None}]
            deltas += [{"tool_calls": [piece]} for piece in self._fragments()]
        else:
            deltas = [
                {"role": "assistant", "content": piece} for piece in pieces(self.model.text)
            ]
        return [{"delta": delta} for delta in deltas]

    def _fragments(self) -> list[dict]:
        """One call after another, each with its name first and its arguments in pieces."""
        fragments = []
        for index, (name, arguments) in enumerate(self.model.calls):
            head = {"index": index, "id": f"call_{index}", "type": "function"}
            fragments.append(head | {"function": {"name": name, "arguments": ""}})
            fragments += [
                {"index": index, "function": {"arguments": piece}} for piece in pieces(arguments)
            ]
        return fragments

    def _finish(self) -> dict:
        reason = "tool_calls" if self.model.calls else "stop"
        return {"finish_reason": reason, "native_finish_reason": reason}

    def _event(self, choices: list, used: dict | None = None) -> bytes:
        choices = [{"finish_reason": None} | choice for choice in choices]
        return b"data: " + self._json("chat.completion.chunk", choices, used) + b"\n\n"

    def _json(self, kind: str, choices: list, used: dict | None) -> bytes:
        body = {"id": self.id, "provider": "OpenAI", "model": self.model.name, "object": kind}
        body |= {"created": 1764000000, "choices": choices}
        cost = usd(self.model, used) if used and self.shows_cost else None
        if used:
            details = {"cost_details": {"upstream_inference_cost": None}, "is_byok": False}
            body["usage"] = used | ({"cost": COST} | details if cost else {})
        text = json.dumps(body, ensure_ascii=False)
        return text.replace(f'"{COST}"', cost or "").encode()


def generation(id: str, model: Model, completion_tokens: int) -> bytes:
    """What `GET /generation` says of it afterwards."""
    used = usage(completion_tokens)
    data = {"id": id, "model": model.name, "provider_name": "OpenAI", "is_byok": False}
    data |= {"tokens_prompt": 1, "tokens_completion": 1, "total_cost": COST}
    data |= {"native_tokens_prompt": used["prompt_tokens"]}
    data |= {"native_tokens_completion": used["completion_tokens"]}
    return json.dumps({"data": data}).replace(f'"{COST}"', usd(model, used)).encode()
