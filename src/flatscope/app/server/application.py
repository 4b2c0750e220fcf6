"""The application: endpoints, the page's files, and the guard around them."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

import flatscope
from flatscope.app.server import corrections, electron, optics, outputs, twists, views
from flatscope.app.server.desk import Desk
from flatscope.app.server.guard import Guard
from flatscope.files.write import WriteError
from flatscope.micrograph import MicrographError
from flatscope.runs.settings import SettingsError

_ROUTERS = (
    *(views.router, corrections.router, outputs.router),
    *(optics.router, twists.router, electron.router),
)
_REFUSED: dict[type[Exception], int] = {
    MicrographError: 404,
    SettingsError: 409,
    WriteError: 507,
}
"""Errors whose message was written for the user, and their status."""


def make_api(desk: Desk | None = None) -> FastAPI:
    """The endpoints without the guard; without a desk only to describe them."""
    api = FastAPI(
        title="flatscope workbench",
        version=flatscope.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_live,
    )
    api.state.desk = desk
    for router in _ROUTERS:
        api.include_router(router)
    for kind, status in _REFUSED.items():
        api.add_exception_handler(kind, _refusing(status))
    api.add_exception_handler(RequestValidationError, _refuse_shape)
    static = Path(str(resources.files("flatscope.app.server") / "static"))
    if (static / "index.html").is_file():
        api.mount("/", StaticFiles(directory=static, html=True))
    return api


def describe_api() -> str:
    """What the endpoints take and give, as the text of openapi.json."""
    return json.dumps(make_api().openapi(), indent=1, ensure_ascii=False) + "\n"


def make_application(desk: Desk, *, token: str, port: int) -> Guard:
    """The whole workbench as an ASGI application.

    Parameters
    ----------
    desk
        The open run.
    token
        A secret of this start.
    port
        Where it listens; part of the cookie's name.
    """
    return Guard(make_api(desk), token, f"flatscope-{port}")


@asynccontextmanager
async def _live(api: FastAPI) -> AsyncIterator[None]:
    desk: Desk | None = api.state.desk
    if desk is not None:
        threading.Thread(target=desk.watch, daemon=True).start()
    yield
    if desk is not None:
        desk.close()


def _refusing(status: int) -> Any:
    def refuse(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": " ".join(str(error).split())}, status)

    return refuse


def _refuse_shape(request: Request, error: Exception) -> JSONResponse:
    """One line for a request of the wrong shape."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"detail": f"{where}: {first['msg']}".lstrip(": ")}, 422)
