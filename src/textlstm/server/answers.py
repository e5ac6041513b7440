"""What the API gives: completion and chat objects, whole or in chunks, and their log-probabilities."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from textlstm.server.hub import END, Served
from textlstm.server.protocol import Message
from textlstm.server.stream import encode, event
from textlstm.server.writing import LEAST, Entry, Piece, Transcript, Work, finish_reason

Object = dict[str, Any]

# The dialogue template: a turn is its speaker, a colon and its text, and ends with an empty line; system messages
# have no speaker. The model goes on after "Assistant:" until the user would speak.
_SPEAKERS = {"user": "User: ", "assistant": "Assistant: ", "system": "", "developer": ""}
DIALOGUE_STOP = ("\nUser:", "\n\nUser:")


def dialogue(messages: Sequence[Message]) -> str:
    """A chat as plain text that the model continues."""
    turns = []
    for message in messages:
        content = message.content
        text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
        turns.append(f"{_SPEAKERS[message.role]}{text.strip()}\n\n")
    return "".join(turns) + "Assistant:"


def piece(served: Served, id: int) -> str | list[int]:
    """The text of a token, or its bytes where they are no text."""
    data = served.model.tokenizer.token_bytes(id) if id != served.end_id else END.encode()
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


class Answer:
    """How a kind of request is answered.

    Args:
        work: the request.
    """

    prefix = name = chunk_name = ""

    def __init__(self, work: Work) -> None:
        self._work, self._body, self._served = work, work.body, work.served
        self._measured = work.plan.top is not None
        self._head: Object = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}", "object": self.name, "created": int(time.time()),
            "model": work.served.name, "system_fingerprint": work.served.fingerprint,
        }  # fmt: skip
        options = work.body.stream_options
        self._usage = options is not None and bool(options.include_usage)
        # All chunks of a stream are alike but for what stands between these.
        self._before, _, self._after = event(self._chunk([])).rpartition(b"[]")

    def whole(self, choices: Sequence[Transcript]) -> Object:
        """The answer in one object."""
        made = [{**self._choice(c, c.text, c.entries), **self._end(c), **self._prompt(c)} for c in choices]
        return {**self._head, "choices": made, "usage": self._work.usage(), **self._extra()}

    def events(self, pieces: Sequence[Piece]) -> bytes:
        """What a stream tells at once, one event for each choice."""
        made = (self._delta(*piece) | self._end(piece.choice) for piece in pieces)
        return b"".join(b"%s[%s]%s" % (self._before, encode(choice).encode(), self._after) for choice in made)

    def last_event(self) -> bytes:
        """What a stream tells at its end, if anything."""
        return event({**self._chunk([]), "usage": self._work.usage(), **self._extra()}) if self._usage else b""

    def _chunk(self, choices: list[Object]) -> Object:
        usage = {"usage": None} if self._usage else {}
        return {**self._head, "object": self.chunk_name, "choices": choices, **usage}

    def _end(self, choice: Transcript) -> Object:
        return {"finish_reason": finish_reason(choice), "stop_reason": choice.stopped_by}

    def _extra(self) -> Object:
        saved = {} if self._work.saved is None else {"saved_state": self._work.saved}
        return {"timings": self._work.timings(), **saved}

    def _token(self, id: int) -> str:
        return f"token_id:{id}" if self._body.return_tokens_as_token_ids else self._served.strings[id]

    def _ids(self, entries: Sequence[Entry]) -> Object:
        return {"token_ids": [entry.id for entry in entries]} if self._body.return_token_ids else {}

    def _prompt(self, choice: Transcript) -> Object:
        """Log-probabilities of the prompt's tokens, as vLLM has them."""
        if self._work.plan.prompt_top is None:
            return {}
        return {"prompt_logprobs": [self._places(entry) for entry in self._work.prompt_entries(choice)]}

    def _places(self, entry: Entry) -> Object | None:
        if entry.logprob is None:
            return None
        top = entry.top[: self._work.plan.prompt_top]
        ranked = [(id, value, place) for place, (id, value) in enumerate(top, 1)]
        return {
            str(id): {"logprob": _number(value), "rank": rank, "decoded_token": self._served.strings[id]}
            for id, value, rank in [*ranked, (entry.id, entry.logprob, entry.rank)]
        }

    def _choice(self, choice: Transcript, text: str, entries: Sequence[Entry]) -> Object:
        raise NotImplementedError

    def _delta(self, choice: Transcript, text: str, entries: Sequence[Entry]) -> Object:
        return self._choice(choice, text, entries)


class Completion(Answer):
    """The text completion object."""

    prefix, name, chunk_name = "cmpl", "text_completion", "text_completion"

    def _choice(self, choice: Transcript, text: str, entries: Sequence[Entry]) -> Object:
        logprobs = self._logprobs(entries) if self._measured else None
        return {"index": choice.index, "text": text, "logprobs": logprobs, **self._ids(entries)}

    def _logprobs(self, entries: Sequence[Entry]) -> Object:
        return {
            "tokens": [self._token(entry.id) for entry in entries],
            "token_logprobs": [_number(entry.logprob) for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": [entry.offset for entry in entries],
        }

    def _top(self, entry: Entry) -> Object | None:
        if entry.logprob is None:
            return None
        likeliest = {self._token(id): _number(value) for id, value in entry.top}
        return likeliest | {self._token(entry.id): _number(entry.logprob)}


class Chat(Answer):
    """The chat completion object."""

    prefix, name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._begun: set[int] = set()

    def _choice(self, choice: Transcript, text: str, entries: Sequence[Entry]) -> Object:
        message = {"role": "assistant", "content": text.strip(), "refusal": None}
        return {"index": choice.index, "message": message, "logprobs": self._logprobs(entries), **self._ids(entries)}

    def _delta(self, choice: Transcript, text: str, entries: Sequence[Entry]) -> Object:
        delta: Object = {"content": text}
        if choice.index not in self._begun and (text := text.lstrip()):
            self._begun.add(choice.index)
            delta = {"role": "assistant", "content": text}
        elif choice.index not in self._begun:
            delta = {"content": ""}
        return {"index": choice.index, "delta": delta, "logprobs": self._logprobs(entries), **self._ids(entries)}

    def _logprobs(self, entries: Sequence[Entry]) -> Object | None:
        if not self._measured:
            return None
        return {"content": [self._entry(entry) for entry in entries], "refusal": None}

    def _entry(self, entry: Entry) -> Object:
        def one(id: int, value: float | None) -> Object:
            data = self._served.model.tokenizer.token_bytes(id)
            return {"token": self._token(id), "logprob": _number(value), "bytes": list(data)}

        return {**one(entry.id, entry.logprob), "top_logprobs": [one(id, value) for id, value in entry.top]}


def _number(value: float | None) -> float | None:
    return None if value is None else max(value, LEAST)
