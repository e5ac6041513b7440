"""The server as lm-eval's `local-completions` sees it, against the same numbers computed here."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
from serving import serving, write_models
from test_generation import make_model

from textlstm import metrics
from textlstm.engine import writing_engine
from textlstm.model import Model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of its many imports


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """The harness over HTTP, and the model in this process."""
    if importlib.util.find_spec("lm_eval") is None:
        problem = "lm-eval is not installed: pip install 'textlstm[harness]'"
        if os.environ.get("TEXTLSTM_REQUIRE_HARNESS"):
            pytest.fail(problem)
        pytest.skip(problem)
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    models = write_models(tmp_path_factory.mktemp("models"), letters=make_model())
    with serving(models) as site:
        fields = {"tokenizer_backend": "remote", "num_concurrent": 1, "batch_size": 4, "max_retries": 1}
        yield (
            LocalCompletionsAPI(base_url=f"{site.url}/v1/completions", model="letters", **fields),
            Model.load(models["letters"], writing_engine()),
        )


def instance(kind, arguments, number):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=number)


def test_log_likelihoods(harness):
    lm, model = harness
    rng = np.random.default_rng(0)
    pairs = [tuple("".join(rng.choice(list("abcdefgh"), rng.integers(1, 30))) for _ in range(2)) for _ in range(20)]
    answers = lm.loglikelihood([instance("loglikelihood", pair, i) for i, pair in enumerate(pairs)], True)
    for (context, text), (value, greedy) in zip(pairs, answers, strict=True):
        ids = model.tokenizer.encode(context + text)
        nats = metrics.token_nats(model.engine, ids)[len(context) :]
        assert value == pytest.approx(-nats.sum(), rel=1e-4)
        likeliest = all(
            int(model.next_token_probs(context + text[:i]).argmax()) == id
            for i, id in enumerate(model.tokenizer.encode(text).tolist())
        )
        assert greedy == likeliest


def test_generation(harness):
    lm, model = harness
    asked = [("hallo", {"until": ["a"], "max_gen_toks": 30}), ("vater", {"until": ["zz"], "max_gen_toks": 12})]
    texts = lm.generate_until([instance("generate_until", pair, i) for i, pair in enumerate(asked)], True)
    for (prompt, fields), text in zip(asked, texts, strict=True):
        expected = model.generate(
            prompt, temperature=0, stop=fields["until"], max_tokens=fields["max_gen_toks"], stop_at_end=True
        )
        assert text == expected
