"""The completions API against its contract, with the real client and over real sockets; the twenty points in order."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import math
import socket
import threading
import time

import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import serving, write_models
from test_generation import LETTERS, byte_model, make_model
from test_network import log_softmax, numpy_network, random_weights

from textlstm import metrics
from textlstm.config import SamplingConfig
from textlstm.generation import Limits
from textlstm.model import Model

PROMPT, END = "hallo", "<|endoftext|>"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), letters=make_model(), bytes=byte_model())


@pytest.fixture(scope="module")
def site(models):
    with serving(models, max_n=8, max_logprobs=5, max_body=200_000, max_prompt_tokens=5000) as site:
        yield site


@pytest.fixture(scope="module")
def client(site):
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def letters(models):
    return Model.load(models["letters"])


def error(content):
    assert set(content) == {"error"} and set(content["error"]) == {"message", "type", "param", "code"}
    return content["error"]


# 1


def test_the_openai_client(client, letters):
    done = client.completions.create(model="letters", prompt=PROMPT, max_tokens=30, seed=5, temperature=0.8)
    assert done.choices[0].text == letters.generate(PROMPT, max_tokens=30, seed=5, stop_at_end=True)
    assert (done.object, done.model, done.choices[0].index) == ("text_completion", "letters", 0)
    assert done.id.startswith("cmpl-") and done.system_fingerprint.startswith("fp_")
    assert abs(done.created - time.time()) < 60
    chunks = list(
        client.completions.create(model="letters", prompt=PROMPT, max_tokens=30, seed=5, temperature=0.8, stream=True)
    )
    assert "".join(c.choices[0].text for c in chunks) == done.choices[0].text
    assert [m.id for m in client.models.list()] == ["letters", "bytes"]
    assert client.models.retrieve("bytes").owned_by == "textlstm"
    for ask in (client.models.retrieve, lambda model: client.completions.create(model=model, prompt="a")):
        with pytest.raises(openai.NotFoundError) as refused:
            ask("no-such-model")
        assert refused.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="letters", prompt="a", temperature=3)
    assert refused.value.param == "temperature" and refused.value.type == "invalid_request_error"


def test_keys(models):
    with serving(models, api_keys=("one", "schlüssel")) as site:
        for key in ("one", "schlüssel"):
            assert site.get("/v1/models", authorization=f"Bearer {key}".encode())
        for wrong in (
            {},
            {"authorization": "Bearer two"},
            {"authorization": "one"},
            {"authorization": b"Bearer \xff"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/states", "/nowhere", "/tokenizer_info"):
                assert error(site.get(path, 401, **wrong))["type"] == "authentication_error"
            for path in ("/v1/completions", "/v1/chat/completions", "/v1/score", "/tokenize", "/detokenize"):
                error(site.post(path, {}, 401, **wrong))
        assert site.get("/health") == {"status": "ok"} and "<title>" in site.get("/")
        client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="bad", max_retries=0)
        with client, pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_every_route_asks_for_the_key(models):
    """The list is made from the router, so that a new route cannot be forgotten."""
    with serving(models, api_keys=("secret",)) as site:
        spec = site.get("/openapi.json", authorization="Bearer secret")
        public = {"/health", "/ready", "/ping", "/version"}
        for path, methods in spec["paths"].items():
            for method in methods:
                status, _, _ = site.request(method.upper(), path, {} if method == "post" else None)
                assert (status == 401) == (path not in public), path


# 2


def test_all_forms_of_prompts(site, letters):
    ids = letters.tokenizer.encode(PROMPT).tolist()
    other = letters.tokenizer.encode("vater").tolist()
    expected = [letters.generate(p, max_tokens=9, temperature=1, seed=1, stop_at_end=True) for p in (PROMPT, "vater")]
    for prompt in (PROMPT, ids, [PROMPT], [ids]):
        assert site.text(prompt, max_tokens=9) == expected[0]
    for prompts in ([PROMPT, "vater"], [ids, other]):
        answer = site.complete(prompts, max_tokens=9, n=3)
        assert [c["index"] for c in answer["choices"]] == list(range(6))
        assert [c["text"] for c in answer["choices"]][::3] == expected
        assert answer["usage"]["prompt_tokens"] == 10
        assert answer["usage"]["completion_tokens"] == sum(len(c["text"]) for c in answer["choices"])
    start = letters.generate("", max_tokens=9, temperature=1, seed=1, stop_at_end=True)
    assert site.text(None, max_tokens=9) == site.text("", max_tokens=9) == start
    assert site.post("/v1/completions", {"max_tokens": 9, "seed": 1})["choices"][0]["text"] == start
    for wrong in ([], [[]], [1, "a"], ["a", [1]], 7, {"a": 1}, [1.5], [[-1]], [99], [True]):
        assert error(site.complete(wrong, 400))["param"] == "prompt", wrong


def test_a_prompt_may_bring_its_own_boundary(site, letters):
    ids = letters.tokenizer.encode(PROMPT).tolist()
    assert site.text([22, *ids], max_tokens=9) == site.text(PROMPT, max_tokens=9)


# 3


def test_max_tokens(site):
    answer = site.complete(PROMPT, ignore_eos=True)
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21}
    assert answer["choices"][0]["finish_reason"] == "length"
    answer = site.complete(PROMPT, max_tokens=0, echo=True)
    assert answer["choices"][0]["text"] == PROMPT and answer["usage"]["completion_tokens"] == 0
    assert error(site.complete(PROMPT, 400, max_tokens=10**6))["param"] == "max_tokens"


# 4


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_has_one_entry_per_token(site, end, stream):
    fields = {"prompt": PROMPT, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "model": "letters"}
    if end:
        fields["logit_bias"] = {"22": 100}
    if stream:
        chunks = site.stream(**fields)
        parts = [c["choices"][0]["logprobs"] for c in chunks]
        logprobs = {key: list(itertools.chain.from_iterable(p[key] for p in parts)) for key in parts[0]}
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = site.complete(**fields)["choices"][0]
        logprobs, reason = choice["logprobs"], choice["finish_reason"]
    assert {key: len(value) for key, value in logprobs.items()} == dict.fromkeys(
        ["tokens", "token_logprobs", "top_logprobs", "text_offset"], 6
    )
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert None not in logprobs["token_logprobs"][1:] and None not in logprobs["top_logprobs"][1:]
    assert (logprobs["tokens"][-1] == "<|endoftext|>") == end and reason == ("stop" if end else "length")
    assert logprobs["text_offset"] == list(range(6))


# 5


def test_logprobs_are_what_score_says(site, letters):
    text = (LETTERS * 5)[3:90]
    choice = site.complete(text, max_tokens=0, echo=True, logprobs=0)["choices"][0]
    nats = metrics.token_nats(letters.engine, letters.tokenizer.encode(text))
    np.testing.assert_allclose([-x for x in choice["logprobs"]["token_logprobs"][1:]], nats[1:], rtol=1e-5)
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == text
    answer = site.post("/v1/score", {"text": text, "tokens": True})
    assert answer["total"]["nats"] == pytest.approx(letters.score(text).nats, rel=1e-6)
    single = metrics.token_nats(letters.scoring_engine, letters.tokenizer.encode(text))
    np.testing.assert_allclose([-x for x in answer["data"][0]["token_logprobs"]], single, rtol=1e-5)
    assert abs(single - nats).max() > 1e-4, "what writes is rounded, and what scores is not"


def test_logprobs_are_of_what_was_drawn_from(site, letters):
    """The writing engine's logits, computed here step by step."""
    choice = site.complete(PROMPT, max_tokens=20, logprobs=5, ignore_eos=True)["choices"][0]
    ids = letters.tokenizer.encode(PROMPT + choice["text"]).astype(np.int64)
    logits, state = letters.engine.begin(1)
    expected = []
    for id in ids:
        expected.append(log_softmax(logits)[0])
        logits, state = letters.engine.step(id[None], state)
    written = expected[len(PROMPT) :]
    chosen = [values[id] for values, id in zip(written, ids[len(PROMPT) :], strict=True)]
    np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], chosen, rtol=1e-9)
    best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"]]
    np.testing.assert_allclose(best, [values.max() for values in written], rtol=1e-9)


def test_one_engine_for_all(models, letters):
    with serving({"letters": models["letters"]}, engine="onnx") as site:
        served = site.hub.served["letters"]
        assert served.scorer is served.scheduler
        single = metrics.token_nats(letters.scoring_engine, letters.tokenizer.encode(PROMPT))
        logprobs = site.complete(PROMPT, max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]
        np.testing.assert_allclose([-x for x in logprobs["token_logprobs"][1:]], single[1:], rtol=1e-5)
        answer = site.post("/v1/score", {"text": PROMPT, "tokens": True})
        np.testing.assert_allclose([-x for x in answer["data"][0]["token_logprobs"]], single, rtol=1e-5)


def test_offsets_point_into_the_text(site):
    choice = site.complete("aé🦆", model="bytes", max_tokens=60, echo=True, logprobs=1)["choices"][0]
    text, logprobs = choice["text"], choice["logprobs"]
    places = [*logprobs["text_offset"], len(text)]
    assert places == sorted(places) and places[:7] == [0, 1, 1, 2, 2, 2, 2]
    for token, place in zip(logprobs["tokens"], places, strict=False):
        if len(token) == 1:
            assert text[place:].lstrip("\ufffd").startswith(token)  # before it, bytes that were no character
    assert any(token.startswith("bytes:\\x") for token in logprobs["tokens"])
    assert all(len(top) <= 2 for top in logprobs["top_logprobs"][1:])


# 6


def test_number_of_logprobs(site):
    for k in (0, 1, 5):
        for place in site.complete(PROMPT, logprobs=k, ignore_eos=True)["choices"][0]["logprobs"]["top_logprobs"]:
            assert k <= len(place) <= k + 1 and len(place) >= 1
    assert site.complete(PROMPT)["choices"][0]["logprobs"] is None
    assert error(site.complete(PROMPT, 400, logprobs=6))["param"] == "logprobs"


# 7


def test_stop_strings(site):
    long = site.text(PROMPT, max_tokens=60, ignore_eos=True)
    for stop in (long[7], long[7:10], [long[20:23], long[7:10]], long[0], long[:2], ["@", long[30:32]]):
        fields = {"prompt": PROMPT, "max_tokens": 60, "ignore_eos": True, "stop": stop, "logprobs": 0}
        choice = site.complete(**fields)["choices"][0]
        expected = long[: min(p for s in ([stop] if isinstance(stop, str) else stop) if (p := long.find(s)) >= 0)]
        assert choice["text"] == expected == "".join(choice["logprobs"]["tokens"])
        assert choice["finish_reason"] == "stop" and long[len(expected) :].startswith(choice["stop_reason"])
        chunks = site.stream(**fields)
        assert "".join(c["choices"][0]["text"] for c in chunks) == expected
        assert "".join(t for c in chunks for t in c["choices"][0]["logprobs"]["tokens"]) == expected
        kept = site.text(**fields, include_stop_str_in_output=True)
        assert kept == expected + choice["stop_reason"]
    for wrong in ("", [""], ["a"] * 33, 5, [5]):
        assert error(site.complete(PROMPT, 400, stop=wrong))["param"] == "stop"


# 8


@pytest.mark.parametrize("model", ["letters", "bytes"])
def test_streams_say_what_whole_answers_say(site, model):
    fields = {"prompt": ["hal", "é🦆"][model == "bytes"], "model": model, "max_tokens": 70, "n": 3, "logprobs": 2}
    whole = site.complete(**fields)
    for usage in (False, True):
        chunks = site.stream(**fields, **({"stream_options": {"include_usage": True}} if usage else {}))
        assert {c["id"] for c in chunks} == {chunks[0]["id"]}
        last = chunks.pop() if usage else None
        assert not usage or (last["choices"] == [] and last["usage"] == whole["usage"])
        assert all(c["usage"] is None if usage else "usage" not in c for c in chunks)
        pieces = [c["choices"][0] for c in chunks]
        for choice in whole["choices"]:
            mine = [p for p in pieces if p["index"] == choice["index"]]
            assert "".join(p["text"] for p in mine) == choice["text"]
            assert [p["finish_reason"] for p in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
            for key, values in choice["logprobs"].items():
                assert list(itertools.chain.from_iterable(p["logprobs"][key] for p in mine)) == values
    assert error(site.complete(PROMPT, 400, stream_options={"include_usage": True}))["param"] == "stream_options"


# 9


def test_same_seed_same_text_in_any_company(site, letters):
    def ask(seed, results):
        results[seed] = site.text(PROMPT, max_tokens=50, seed=seed)

    together: dict[int, str] = {}
    threads = [threading.Thread(target=ask, args=(seed, together)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(32):
        alone = letters.generate(PROMPT, max_tokens=50, temperature=1, seed=seed, stop_at_end=True)
        assert together[seed] == alone
    assert len(set(together.values())) == 32
    for seed in (-1, 2**63 - 1, -(2**63)):
        assert site.text(PROMPT, seed=seed) == site.text(PROMPT, seed=seed)
    assert error(site.complete(PROMPT, 400, seed=2**63))["param"] == "seed"
    assert site.text(PROMPT, seed=None, max_tokens=50) != site.text(PROMPT, seed=None, max_tokens=50)


# 10


def test_circles_end(site):
    fields = {"max_tokens": 50, "ignore_eos": True, "logit_bias": {"7": 100}}
    asked = {"max_pattern_size": 3, "min_count": 4}
    for choice in (
        site.complete("hallo", **fields, repetition_detection=asked)["choices"][0],
        site.stream(prompt="hallo", **fields, repetition_detection=asked)[-1]["choices"][0],
    ):
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "repetition")
    assert site.text("hallo", **fields, repetition_detection=asked) == LETTERS[7] * 4
    for off in ({}, {"max_pattern_size": 0, "min_count": 4}):
        assert site.text("hallo", **fields, repetition_detection=off) == LETTERS[7] * 50
    amiss = {"min_pattern_size": 4}, {"min_count": 1}, {"min_count": -1}, {"min_counts": 4}
    for wrong in ({"max_pattern_size": 3}, *({**asked, **one} for one in amiss)):
        assert error(site.complete("a", 400, repetition_detection=wrong))["param"] == "repetition_detection"


def test_greedy_and_best_of(site, letters):
    greedy = letters.generate(PROMPT, temperature=0, max_tokens=40, stop_at_end=True)
    assert site.text(PROMPT, temperature=0, max_tokens=40) == greedy
    all_of = site.complete(PROMPT, n=8, max_tokens=12, logprobs=0)["choices"]
    means = {c["text"]: np.mean(c["logprobs"]["token_logprobs"]) for c in all_of}
    expected = sorted(means, key=means.get, reverse=True)[:2]
    best = site.complete(PROMPT, n=2, best_of=8, max_tokens=12)
    assert [c["text"] for c in best["choices"]] == expected and [c["index"] for c in best["choices"]] == [0, 1]
    assert all(c["logprobs"] is None for c in best["choices"])
    assert best["usage"]["completion_tokens"] == sum(len(c["logprobs"]["tokens"]) for c in all_of)
    assert error(site.complete(PROMPT, 400, n=3, best_of=2))["param"] == "best_of"
    assert error(site.complete(PROMPT, 400, best_of=2, stream=True))["param"] == "best_of"
    assert error(site.complete(PROMPT, 400, best_of=21))["param"] == "best_of"
    assert error(site.complete(PROMPT, 400, n=9))["param"] == "n"


# 11


WRONG = {
    "model": 5, "prompt": 5, "max_tokens": "5", "n": "1", "best_of": 1.5, "stream": "true", "stream_options": 3,
    "logprobs": "many", "echo": 1, "stop": 5, "temperature": "hot", "top_p": [], "presence_penalty": "x",
    "frequency_penalty": {}, "logit_bias": [], "seed": 1.5, "suffix": 5, "user": 5, "top_k": 0.5, "min_p": "x",
    "typical_p": 0, "repetition_penalty": "x", "min_tokens": "x", "stop_token_ids": 5, "allowed_token_ids": "x",
    "ignore_eos": "x", "include_stop_str_in_output": "x", "truncate_prompt_tokens": "x", "t_max_predict_ms": "x",
    "return_token_ids": "x", "repetition_detection": 3, "return_tokens_as_token_ids": "x", "state": 5, "save_state": 5,
    "top_n_sigma": "x", "xtc_probability": 2, "xtc_threshold": "x", "dry_multiplier": -1, "dry_base": 0,
    "dry_allowed_length": 0, "dry_penalty_last_n": -2, "dry_sequence_breakers": ["ab"], "mirostat": 1,
    "mirostat_tau": -1, "mirostat_eta": "x", "samplers": ["top_k", "no such"], "temperature_last": 1,
    "bad_words": [""], "skip_special_tokens": 0, "add_special_tokens": 0, "logprobs_mode": "x", "prompt_logprobs": 6,
    "structured_outputs": 5, "guided_regex": 5, "guided_choice": 5, "use_beam_search": "x",
    "length_penalty": "x",
}  # fmt: skip


def test_null_is_absent_and_wrong_types_are_named(site):
    fields = site.get("/openapi.json")["components"]["schemas"]["CompletionBody"]["properties"]
    assert set(fields) == set(WRONG), "every field stands in the table"
    plain = site.text("ab", max_tokens=12)
    nulls = dict.fromkeys(set(WRONG) - {"seed", "prompt", "max_tokens"})
    assert site.text("ab", max_tokens=12, **nulls) == plain
    for name, value in WRONG.items():
        assert error(site.post("/v1/completions", {"prompt": "a", name: value}, 400))["param"] == name
        error(site.post("/v1/completions", {"prompt": "a", name: {"a": [None, {"b": 1e400}]}}, 400))


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"5", b"null", b'"a"', b"\xff", b'{"prompt":"a","temperature":NaN}', b"[" * 50_000,
        b'{"prompt":"a","temperature":1e999}', b'{"seed":' + b"9" * 5000 + b"}", b'{"prompt":"\\ud800","n":"x"}',
        b'{"prompt":"a","temperature":-Infinity}', b'{"a":' * 20_000,
    ],
)  # fmt: skip
def test_bodies_that_are_none(site, raw):
    status, _, content = site.request("POST", "/v1/completions", raw=raw)
    assert status == 400 and error(content)["type"] == "invalid_request_error"


# 12


def test_logit_bias(site):
    banned = {str(id): -100 for id in range(21)}
    assert set(site.text(PROMPT, max_tokens=40, logit_bias=banned)) <= {LETTERS[21]}
    assert site.text(PROMPT, max_tokens=10, logit_bias={"7": 100}) == LETTERS[7] * 10
    for key in ("abc", "23", "-1", "1.5", "", "٣", "9" * 30):
        assert error(site.complete(PROMPT, 400, logit_bias={key: 1}))["param"] == "logit_bias", key


# 13


@pytest.mark.parametrize(
    "fields",
    [{"frequency_penalty": 1.5}, {"presence_penalty": -2}, {"repetition_penalty": 3}, {"repeat_penalty": 0.2}],
)
def test_penalties(site, letters, fields):
    """Greedy, by hand: frequency and presence count what was written, repetition the prompt too."""
    prompt = letters.tokenizer.encode("abcab").tolist()
    written: list[int] = []
    for _ in range(25):
        logits, _ = letters.engine.prefill(np.array([[22, *prompt, *written]]), letters.engine.zero_state(1))
        x = logits[0, :22].copy()
        for id in range(22):
            count = written.count(id)
            x[id] -= fields.get("frequency_penalty", 0) * count + fields.get("presence_penalty", 0) * (count > 0)
            r = fields.get("repetition_penalty", fields.get("repeat_penalty", 1))
            if id in prompt + written:
                x[id] = x[id] / r if x[id] > 0 else x[id] * r
        written.append(int(x.argmax()))
    expected = "".join(LETTERS[id] for id in written)
    assert site.text("abcab", temperature=0, max_tokens=25, ignore_eos=True, **fields) == expected


# 14


@given(st.text(max_size=30))
def test_tokenize_and_back(site, text):
    tokens = site.post("/tokenize", {"prompt": text, "model": "bytes"})
    assert tokens["count"] == len(tokens["tokens"]) == len(text.encode())
    if text != "<|endoftext|>":
        back = site.post("/detokenize", {"tokens": tokens["tokens"], "model": "bytes"})
        assert back == {"prompt": text, "content": text}


def test_special_strings(site):
    text = "a<|endoftext|>b"
    plain = site.post("/tokenize", {"content": text, "model": "bytes", "add_special": False, "with_pieces": True})
    assert "".join(t["piece"] for t in plain["tokens"]) == text and plain["count"] == 15
    parsed = site.post("/tokenize", {"prompt": text, "model": "bytes", "parse_special": True})["tokens"]
    assert parsed == [97, 256, 98]
    assert site.post("/detokenize", {"tokens": parsed, "model": "bytes"})["prompt"] == text
    eos = site.get("/tokenizer_info")["eos_token"]
    (end,) = site.post("/tokenize", {"prompt": eos, "add_special_tokens": False})["tokens"]
    assert end == 22 != 0
    strings = site.post("/tokenize", {"prompt": "é", "model": "bytes", "return_token_strs": True})["token_strs"]
    assert strings == ["bytes:\\xc3", "bytes:\\xa9"]
    error(site.post("/tokenize", {}, 400))
    assert error(site.post("/detokenize", {"tokens": [99]}, 400))["param"] == "tokens"


# 15 stands in test_server_slow.py; 16 in test_server_running.py

# 17


def test_unknown_fields_are_reported(site, caplog):
    secret = "user-4711"
    body = {"prompt": "ab", "tempereture": 0, "user": secret, "x" * 99: 1, "bad name\n": 2, "max_tokens": 3}
    with caplog.at_level("DEBUG"):
        status, headers, _ = site.request("POST", "/v1/completions", body)
        deadline, fields = time.monotonic() + 10, []
        while headers["x-request-id"] not in [f["id"] for f in fields]:  # the line is written after the answer
            assert time.monotonic() < deadline
            fields = [r.fields for r in caplog.records if getattr(r, "fields", {}).get("event") == "request"]
    assert status == 200 and headers["x-ignored-params"] == "tempereture"
    assert secret not in caplog.text + json.dumps(fields) and "ab" not in json.dumps([f["route"] for f in fields])


# 18


def test_names_of_llama_cpp(site):
    ours = site.complete(PROMPT, max_tokens=9, repetition_penalty=1.5, logprobs=2, top_k=5)["choices"]
    theirs = site.complete(PROMPT, n_predict=9, repeat_penalty=1.5, n_probs=2, top_k=5)["choices"]
    assert ours == theirs
    assert site.text(PROMPT, top_k=-1) == site.text(PROMPT, top_k=0) == site.text(PROMPT)


# 19


def test_what_is_too_long(site):
    assert error(site.complete("a" * 5001, 400))["code"] == "context_length_exceeded"
    assert site.complete("a" * 5000, max_tokens=1)["usage"]["prompt_tokens"] == 5000
    assert site.complete("a" * 5001, truncate_prompt_tokens=4, max_tokens=1)["usage"]["prompt_tokens"] == 4
    assert error(site.complete("a" * 200_001, 413))["type"] == "invalid_request_error"
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:  # a body without a length
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        try:
            for _ in range(40):
                connection.sendall(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
        except OSError:
            pass  # it hung up early, which is its right
        assert b" 413 " in connection.recv(1000).split(b"\r\n")[0]


# 20


def test_a_slow_reader_delays_nobody(site):
    """Each round writes a token of both, so that the fast one is done while the slow one has hardly begun."""
    scheduler = site.hub.served["letters"].scheduler

    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as slow:
        body = json.dumps({"prompt": "a", "max_tokens": 100_000, "stream": True, "ignore_eos": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        slow.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert slow.recv(100)  # and reads no more
        assert len(site.text(PROMPT, max_tokens=400, ignore_eos=True)) == 400
        assert scheduler.running == 1, "the slow one is still being written, and nobody reads it"


# --- more of the contract -------------------------------------------------------------------------------------------


def test_suffix_is_refused(site):
    refused = error(site.complete(PROMPT, 400, suffix="x"))
    assert (refused["param"], refused["code"]) == ("suffix", "unsupported_parameter")


def test_minus_infinity_is_a_number(site):
    choice = site.complete("a", max_tokens=4, logprobs=5, allowed_token_ids=[3])["choices"][0]
    assert choice["text"] == LETTERS[3] * 4
    assert all(math.isfinite(x) for x in choice["logprobs"]["token_logprobs"])


def test_allowed_ids_that_are_banned_are_refused_and_harm_nobody(site):
    assert "no token" in error(site.complete("a", 400, allowed_token_ids=[22], ignore_eos=True))["message"]
    chunks = site.stream(prompt="a", allowed_token_ids=[22], ignore_eos=True)
    assert error({"error": chunks[-1]["error"]})["type"] == "invalid_request_error"
    assert len(site.text("a", ignore_eos=True)) == 16


def test_token_ids_on_request(site):
    choice = site.complete(
        "a", max_tokens=3, return_token_ids=True, return_tokens_as_token_ids=True, logprobs=1, ignore_eos=True
    )["choices"][0]
    assert choice["token_ids"] == [LETTERS.index(c) for c in choice["text"]]
    assert choice["logprobs"]["tokens"] == [f"token_id:{id}" for id in choice["token_ids"]]


def test_time_limit_of_a_request(site):
    answer = site.complete("a", max_tokens=100_000, t_max_predict_ms=100, ignore_eos=True)
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")
    assert 0 < answer["usage"]["completion_tokens"] < 100_000
    assert len(site.text("a", t_max_predict_ms=0, ignore_eos=True)) == 16, "0 is off"
    assert site.complete("a", t_max_predict_ms=1, max_tokens=100_000)["choices"][0]["finish_reason"] in (
        "length",
        "stop",
    )


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/health", "/v1/models"])
def test_heads(site, path):
    status, headers, content = site.request("HEAD", path)
    assert (status, content) == (200, "") and int(headers["content-length"]) > 0


def test_odd_requests(site):
    assert site.request("HEAD", "/v1/completions")[0] == 405 and site.request("HEAD", "/nowhere")[0] == 404
    assert error(site.get("/nowhere", 404))["type"] == "not_found_error"
    status, headers, content = site.request("GET", "/v1/completions")
    assert status == 405 and headers["allow"] == "POST"
    assert error(content)["message"] == "GET is not taken here; use POST"
    status, _, content = site.request("POST", "/v1/completions", raw=b"{}", headers={"content-type": "text/plain"})
    assert status == 415 and error(content)
    for path in ("//evil.com", "/..%2f..%2fetc/passwd", "/page/..%2fapp.py", "/page/%00", "/v1/models/%2e%2e"):
        assert site.request("GET", path)[0] in (404, 400)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.com"}, 403), ({"host": "127.0.0.1.nip.io"}, 403), ({"host": "localhost.evil.com"}, 403),
        ({"host": "LOCALHOST:1"}, 200), ({"host": "[::1]:8000"}, 200), ({"host": "localhost."}, 200),
        ({"host": ""}, 403), ({"origin": "http://evil.com"}, 403), ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)  # fmt: skip
def test_other_pages_may_not_ask(site, headers, status):
    for path in ("/", "/health", "/v1/models"):
        assert site.request("GET", path, headers=headers)[0] == status


def test_allowed_origins(models):
    with serving(models, cors_origins=("http://friend.example",)) as site:
        ask = {"origin": "http://friend.example", "access-control-request-method": "POST"}
        status, headers, _ = site.request("OPTIONS", "/v1/completions", headers=ask)
        assert status == 200 and headers["access-control-allow-origin"] == "http://friend.example"
        status, _, _ = site.request("OPTIONS", "/v1/completions", headers={**ask, "origin": "http://foe.example"})
        assert status == 403


# --- extensions -----------------------------------------------------------------------------------------------------


def test_named_states_go_on(site, letters):
    whole = letters.generate("hallo", temperature=0, max_tokens=40)
    head = site.complete("hallo", temperature=0, max_tokens=15, ignore_eos=True, save_state="chapter-1")
    assert head["saved_state"] == "chapter-1"
    tail = site.text("", temperature=0, max_tokens=25, ignore_eos=True, state="chapter-1")
    assert head["choices"][0]["text"] + tail == whole
    site.complete("hallo", max_tokens=0, save_state="prompt-only")
    assert site.text(None, temperature=0, max_tokens=40, ignore_eos=True, state="prompt-only") == whole
    assert {s["id"] for s in site.get("/v1/states")["data"]} >= {"chapter-1", "prompt-only"}
    mixed = site.text(temperature=0, max_tokens=40, ignore_eos=True, state={"prompt-only": 1})
    assert mixed == whole
    halves = site.text(temperature=0, max_tokens=9, ignore_eos=True, state={"prompt-only": 0.5, "chapter-1": 0.5})
    assert len(halves) == 9
    assert site.request("DELETE", "/v1/states/prompt-only")[0] == 200
    assert error(site.complete("a", 404, state="prompt-only"))["code"] == "state_not_found"
    assert site.request("DELETE", "/v1/states/prompt-only")[0] == 404
    assert error(site.complete("a", 400, state="chapter-1", model="bytes"))["code"] == "state_of_another_model"
    for name in ("../x", "", ".hidden", "a/b", "x" * 65, "a\x00"):
        assert error(site.complete("a", 400, save_state=name))["param"] == "save_state"
        assert error(site.complete("a", 400, state=name))["param"] == "state"


def test_mixing_is_a_weighted_sum(site, letters):
    served = site.hub.served["letters"]
    site.complete("abc", max_tokens=0, save_state="a")
    site.complete("hij", max_tokens=0, save_state="b")
    logits, state = site.hub.shelf.mix({"a": 3.0, "b": 1.0}, served.model.config, letters.identity)
    one, two = (letters.engine.prefill(letters.tokenizer.encode(t)[None].astype(np.int64), letters.engine.begin(1)[1])
                for t in ("abc", "hij"))  # fmt: skip
    np.testing.assert_allclose(logits, 0.75 * one[0] + 0.25 * two[0], atol=1e-5)
    np.testing.assert_allclose(state.c_LBH, 0.75 * one[1].c_LBH + 0.25 * two[1].c_LBH, atol=1e-5)
    assert error(site.complete("a", 400, state={"a": 1, "b": -1}))["param"] == "state"


def test_the_shelf_is_bounded(models, tmp_path):
    with serving(models, states=tmp_path, max_states=2) as site:
        for name in ("a", "b", "a"):
            site.complete("x", max_tokens=0, save_state=name)
        assert error(site.complete("x", 400, save_state="c"))["code"] == "shelf_full"
        assert len(list(tmp_path.iterdir())) == 2
    with serving(models, states=tmp_path, max_state_bytes=100) as site:
        assert error(site.complete("x", 400, max_tokens=0, save_state="a"))["code"] == "shelf_full"
        assert len(site.text("", state="b", ignore_eos=True)) == 16, "states outlive the server"


def test_score(site, letters):
    answer = site.post("/v1/score", {"text": ["abc", "hallo"], "context": "vater", "top_logprobs": 2, "tokens": True})
    for text, entry in zip(("abc", "hallo"), answer["data"], strict=True):
        expected = letters.score(text, context="vater")
        assert entry["nats"] == pytest.approx(expected.nats, rel=1e-5)
        assert entry["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-5)
        assert entry["token_strs"] == list(text) and all(len(top) == 2 for top in entry["top_logprobs"])
    assert answer["total"]["chars"] == 8
    for wrong in ("", [], ["a", ""], 5):
        assert error(site.post("/v1/score", {"text": wrong}, 400))["param"] == "text"
    assert error(site.post("/v1/score", {"text": "a" * 5001}, 400))["code"] == "context_length_exceeded"


def test_chat(client, site):
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi\n"}]},
        {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go."},
    ]  # fmt: skip
    prompt = "Be brief.\n\nUser: Hi\n\nAssistant: Yes?\n\nUser: Go.\n\nAssistant:"
    fields = {"model": "bytes", "max_tokens": 60, "temperature": 0.5}
    plain = client.completions.create(prompt=prompt, seed=3, stop=["\nUser:", "\n\nUser:"], **fields).choices[0]
    done = client.chat.completions.create(messages=messages, seed=3, logprobs=True, top_logprobs=2, **fields)
    assert done.choices[0].message.content == plain.text.strip() and done.choices[0].message.role == "assistant"
    assert len(done.choices[0].logprobs.content) == done.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 2 for entry in done.choices[0].logprobs.content)
    with client.chat.completions.create(messages=messages, seed=3, stream=True, **fields) as stream:
        chunks = list(stream)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert streamed.rstrip() == plain.text.strip()
    assert [c.choices[0].delta.role for c in chunks if c.choices[0].delta.role] == ["assistant"]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="bytes", messages=[{"role": "robot", "content": "x"}])
    assert refused.value.param == "messages"


def test_xray(site, letters):
    text = "hallovater"
    expected = []
    for length in range(1, len(text) + 1):
        ids = np.array([[22, *letters.tokenizer.encode(text[:length])]])
        expected.append(numpy_network(letters.config, random_weights(letters.config, 7), ids)[1][1, 0])
    seen = site.post("/v1/xray", {"text": text, "neurons": [3, 0]})
    assert (seen["layer"], seen["neurons"], seen["chars"]) == (1, [3, 0], 10)
    np.testing.assert_allclose(seen["values"], np.array(expected)[:, [3, 0]].T, atol=1e-4)
    assert seen["offsets"] == list(range(10))
    liveliest = site.post("/v1/xray", {"text": text})["neurons"]
    assert liveliest == np.argsort(-np.std(expected, axis=0))[:6].tolist()
    assert site.post("/v1/xray", {"text": ""})["values"] == [[]] * 6
    assert error(site.post("/v1/xray", {"text": "a", "layer": 2}, 400))["param"] == "layer"
    assert error(site.post("/v1/xray", {"text": "a", "neurons": [999]}, 400))["param"] == "neurons"


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"top_n_sigma": 0.7}, {}), ({"xtc_probability": 0.5, "xtc_threshold": 0.02}, {}),
        ({"dry_multiplier": 3.0, "dry_base": 2.0, "dry_allowed_length": 1, "dry_penalty_last_n": 9}, {}),
        ({"mirostat": 2, "mirostat_tau": 1.5, "mirostat_eta": 0.3}, {}),
        ({"top_p": 0.5, "temperature_last": True}, {}),
        ({"samplers": ["top_p", "temperature"], "top_p": 0.5}, {"samplers": "top_p;temperature"}),
        ({"dry_multiplier": 3.0, "dry_sequence_breakers": ["a", "e"], "dry_penalty_last_n": 9999},
         {"dry_breakers": "ae", "dry_penalty_last_n": 4096}),
    ],
)  # fmt: skip
def test_operators_of_llama_cpp(site, letters, fields, options):
    options = {**fields, **options, "temperature": 0.6}
    options.pop("dry_sequence_breakers", None)
    ask = {"max_tokens": 60, "seed": 3}
    expected = letters.generate(PROMPT, stop_at_end=True, **ask, **options)
    assert site.text(PROMPT, **ask, **fields, temperature=0.6) == expected
    assert expected != letters.generate(PROMPT, stop_at_end=True, **ask, temperature=0.6)


def test_operators_that_are_off(site):
    off = {"top_n_sigma": -1, "mirostat": 0, "dry_multiplier": 0, "dry_penalty_last_n": 0, "xtc_probability": 0}
    assert site.text(PROMPT, max_tokens=60, **off) == site.text(PROMPT, max_tokens=60)


def test_bad_words(site):
    ask = {"max_tokens": 200, "ignore_eos": True}
    plain = site.text(PROMPT, **ask)
    bad = [plain[3], plain[10:12], plain[20:23]]
    text = site.text(PROMPT, **ask, bad_words=bad)
    assert len(text) == 200 and not any(word in text for word in bad)
    allowed = [LETTERS.index(c) for c in "abcd"]
    text = site.text(PROMPT, **ask, bad_words=["ab", "dd", "c"], allowed_token_ids=allowed, min_tokens=100)
    assert set(text) == set("abd") and "ab" not in text and "dd" not in text and len(text) == 200
    assert "no token" in error(site.complete(PROMPT, 400, bad_words=["a"], allowed_token_ids=[0]))["message"]


def test_the_end_may_be_shown(site):
    ask = {"max_tokens": 5, "logit_bias": {"22": 100}, "include_stop_str_in_output": True}
    for fields in ({}, {"skip_special_tokens": True}):
        assert site.text(PROMPT, **ask, **fields) == ""
    shown = {**ask, "skip_special_tokens": False}
    assert site.text(PROMPT, **shown) == END
    assert "".join(c["choices"][0]["text"] for c in site.stream(prompt=PROMPT, **shown)) == END
    assert site.text(PROMPT, **{**shown, "include_stop_str_in_output": False}) == ""
    echo = {"max_tokens": 0, "echo": True}
    assert site.text([22, 0, 22, 1], **echo) == LETTERS[:2]
    assert site.text([22, 0, 22, 1], **echo, skip_special_tokens=False) == END + LETTERS[0] + END + LETTERS[1]


def test_a_prompt_without_the_models_start(site, letters):
    ids = letters.tokenizer.encode(PROMPT)[None].astype(np.int64)
    logits, _ = letters.engine.prefill(ids, letters.engine.zero_state(1))
    ask = {"max_tokens": 1, "logprobs": 1, "temperature": 0}
    for fields, expected in (({"add_special_tokens": False}, logits), ({}, letters.engine.prefill(
        ids, letters.engine.begin(1)[1])[0])):  # fmt: skip
        choice = site.complete(PROMPT, **ask, **fields)["choices"][0]
        assert choice["logprobs"]["token_logprobs"] == [pytest.approx(log_softmax(expected)[0].max(), rel=1e-6)]


def test_logprobs_of_the_prompt(site):
    prompts = [PROMPT, "va"]
    answer = site.complete(prompts, max_tokens=2, n=2, prompt_logprobs=3, logprobs=1)["choices"]
    echoed = site.complete(prompts, max_tokens=0, echo=True, logprobs=5)["choices"]
    for choice, echo in zip(answer, [echoed[0], echoed[0], echoed[1], echoed[1]], strict=True):
        assert choice["prompt_logprobs"][0] is None and len(choice["logprobs"]["tokens"]) == 2
        for entry, token, logprob, top in zip(
            choice["prompt_logprobs"][1:], echo["logprobs"]["tokens"][1:], echo["logprobs"]["token_logprobs"][1:],
            echo["logprobs"]["top_logprobs"][1:], strict=True,
        ):  # fmt: skip
            mine = entry[str(LETTERS.index(token))]
            assert (mine["decoded_token"], mine["logprob"]) == (token, pytest.approx(logprob))
            best = sorted(top.values(), reverse=True)[:3]
            ranked = sorted(entry.values(), key=lambda one: one["rank"])
            assert [one["rank"] for one in ranked[:3]] == [1, 2, 3] and len(entry) in (3, 4)
            assert [one["logprob"] for one in ranked[:3]] == pytest.approx(best)
            if len(entry) == 4:
                assert mine["rank"] > 3
    both = site.complete(PROMPT, max_tokens=0, echo=True, logprobs=1, prompt_logprobs=4)["choices"][0]
    assert max(len(top) for top in both["logprobs"]["top_logprobs"][1:]) <= 2
    assert min(len(entry) for entry in both["prompt_logprobs"][1:]) == 4
    assert "prompt_logprobs" not in site.complete(PROMPT)["choices"][0]
    assert error(site.complete(PROMPT, 400, prompt_logprobs=1, stream=True))["param"] == "prompt_logprobs"


def test_logprobs_after_all_options(site, letters):
    ask = {"max_tokens": 8, "logprobs": 5, "ignore_eos": True, "temperature": 0.5, "top_k": 3, "logit_bias": {"4": 2}}
    raw, processed = (
        site.complete(PROMPT, **ask, **mode)["choices"][0]
        for mode in ({"logprobs_mode": "raw"}, {"logprobs_mode": "processed"})
    )
    assert raw["text"] == processed["text"] and raw == site.complete(PROMPT, **ask)["choices"][0]
    logits, state = letters.engine.prefill(
        letters.tokenizer.encode(PROMPT)[None].astype(np.int64), letters.engine.begin(1)[1]
    )
    for place, letter in enumerate(raw["text"]):
        x = logits[0, :22].astype(np.float64)
        x[4] += 2
        x[x < np.sort(x)[-3]] = -np.inf
        expected = log_softmax(x[None] / 0.5)[0]
        id = LETTERS.index(letter)
        assert processed["logprobs"]["token_logprobs"][place] == pytest.approx(expected[id], abs=1e-5)
        finite = [v for v in processed["logprobs"]["top_logprobs"][place].values() if v > -9999]
        assert sorted(finite) == pytest.approx(sorted(expected[np.isfinite(expected)]), abs=1e-5)
        logits, state = letters.engine.step(np.array([id]), state)
    assert set(site.complete(PROMPT, **{**ask, "temperature": 0, "logprobs_mode": "processed_logprobs"})["choices"][0][
        "logprobs"]["token_logprobs"]) == {0}  # fmt: skip


def test_timings(site):
    answer = site.complete(PROMPT, max_tokens=300, ignore_eos=True)
    last = site.stream(prompt=PROMPT, max_tokens=300, ignore_eos=True, stream_options={"include_usage": True})[-1]
    for timings in (answer["timings"], last["timings"]):
        assert (timings["prompt_n"], timings["predicted_n"]) == (5, 300)
        assert timings["prompt_ms"] > 0 and 0 < timings["predicted_ms"] < 60_000
        assert timings["predicted_per_second"] == pytest.approx(300_000 / timings["predicted_ms"], rel=0.01)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"structured_outputs": {"regex": "[a-f]+u[a-f]{3}"}}, {"regex": "[a-f]+u[a-f]{3}"}),
        ({"guided_regex": "(ab|cd)*e"}, {"regex": "(ab|cd)*e"}),
        ({"structured_outputs": {"choice": ["abel", "abend", "ehe"]}}, {"choices": ("abel", "abend", "ehe")}),
        ({"guided_choice": ["a", "ab"]}, {"choices": ("a", "ab")}),
        ({"structured_outputs": {"template": "{one:[a-c]+}ist{two:[d-f]}u"}},
         {"template": "{one:[a-c]+}ist{two:[d-f]}u"}),
        ({"structured_outputs": {"blanks": "a_b_", "prefix": "vater"}}, {"blanks": "a_b_", "prefix": "vater"}),
        ({"structured_outputs": {"prefix": "hallo", "json": None, "regex": None}}, {"prefix": "hallo"}),
    ],
)  # fmt: skip
def test_patterns(site, letters, fields, options):
    expected = [letters.generate("vater", seed=seed, max_tokens=20, stop_at_end=True, temperature=1.0, **options)
                for seed in (5, 6, 7)]  # fmt: skip
    body = {"prompt": "vater", "seed": 5, "n": 3, "max_tokens": 20, **fields}
    answer = site.post("/v1/completions", {**body, "logprobs": 1})
    assert [choice["text"] for choice in answer["choices"]] == expected
    for choice in answer["choices"]:
        assert "".join(t for t in choice["logprobs"]["tokens"] if t != END) == choice["text"]
        assert choice["finish_reason"] == "stop" or options == {"prefix": "hallo"}
    streamed = ["", "", ""]
    for chunk in site.stream(**body):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == expected


def test_patterns_among_strangers(site, letters):
    """Texts of one pattern share it, in two threads."""

    def one(number):
        return site.text("hallo", seed=number, max_tokens=30, guided_regex="([a-e]+u)+[f-h]")

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(one, range(48)))
    options = {"max_tokens": 30, "regex": "([a-e]+u)+[f-h]", "stop_at_end": True, "temperature": 1.0}
    assert texts == [letters.generate("hallo", seed=number, **options) for number in range(48)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "(a"}, "structured_outputs"),
        ({"guided_regex": "a{30}"}, "structured_outputs"),
        ({"guided_regex": "((a{1000}){1000}){1000}"}, "structured_outputs"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs"),
        ({"guided_regex": "a", "stop": ["b"]}, "structured_outputs"),
        ({"guided_regex": "a", "min_tokens": 2}, "min_tokens"),
        ({"guided_regex": "a", "allowed_token_ids": [3]}, "allowed_token_ids"),
        *(
            ({"use_beam_search": True, name: value}, name)
            for name, value in (
                ("stream", True),
                ("logprobs", 0),
                ("top_k", 3),
                ("min_p", 0.1),
                ("presence_penalty", 1),
                ("mirostat", 2),
                ("logit_bias", {"1": 1}),
                ("min_tokens", 1),
                ("t_max_predict_ms", 5),
                ("save_state", "a"),
            )
        ),
        ({"use_beam_search": True, "guided_choice": ["ab", "cd"], "n": 3}, None),
    ],
)
def test_patterns_that_cannot_be(site, fields, param):
    error = site.complete("hallo", 400, max_tokens=20, **fields)["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_beams(site, letters):
    """Among strangers; what is looked for does not depend on them, and they not on it."""

    def found(prompt, n, beams):
        writer = letters.writers(1, SamplingConfig(), Limits(9, stop_at_end=True), 0)[0]
        return letters.search(prompt, writer, beams, n)

    def ask(number):
        if number % 2:
            return site.text("hallo", seed=number, max_tokens=40)
        fields = {"use_beam_search": True, "n": 2, "max_tokens": 9, "temperature": 0, "top_p": 1}
        return site.complete(["hallo", "vater"], **fields, **({"best_of": number} if number > 2 else {}))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(2, 10)))
    for number, answer in enumerate(answers, 2):
        if number % 2:
            assert answer == letters.generate("hallo", seed=number, max_tokens=40, temperature=1.0, stop_at_end=True)
            continue
        expected = [text for prompt in ("hallo", "vater") for text in found(prompt, 2, number)]
        assert [choice["text"] for choice in answer["choices"]] == [one.text for one in expected]
        assert answer["usage"]["completion_tokens"] == sum(one.tokens for one in expected)
    short = site.complete("hallo", use_beam_search=True, best_of=8, max_tokens=9, length_penalty=-5)["choices"][0]
    assert len(short["text"]) < len(found("hallo", 1, 8)[0].text)
    free = site.text("hallo", use_beam_search=True, best_of=4, max_tokens=9, bad_words=list("abc"), echo=True)
    assert free.startswith("hallo") and not set("abc") & set(free[5:])
    assert site.text("hallo", use_beam_search=True, max_tokens=0) == ""


def test_who_leaves_a_search_frees_its_rows(site):
    scheduler = site.hub.served["letters"].scheduler
    body = json.dumps(
        {"prompt": "a", "max_tokens": 100_000, "use_beam_search": True, "best_of": 5, "ignore_eos": True}
    )
    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        deadline = time.monotonic() + 20
        while scheduler.running != 5:
            assert time.monotonic() < deadline
    while scheduler.running:
        assert time.monotonic() < deadline
    assert site.text("a", max_tokens=3, ignore_eos=True)


def test_a_pattern_in_a_chat(site):
    body = {"messages": [{"role": "user", "content": "hallo"}], "seed": 1, "guided_choice": ["ja", "nein"]}
    body["model"] = "bytes"
    choice = site.post("/v1/chat/completions", body)["choices"][0]
    assert choice["message"]["content"] in ("ja", "nein") and choice["finish_reason"] == "stop"
