"""`POST /v1/score` and `/v1/xray`: what texts cost, and what neurons do; read by the threads of schedulers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from textlstm.metrics import Score, total
from textlstm.server.hub import Hub, Inbox, Served
from textlstm.server.protocol import ScoreBody, XrayBody
from textlstm.server.scheduler import Job, Token
from textlstm.server.writing import LEAST, Transcript, encode, read_all, require, starting_point
from textlstm.tokenizer import text_to_bytes

_LONGEST_XRAY = 20_000


async def score(hub: Hub, served: Served, body: ScoreBody) -> dict[str, Any]:
    """The scores of some texts, each from the model's start or after the context, under the protocol `stream`.

    Raises:
        ApiError: an empty text, one that is too long, or no room.
    """
    texts = [body.text] if isinstance(body.text, str) else body.text
    settings = hub.settings
    require(all(texts), "a text must not be empty", "text")
    require(len(texts) <= settings.max_prompts, f"at most {settings.max_prompts} texts in a request", "text")
    top = 0 if body.top_logprobs is None else body.top_logprobs
    require(top <= settings.max_logprobs, f"at most {settings.max_logprobs} logprobs", "top_logprobs")
    context = await encode(served, body.context or "")
    inbox, jobs, deadline = Inbox(), [], time.monotonic() + settings.timeout
    for text in texts:
        ids = await encode(served, text)
        size = len(context) + len(ids)
        message = f"the text has {size} tokens with its context, at most {settings.max_prompt_tokens} are read"
        require(size <= settings.max_prompt_tokens, message, "text", "context_length_exceeded")
        jobs.append(Job(inbox, np.concatenate([context, ids]), [], top=top, deadline=deadline))
    measured = await read_all(hub, served.scorer, inbox, jobs)
    data = []
    for index, (text, tokens) in enumerate(zip(texts, measured, strict=True)):
        tokens = tokens[len(context) :]
        nats = -sum(token.logprob or 0.0 for token in tokens)
        one = Score("stream", len(text), len(text_to_bytes(text)), len(tokens), nats)
        data.append((one, {"index": index, **_ratios(one), **(_tokens(served, tokens) if body.tokens else {})}))
    return {
        "object": "list", "model": served.name, "data": [entry for _, entry in data],
        "total": _ratios(total([one for one, _ in data])),
    }  # fmt: skip


async def xray(hub: Hub, served: Served, body: XrayBody) -> dict[str, Any]:
    """Outputs of some neurons after each token of a text, between -1 and 1.

    Without a choice, the neurons whose outputs vary most.

    Raises:
        ApiError: a layer or neuron that there is not, a text that is too long, or no room.
    """
    config = served.model.config
    layer = config.num_layers - 1 if body.layer is None else body.layer
    require(layer < config.num_layers, f"layers are 0 to {config.num_layers - 1}", "layer")
    require(all(n < config.hidden_size for n in body.neurons or ()), f"a layer has {config.hidden_size}", "neurons")
    ids = await encode(served, body.text)
    require(len(ids) <= _LONGEST_XRAY, f"at most {_LONGEST_XRAY} tokens are looked at", "text")
    start = await starting_point(hub, served, body.state)
    inbox = Inbox()
    job = Job(inbox, ids, [], start, trace=[], deadline=time.monotonic() + hub.settings.timeout)
    await read_all(hub, served.scorer, inbox, [job])
    transcript = Transcript(served, 0)
    transcript.take(body.text, [Token(id) for id in ids.tolist()], "length")
    values_TH = np.array(job.trace)[:, layer] if len(ids) else np.zeros((0, config.hidden_size))
    liveliest = np.argsort(-values_TH.std(axis=0), kind="stable")[:6].tolist() if len(ids) else list(range(6))
    neurons = liveliest if body.neurons is None else body.neurons
    return {
        "object": "xray", "model": served.name, "layer": layer, "neurons": neurons, "chars": len(body.text),
        "offsets": [entry.offset for entry in transcript.entries],
        "values": values_TH[:, neurons].T.round(4).tolist(),
    }  # fmt: skip


def _ratios(score: Score) -> dict[str, Any]:
    return score.to_dict()


def _tokens(served: Served, tokens: list[Token]) -> dict[str, Any]:
    def clamp(value: float | None) -> float:
        return max(value or 0.0, LEAST)

    return {
        "token_ids": [token.id for token in tokens],
        "token_strs": [served.strings[token.id] for token in tokens],
        "token_logprobs": [clamp(token.logprob) for token in tokens],
        "top_logprobs": [[[id, served.strings[id], clamp(value)] for id, value in token.top] for token in tokens],
    }
