"""The API page at /docs: Swagger UI from files of this machine, because sites often have no internet.

The files come from the package fastapi-offline (see docs/dependencies.md); only they are used, not its application class.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

_ASSETS: Final = "/docs/assets"
_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


def add_docs(app: FastAPI, title: str) -> None:
    """Serves /docs and its files, and redirects / there."""
    folder = files("fastapi_offline").joinpath("static")

    async def page() -> Response:
        html = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=title,
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_ASSETS}/favicon.svg",
            swagger_ui_parameters={"tryItOutEnabled": True, "displayRequestDuration": True, "docExpansion": "list"},
        )
        return HTMLResponse(bytes(html.body), headers={"content-security-policy": _POLICY})

    async def home() -> Response:
        return RedirectResponse("/docs")

    app.add_api_route("/docs", page, include_in_schema=False)
    app.add_api_route("/", home, include_in_schema=False)
    app.mount(_ASSETS, StaticFiles(directory=str(folder)), name="docs assets")
