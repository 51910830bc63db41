"""The application: who may ask, what a browser may do with the answers, the page itself."""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dfkd import __version__
from dfkd.errors import UserError
from dfkd.inspection.viewer.library import Library, Missing, Refused
from dfkd.inspection.viewer.routes import Viewer, as_json

HERE = Path(__file__).parent
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")
EMPTY = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"  # of an empty style sheet: plotly fills its own by script
POLICY = (
    f"default-src 'self'; style-src 'self' {EMPTY}; img-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Adds the headers that keep other sites out, and refuses what other sites ask for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - the interface of ASGI
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                named = {name for name, _ in headers}
                if b"cache-control" not in named:
                    headers.append((b"cache-control", b"no-cache" if b"etag" in named else b"no-store"))
                headers.extend((name.encode(), value.encode()) for name, value in HEADERS.items())
            await send(message)

        if request.method not in ("GET", "HEAD", "POST"):
            refusal = as_json({"error": f"{request.method} is not answered here."}, 405)
            await refusal(scope, receive, guarded)
        elif request.method == "POST" and not same_origin(request):
            refusal = as_json({"error": "only this viewer's own pages may ask for that."}, 403)
            await refusal(scope, receive, guarded)
        else:
            await self.app(scope, receive, guarded)


def same_origin(request: Request) -> bool:
    """Whether a page of this very server sent the request; one that does not say so did not."""
    origin = request.headers.get("origin", "")
    return bool(origin) and origin.partition("://")[2] == request.headers.get("host", "")


def create_app(folder: str | Path, hosts: Sequence[str] = (), device: str = "auto") -> Starlette:
    """The viewer of a folder.

    Args:
        folder: nothing outside of it is served, and nothing in it is changed.
        hosts: names, besides those of this machine for itself, that a request may be addressed to.
        device: where networks run.

    Raises:
        UserError: no such folder.
    """
    viewer = Viewer(Library(folder), device)
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True)
    modules = sorted(path.name for path in (HERE / "static").glob("*.js"))

    def page(request: Request) -> Response:
        text = templates.get_template("index.html").render(folder=viewer.library.given, version=__version__, modules=modules)
        return Response(text, media_type="text/html")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # The list of banks is read while the browser still asks for the page.
        threading.Thread(target=viewer.library.find, daemon=True).start()
        yield
        viewer.jobs.end()

    app = Starlette(
        routes=[
            Route("/", page, methods=["GET"]),
            Route("/plotly.js", plotly, methods=["GET"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
            *viewer.routes(),
        ],
        middleware=[
            Middleware(Guard),
            Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, *hosts], www_redirect=False),
        ],
        exception_handlers={UserError: told, HTTPException: named},
        lifespan=lifespan,
    )
    app.state.viewer = viewer
    return app


def told(request: Request, error: Exception) -> Response:
    """A user's mistake, in its sentence."""
    status = 403 if isinstance(error, Refused) else 404 if isinstance(error, Missing) else 422
    library: Library = request.app.state.viewer.library
    return as_json({"error": library.below(str(error))}, status)


def named(request: Request, error: Exception) -> Response:
    """An address that there is not."""
    assert isinstance(error, HTTPException)
    return as_json({"error": str(error.detail)}, error.status_code)


def plotly(request: Request) -> Response:
    """plotly.js of the installed package."""
    return Response(plotly_script(), media_type="text/javascript", headers={"cache-control": "max-age=86400"})


@functools.cache
def plotly_script() -> bytes:
    """plotly.js, told that the style sheet of its map library is there: no map is drawn, and the policy refuses it."""
    script = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    marks = [mark.decode() for mark in re.findall(rb'getElementById\("([0-9a-f]{64})"\)', script)]
    prelude = f"for(const id of {json.dumps(marks)})document.head.append(Object.assign(document.createElement('meta'),{{id}}));"
    return prelude.encode() + script
