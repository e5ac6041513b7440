"""The server against its own description: what fits it is answered, what does not is refused, nothing breaks it."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from serving import serving, write_models
from test_generation import byte_model, make_model

pytestmark = pytest.mark.slow
CHECKS = [
    not_a_server_error, content_type_conformance, negative_data_rejection, response_schema_conformance,
    status_code_conformance,
]  # fmt: skip
OPERATIONS = {
    "completions": "POST /v1/completions", "chat": "POST /v1/chat/completions", "score": "POST /v1/score",
    "xray": "POST /v1/xray", "tokenize": "POST /tokenize", "detokenize": "POST /detokenize",
    "model": "GET /v1/models/{name}", "models": "GET /v1/models", "states": "GET /v1/states",
    "forget": "DELETE /v1/states/{name}", "health": "GET /health", "ready": "GET /ready", "ping": "GET /ping",
    "version": "GET /version", "metrics": "GET /metrics", "tokenizer_info": "GET /tokenizer_info",
}  # fmt: skip


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    models = write_models(tmp_path_factory.mktemp("models"), letters=make_model(), bytes=byte_model())
    with serving(models, max_tokens=40, max_logprobs=30, max_body=1 << 26) as site:
        document = schemathesis.openapi.from_url(f"{site.url}/openapi.json")
        found = [result.ok() for result in document.get_all_operations()]
        yield {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_all_operations_are_tried(operations):
    assert set(operations) == set(OPERATIONS.values())


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fits", "does not fit"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(operations, name, mode):
    operation = operations[OPERATIONS[name]]
    if mode == GenerationMode.NEGATIVE and not operation.body:
        return  # nothing to get wrong

    @settings(max_examples=120, suppress_health_check=list(HealthCheck), deadline=None)
    @given(operation.as_strategy(generation_mode=mode))
    def check(case):
        case.call_and_validate(checks=CHECKS)

    check()
