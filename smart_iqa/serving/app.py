"""The application: the page, the JSON API and its description, all from this machine.

POST /api/score    images -> scores        GET /openapi.json, /docs    what the API takes and answers
GET /api/model     the model, limits       GET /, /page.css, /page.js  the page
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path

import jinja2
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from smart_iqa import __version__
from smart_iqa.scorer import Scorer
from smart_iqa.serving.answers import Answer, Model, NotScored, Problem, Scored, describe_model
from smart_iqa.serving.engine import Engine
from smart_iqa.serving.guard import Guard
from smart_iqa.serving.limits import Limits, RequestError
from smart_iqa.serving.uploads import Memory, Upload, Uploads, read_uploads

PAGE = Path(__file__).with_name("page")
FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
RETRY_AFTER = {"Retry-After": "1"}
_IMAGES = {"type": "string", "format": "binary"}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"files": {"type": "array", "items": _IMAGES}}}
        },
        "image/*": {"schema": _IMAGES},
    },
}
_PROBLEMS = {
    400: "the form cannot be read",
    403: "called by a name that is not the server's, or from another site's page",
    408: "the upload took too long",
    413: "too large a file, too many files or pixels",
    415: "no image, or of a kind that is not read",
    422: "a damaged image, or none",
    503: "busy: try again after the seconds in `Retry-After`",
}


class Service:
    """Requests for scores: how many at a time, and for how long."""

    def __init__(self, engine: Engine, limits: Limits):
        self.engine, self.limits = engine, limits
        self.memory, self.inside = Memory(limits), 0

    async def answer(self, request: Request, name: str, with_map: bool) -> Answer:
        """A row for each file of a request.

        Raises:
            RequestError: the request as a whole is refused.
        """
        if self.inside >= self.limits.max_waiting:
            raise RequestError(503, f"{self.inside} requests are waiting already; try again")
        uploads, ends = Uploads(self.limits, self.memory), asyncio.get_running_loop().time() + self.limits.timeout
        self.inside += 1
        try:
            files = await self._read(request, name, uploads, ends)
            rows = await asyncio.gather(*(self._row(file, with_map, ends) for file in files))
        finally:
            self.inside -= 1
            uploads.close()
        refused = [row for row in rows if isinstance(row, NotScored)]
        said = f"{refused[0].name}: {refused[0].error}" if len(refused) == len(rows) else None
        return Answer(results=rows, error=said)

    async def _read(self, request: Request, name: str, uploads: Uploads, ends: float) -> list[Upload]:
        try:
            async with asyncio.timeout_at(ends):
                return await read_uploads(request.headers, request.stream(), name, uploads)
        except TimeoutError:
            raise RequestError(408, f"the upload took longer than {self.limits.timeout:g} s") from None
        except ClientDisconnect:
            raise RequestError(400, "the sender has gone") from None

    async def _row(self, file: Upload, with_map: bool, ends: float) -> Scored | NotScored:
        try:
            async with asyncio.timeout_at(ends):
                return Scored(**await self.engine.score(file, with_map))
        except RequestError as refused:
            return NotScored(name=file.label, status=refused.status, error=refused.text)
        except TimeoutError:
            busy = f"busy: not scored within {self.limits.timeout:g} s; try again"
            return NotScored(name=file.label, status=503, error=busy)


def make_app(
    scorer: Scorer, limits: Limits | None = None, checkpoint: str = "default", hosts: Collection[str] = ()
) -> FastAPI:
    """The application of one model.

    Args:
        scorer: scores the images.
        limits: what is taken; None takes the defaults.
        checkpoint: what the page calls the model.
        hosts: names that requests may call the server by, beside `localhost` and addresses.
    """
    limits = limits or Limits()
    engine = Engine(scorer, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(
        title="SMART-IQA",
        version=__version__,
        description="Blind image quality assessment: images in, scores out. Nothing that is sent is kept.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_api(app, Service(engine, limits), describe_model(scorer, checkpoint, limits))
    _add_pages(app)
    _add_errors(app)
    app.add_middleware(Guard, hosts=hosts)
    return app


def _add_api(app: FastAPI, service: Service, model: Model) -> None:
    problems = {status: {"model": Problem, "description": text} for status, text in _PROBLEMS.items()}

    @app.get("/api/model", summary="The model, and what the server takes", response_description="the model")
    async def describe() -> Model:
        return model

    @app.post(
        "/api/score",
        summary="Score images",
        response_model=Answer,
        response_description="a row for each file, scored or not",
        responses=problems,  # type: ignore[arg-type]
        openapi_extra={"requestBody": _BODY},
    )
    async def score(
        request: Request, name: str = "image", map: bool = False, errors_in_rows: bool = False
    ) -> JSONResponse:
        """Send files as a form (field `files`), or one file as the body, its name in `name`.

        `map=true` adds a map over each image, which takes as long as its score again. `errors_in_rows=true` answers
        200 even where no file was scored: the rows say why.
        """
        answer = await service.answer(request, name, map)
        first = answer.results[0]
        status = first.status if answer.error and isinstance(first, NotScored) and not errors_in_rows else 200
        headers = RETRY_AFTER if status == 503 else None
        return JSONResponse(answer.model_dump(exclude_none=True), status, headers)


def _add_pages(app: FastAPI) -> None:
    for path, file in FILES.items():
        content, kind = (PAGE / file).read_bytes(), TYPES[Path(file).suffix]
        app.get(path, include_in_schema=False)(_sender(content, kind))
    described: list[str] = []  # rendered once, when it is first asked for

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        if not described:
            described.append(render_docs(app.openapi()))
        return HTMLResponse(described[0])


def _sender(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, media_type=kind)

    return send


def render_docs(openapi: dict) -> str:
    """The description of the API as a page."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGE), autoescape=True, trim_blocks=True)
    environment.filters["code"] = lambda text: Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
    return environment.get_template("docs.html").render(api=openapi)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": error.text}, error.status, RETRY_AFTER if error.status == 503 else None)

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        texts = {404: f"nothing is at {path}", 405: f"{path} does not take {request.method}"}
        return JSONResponse({"error": texts.get(error.status_code, error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        texts = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return JSONResponse({"error": "; ".join(texts)}, 422)

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"error": "the server failed at this request; its log says why"}, 500)
