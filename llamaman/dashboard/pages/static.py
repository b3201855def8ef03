"""The pages' stylesheet and sign. Read once, when the app is assembled."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flask import Blueprint, Response, request

from llamaman.access import Access, access
from llamaman.dashboard.operation import operation

_FOLDER: Final = Path(__file__).parent / "static"


def add(blueprint: Blueprint) -> None:
    """Add the files."""
    stylesheet = (_FOLDER / "llamaman.css").read_bytes()
    sign = (_FOLDER / "llamaman.svg").read_bytes()

    @blueprint.get("/static/llamaman.css")
    @access(Access.PUBLIC)
    @operation("The stylesheet of the pages.", answers={200: ("CSS.", None), 304: ("Unchanged.", None)})
    def show_stylesheet() -> Response:
        return _file(stylesheet, "text/css")

    @blueprint.get("/static/llamaman.svg")
    @access(Access.PUBLIC)
    @operation("The sign of the pages.", answers={200: ("SVG.", None), 304: ("Unchanged.", None)})
    def show_sign() -> Response:
        return _file(sign, "image/svg+xml")


def _file(data: bytes, kind: str) -> Response:
    response = Response(data, mimetype=kind)
    # Kept, but asked about each time: an update of LlamaMan shows at once.
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    response.make_conditional(request)
    return response
