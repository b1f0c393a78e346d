"""The ASGI app: security headers, the readiness endpoint, logging. Widgets are in pages/."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.config import Settings
from core.data import uploads
from core.files.read_only import is_read_only
from core.jobs import queue
from pages import _thumbnails as thumbnails
from pages._sessions import sweep_closed_sessions

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent
MIN_FREE_BYTES = 200 * 2**20
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    # Streamlit has one inline script and many inline styles; nothing is loaded from another host.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'",
}


def add_headers(app: ASGIApp) -> ASGIApp:
    """Set the headers on every response; pure ASGI, so that web sockets are not affected."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, receive, send_with_headers)

    return wrapped


def ready(_request: Request) -> JSONResponse:
    """Return 200 if a model can be loaded and the disk has space, else 503 with the reason."""
    from core.models import registry  # imports torch, which takes seconds (see import_and_tidy)

    directory = Settings.from_env().checkpoints_dir
    reason = None if registry.active_model_id(directory) else "no model can be loaded"
    place = directory if directory.is_dir() else ROOT
    # A read-only folder needs no space: images are read, and nothing is trained.
    if not is_read_only(place) and shutil.disk_usage(place).free < MIN_FREE_BYTES:
        reason = "the disk is full"
    return JSONResponse({"ready": reason is None, "reason": reason}, 503 if reason else 200)


def import_and_tidy(directory: Path) -> None:
    """Import what every page needs (torch takes seconds) and remove orphaned temporary folders.

    Runs in a thread beside the server, which answers its health check meanwhile. If a page needs
    the modules earlier, Python's import lock makes it wait for this thread.
    """
    try:
        from core.models import registry

        registry.clean_leftovers(directory)
    except Exception:
        logger.exception("the app cannot start its pages")
        raise


def set_up_logging() -> None:
    """Log to standard error, without file names, tags or pixels, and without library noise."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for name in ("faiss.loader", "highdicom"):  # they log tracebacks on a normal start, and UIDs
        logging.getLogger(name).setLevel(logging.WARNING)


@asynccontextmanager
async def lifespan(_app: st.App) -> AsyncIterator[None]:
    """Set up logging, settle orphaned jobs and sweep closed sessions."""
    set_up_logging()
    if (directory := Settings.from_env().checkpoints_dir).is_dir():
        uploads.clean_uploads(directory)
        queue.settle(directory)
    sweeper = asyncio.create_task(sweep_closed_sessions())
    importer = asyncio.create_task(asyncio.to_thread(import_and_tidy, directory))
    yield
    sweeper.cancel()
    importer.cancel()


def to_first_page(request: Request) -> RedirectResponse:
    """Redirect to the root, because Streamlit serves its default page only there.

    The address is relative, so that it also holds behind a server that adds or drops a prefix.
    """
    return RedirectResponse(f"./?{request.url.query}" if request.url.query else "./")


def make_routes(prefix: str) -> list[Route]:
    """The app's own addresses, under ``server.baseUrlPath`` as Streamlit's are.

    Args:
        prefix: "" or "/nbx". The readiness address also answers without it, for a probe that does
            not go through the web server which adds the prefix.
    """
    return [
        Route("/ready", ready),
        *([Route(f"{prefix}/ready", ready)] if prefix else []),
        Route(f"{prefix}/diagnose", to_first_page),
        Route(f"{prefix}/{thumbnails.ADDRESS}/{{token}}/{{row:int}}", thumbnails.answer),
    ]


_middleware = [Middleware(add_headers)]
app = st.App(
    ROOT / "pages/_router.py",
    routes=make_routes(thumbnails.find_prefix()),
    middleware=_middleware,
    lifespan=lifespan,
)
