"""What the API takes and how it refuses: request bodies as pydantic models, and the one error that becomes an answer.

Types are strict: a number in quotation marks is an error and not a number. `null` is the same as absent for every
optional field. Fields that are unknown are accepted and named in the header `x-ignored-params`, which finds typing
errors. The names of llama.cpp (`n_predict`, `repeat_penalty`, `n_probs`) are accepted beside OpenAI's and vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from textlstm.errors import TextLSTMError

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "invalid_request_error", 413: "invalid_request_error",
    415: "invalid_request_error", 429: "rate_limit_error", 503: "unavailable_error",
}  # fmt: skip


class ApiError(TextLSTMError):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: what was wrong and what to do.
        param: the field that is meant, if any.
        code: a word for programs, if any.
        retry_after: seconds after which trying again may help.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class ErrorObject(BaseModel):
    """Why a request was refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every refusal is."""

    error: ErrorObject


class Body(BaseModel):
    """What all request bodies share."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Body):
    """What a stream tells besides the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Id = Annotated[int, Field(ge=0, lt=2**31)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Word = Annotated[str, Field(min_length=1, max_length=100)]
Character = Annotated[str, Field(min_length=1, max_length=1)]
Regex = Annotated[str, Field(max_length=10_000)]
Choices = Annotated[list[Annotated[str, Field(max_length=10_000)]], Field(min_length=1, max_length=1000)]
Weight = Annotated[float, Field(ge=-100, le=100)]


class StructuredOutputs(Body):
    """What a text must look like: one of these at most, but for `prefix`; vLLM has the first two."""

    regex: Regex | None = None
    choice: Choices | None = None
    template: Regex | None = None
    blanks: Regex | None = None
    line_length: Annotated[int, Field(ge=1)] | None = None
    prefix: Regex | None = None


class RepetitionDetection(Body):
    """When a text that goes in circles ends; vLLM's defaults, which are off."""

    model_config = ConfigDict(extra="forbid")

    max_pattern_size: Annotated[int, Field(ge=0, le=1000)] | None = None
    min_pattern_size: Annotated[int, Field(ge=0, le=1000)] | None = None
    min_count: Annotated[int, Field(ge=0, le=1000)] | None = None


class WritingBody(Body):
    """The fields that completions and chat share."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=32)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: str | None = None
    # of vLLM and llama.cpp
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty")
    )
    top_n_sigma: Annotated[float, Field(ge=-1, le=1000)] | None = None
    xtc_probability: Annotated[float, Field(ge=0, le=1)] | None = None
    xtc_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=1000)] | None = None
    dry_base: Annotated[float, Field(gt=0, le=1000)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1)] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1)] | None = None
    dry_sequence_breakers: Annotated[list[Character], Field(max_length=128)] | None = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=1000)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1000)] | None = None
    samplers: Annotated[list[str], Field(max_length=16)] | None = None
    temperature_last: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_token_ids: Annotated[list[Id], Field(max_length=128)] | None = None
    allowed_token_ids: Annotated[list[Id], Field(min_length=1)] | None = None
    bad_words: Annotated[list[Word], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    t_max_predict_ms: Annotated[int, Field(ge=0)] | None = None
    logprobs_mode: Literal["raw", "processed", "raw_logprobs", "processed_logprobs"] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None
    use_beam_search: bool | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    repetition_detection: RepetitionDetection | None = None
    # our own: go on from a state with a name, or from a mixture, and give the state at the end a name
    state: str | Annotated[dict[str, Weight], Field(min_length=1, max_length=8)] | None = None
    save_state: str | None = None


Ids = Annotated[list[Id], Field(min_length=1)]


class CompletionBody(WritingBody):
    """`POST /v1/completions`."""

    prompt: (
        str | Ids | Annotated[list[str], Field(min_length=1)] | Annotated[list[Ids], Field(min_length=1)] | None
    ) = None
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, validation_alias=AliasChoices("max_tokens", "n_predict")
    )
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = Field(None, validation_alias=AliasChoices("logprobs", "n_probs"))
    echo: bool | None = None
    suffix: str | None = None


class Part(Body):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class ChatBody(WritingBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, validation_alias=AliasChoices("max_completion_tokens", "max_tokens", "n_predict")
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None


class ScoreBody(Body):
    """`POST /v1/score`."""

    model: str | None = None
    text: str | Annotated[list[str], Field(min_length=1)]
    context: str | None = None
    tokens: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None


class XrayBody(Body):
    """`POST /v1/xray`."""

    model: str | None = None
    text: str
    layer: Annotated[int, Field(ge=0)] | None = None
    neurons: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=64)] | None = None
    state: str | Annotated[dict[str, Weight], Field(min_length=1, max_length=8)] | None = None


class TokenizeBody(Body):
    """`POST /tokenize`, in the words of vLLM (`prompt`) or llama.cpp (`content`)."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool | None = Field(None, validation_alias=AliasChoices("add_special_tokens", "add_special"))
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[Id]
