"""The page's files, as they were built from `page/`: GET / and what it loads. All of them are on this machine."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from edgemoe.server.exchange import Exchange
from edgemoe.server.refusals import RefusalError

FOLDER = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page may load and run files of this server, and nothing that is written into it."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


async def index(exchange: Exchange) -> Response:
    """Send the page."""
    return _file("index.html", "no-cache")


async def asset(exchange: Exchange) -> Response:
    """Send a file of the page; one with a digest in its name never changes. Raises RefusalError where there is none."""
    name = exchange.request.path_params["name"]
    return _file(name, "public, max-age=31536000, immutable" if "-" in name else "no-cache")


def _file(name: str, kept: str) -> Response:
    if name not in _names():
        raise RefusalError(f"{name[:80]}: there is no such file of the page.", "Load the page again.", 404)
    return Response((FOLDER / name).read_bytes(), headers={**HEADERS, "cache-control": kept}, media_type=_kind(name))


def _kind(name: str) -> str:
    return KINDS[Path(name).suffix]


def _names() -> set[str]:
    """The names of all files of the page."""
    return {path.name for path in FOLDER.glob("*.*") if path.suffix in KINDS}
