"""The web playground at `/`: the files of the folder `page`, read once and served from memory."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import Response

_KINDS = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}  # fmt: skip


@cache
def files() -> dict[str, tuple[bytes, str]]:
    """Content and type of each file of the page, by name."""
    folder = Path(__file__).parent / "page"
    return {p.name: (p.read_bytes(), _KINDS[p.suffix]) for p in sorted(folder.iterdir()) if p.suffix in _KINDS}


def add_playground(app: FastAPI) -> None:
    """Adds the routes of the page."""

    def answer(name: str) -> Response:
        if name not in files():
            raise HTTPException(404, "there is no such file")
        content, kind = files()[name]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return answer("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return answer(name)
