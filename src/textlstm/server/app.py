"""The HTTP application: routes, and how errors become answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from textlstm import __version__
from textlstm.model_file import read_model
from textlstm.server import answers
from textlstm.server.guard import Guard
from textlstm.server.hub import END, Hub, Served, Settings
from textlstm.server.metrics import Metrics
from textlstm.server.playground import add_playground
from textlstm.server.protocol import (
    ApiError,
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ErrorBody,
    ScoreBody,
    TokenizeBody,
    XrayBody,
)
from textlstm.server.scoring import score, xray
from textlstm.server.stream import DONE, PING, EventStream, event, unless_left
from textlstm.server.stream import encode as encode_json
from textlstm.server.writing import Work, encode, plan_writing, prepare, require

LOG = logging.getLogger("textlstm.server")
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}


class Json(JSONResponse):
    """A JSON answer."""

    def render(self, content: Any) -> bytes:
        return encode_json(content).encode()


def create_app(settings: Settings, on_failure: Callable[[BaseException], None] | None = None) -> FastAPI:
    """The application.

    Args:
        settings: of the server.
        on_failure: told why the models could not be loaded.
    """
    hub = Hub(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _drain_on_signals(hub)
        loading = asyncio.create_task(_load(hub, on_failure))
        yield
        hub.draining = True
        await loading
        await asyncio.to_thread(hub.close)

    app = FastAPI(
        title="textlstm", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        default_response_class=Json, redirect_slashes=False,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )  # fmt: skip
    app.state.hub = hub
    _add_errors(app)
    _add_writing(app, hub)
    _add_models(app, hub)
    _add_tokens(app, hub)
    _add_states(app, hub)
    add_playground(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"], expose_headers=["x-request-id", "x-ignored-params"],
        )  # fmt: skip
    metrics = Metrics(hub)
    app.add_middleware(Guard, settings=settings, observe=metrics.observe)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> Response:
        """For Prometheus."""
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


async def _load(hub: Hub, on_failure: Callable[[BaseException], None] | None) -> None:
    def load() -> None:
        hub.load({name: read_model(path) for name, path in hub.settings.models.items()}, loop)

    loop = asyncio.get_running_loop()
    try:
        await asyncio.to_thread(load)
        LOG.info("ready", extra={"fields": {"event": "ready", "models": list(hub.served)}})
    except Exception as error:
        if on_failure is None:
            raise
        on_failure(error)


def _drain_on_signals(hub: Hub) -> None:
    """On the first SIGTERM or SIGINT takes no more requests, on the second ends those that run."""
    signals = itertools.count(1)
    with contextlib.suppress(ValueError):  # signals are for the main thread; tests run servers in others
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)

            def handle(n: int, frame: Any, before: Any = before) -> None:
                count, grace = next(signals), hub.settings.grace
                hub.drain(grace if count == 1 else 0.0)
                if count == 1:
                    fields = {"event": "ending", "seconds_left": grace, "hint": "Ctrl-C again ends what still runs"}
                    LOG.warning("ending", extra={"fields": fields})
                if callable(before) and count != 2:  # the server's own second time would tear streams off
                    before(n, frame)

            signal.signal(number, handle)


# --- errors ---------------------------------------------------------------------------------------------------------


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return Json(error.body(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"][1:] if isinstance(part, str | int)]
        param = place[0] if place and not place[0].isdigit() else None
        message = f"{param}: {first['msg']}" if param else f"the body is not valid JSON: {first['msg']}"
        message = "".join(c if c.isprintable() else " " for c in message)
        return Json(ApiError(400, message, param).body(), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        allowed = (error.headers or {}).get("Allow")
        known = {
            404: "there is nothing here; GET /openapi.json lists what there is",
            405: f"{request.method} is not taken here; use {allowed}",
        }
        message = known.get(error.status_code, str(error.detail))
        return Json(ApiError(error.status_code, message).body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        LOG.error("a request failed", exc_info=error)
        return Json(ApiError(500, "something went wrong; the server's log has the reason").body(), 500)


def ignored(body: Body) -> dict[str, str]:
    """The header that names fields which nothing came of."""
    names = [name for name in (body.model_extra or {}) if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name, re.ASCII)]
    return {"x-ignored-params": ", ".join(names[:20])} if names else {}


# --- routes ---------------------------------------------------------------------------------------------------------


def _add_writing(app: FastAPI, hub: Hub) -> None:
    @app.post("/v1/completions", responses=STREAMED)
    async def completions(request: Request, body: CompletionBody) -> Response:
        """Continues prompts."""
        served = hub.find(body.model)
        require(body.suffix is None, "this model does not fill in the middle", "suffix", "unsupported_parameter")
        prompts: Any = "" if body.prompt is None else body.prompt
        if isinstance(prompts, str) or isinstance(prompts[0], int):
            prompts = [prompts]
        most = 16 if body.max_tokens is None else body.max_tokens
        asked = {"max_tokens": most, "best_of": body.best_of, "top": body.logprobs, "echo": body.echo}
        plan = await plan_writing(hub, served, body, prompts, **asked)
        return await _write(request, await prepare(hub, served, body, plan), answers.Completion)

    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat(request: Request, body: ChatBody) -> Response:
        """Goes on with a dialogue, written out as plain text."""
        served = hub.find(body.model)
        require(body.logprobs or not body.top_logprobs, "top_logprobs need logprobs=true", "top_logprobs")
        top = (0 if body.top_logprobs is None else body.top_logprobs) if body.logprobs else None
        most = 256 if body.max_tokens is None else body.max_tokens
        asked = {"max_tokens": most, "top": top, "stop": answers.DIALOGUE_STOP}
        plan = await plan_writing(hub, served, body, [answers.dialogue(body.messages)], **asked)
        return await _write(request, await prepare(hub, served, body, plan), answers.Chat)

    @app.post("/v1/score")
    async def scores(request: Request, body: ScoreBody) -> Response:
        """What texts cost under the model."""
        served = hub.find(body.model)
        result = await unless_left(request.receive, score(hub, served, body))
        return Response(status_code=499) if result is None else Json(result, headers=ignored(body))

    @app.post("/v1/xray")
    async def inside(request: Request, body: XrayBody) -> Response:
        """What neurons do over a text."""
        result = await unless_left(request.receive, xray(hub, hub.find(body.model), body))
        return Response(status_code=499) if result is None else Json(result, headers=ignored(body))


async def _write(request: Request, work: Work, kind: type[answers.Answer]) -> Response:
    """Submits the work and answers, at once or in a stream."""
    answer = kind(work)
    work.submit()
    line = request.state.log
    line["model"], line["prompt_tokens"] = work.served.name, work.prompt_tokens
    if work.body.stream:
        # At a shutdown the scheduler ends the streams, with an error where they are late.
        return EventStream(_stream(work, answer, line), ignored(work.body))
    choices = await unless_left(request.receive, work.whole())
    _note(work, line)
    if choices is None:
        line["left"] = True
        return Response(status_code=499)  # nobody reads it
    return Json(answer.whole(choices), headers=ignored(work.body))


def _note(work: Work, line: dict[str, Any]) -> None:
    line["completion_tokens"] = work.written_tokens
    if work.first_token is not None:
        line["first_token_ms"] = round(work.first_token * 1000, 1)


async def _stream(work: Work, answer: answers.Answer, line: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    try:
        async with contextlib.aclosing(work.pieces()) as news:
            async for pieces in news:
                yield answer.events(pieces) if pieces else PING
        last = answer.last_event()
    except ApiError as error:
        line["error"] = error.status
        last = event(error.body())
    finally:
        _note(work, line)
    yield last + DONE


def _add_models(app: FastAPI, hub: Hub) -> None:
    def card(served: Served) -> dict[str, Any]:
        config = served.model.config
        meta = {
            "n_params": config.num_params, "n_vocab": config.vocab_size, "hidden_size": config.hidden_size,
            "num_layers": config.num_layers, "sha256": served.sha256, "card": served.model.card,
            "max_logprobs": hub.settings.max_logprobs,
        }  # fmt: skip
        return {"id": served.name, "object": "model", "created": served.created, "owned_by": "textlstm", "meta": meta}

    @app.get("/v1/models")
    async def models() -> Response:
        """The models that are served."""
        hub.find(None)
        return Json({"object": "list", "data": [card(served) for served in hub.served.values()]})

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        """One of them."""
        return Json(card(hub.find(name)))

    @app.get("/health")
    @app.get("/ready")
    async def health() -> Response:
        """Whether requests are taken."""
        hub.find(None)
        return Json({"status": "ok"})

    @app.get("/ping")
    async def ping() -> Response:
        """Whether the process lives."""
        return Json({})

    @app.get("/version")
    async def version() -> Response:
        """Of textlstm."""
        return Json({"version": __version__})


def _add_tokens(app: FastAPI, hub: Hub) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        """The ids of a text; special strings are plain text unless `parse_special` or unless they are all of it."""
        served = hub.find(body.model)
        text = body.content if body.prompt is None else body.prompt
        if text is None:
            raise ApiError(400, "send a text as prompt or content", "prompt")
        ids = (await encode(served, text, bool(body.parse_special) or text == END)).tolist()
        answer: dict[str, Any] = {"count": len(ids), "max_model_len": hub.settings.max_prompt_tokens, "tokens": ids}
        if body.return_token_strs:
            answer["token_strs"] = [served.strings[id] for id in ids]
        if body.with_pieces:
            answer["tokens"] = [{"id": id, "piece": answers.piece(served, id)} for id in ids]
        return Json(answer, headers=ignored(body))

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Response:
        """The text of ids."""
        served = hub.find(body.model)
        vocab = served.model.config.vocab_size
        require(all(id < vocab for id in body.tokens), f"token ids must be below {vocab}", "tokens")
        text = served.decode(body.tokens)
        return Json({"prompt": text, "content": text}, headers=ignored(body))

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> Response:
        """What lm-eval asks for."""
        served = hub.find(None)
        kind = served.model.tokenizer.kind
        return Json({"tokenizer_class": kind, "eos_token": END, "bos_token": END, "pad_token": END})


def _add_states(app: FastAPI, hub: Hub) -> None:
    @app.get("/v1/states")
    async def states() -> Response:
        """The named states."""
        return Json({"object": "list", "data": await asyncio.to_thread(hub.shelf.list)})

    @app.delete("/v1/states/{name}")
    async def forget(name: str) -> Response:
        """Deletes one."""
        await asyncio.to_thread(hub.shelf.delete, name)
        return Json({"id": name, "object": "state", "deleted": True})
