"""`GET /`: the playground, static files that load nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from service.errors import NotFoundError

WEB = Path(__file__).resolve().parents[1] / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}

router = APIRouter(include_in_schema=False)
# Read once, so that no file is opened by a path from a request.
_CONTENT = {path.name: path.read_bytes() for path in WEB.iterdir() if path.suffix in _TYPES}


def _serve(name: str) -> Response:
    headers = {
        "content-security-policy": POLICY,
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "cross-origin-opener-policy": "same-origin",
    }
    return Response(_CONTENT[name], media_type=_TYPES[Path(name).suffix], headers=headers)


@router.get("/")
async def index() -> Response:
    """The page."""
    return _serve("index.html")


@router.get("/web/{name}")
async def asset(name: str) -> Response:
    """One of its files."""
    if name not in _CONTENT:
        raise NotFoundError
    return _serve(name)
