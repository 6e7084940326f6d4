"""The OpenAPI document, and pages for people. Everything that a page loads is served from here."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from flask import Blueprint, Response, current_app, jsonify, send_from_directory
from flask_openapi3.openapi import OpenAPI

from api import problems
from shared.errors import NotFound

ASSETS: Final = Path(str(files("flask_openapi3_swagger"))) / "templates" / "swagger"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>Prepaid billing API</title>
  <link rel="icon" href="/docs/assets/images/swagger.svg">
  <link rel="stylesheet" href="/docs/assets/css/swagger-ui.css">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="/docs/assets/js/swagger-ui-bundle.js"></script>
  <script src="/docs/start.js"></script>
</body>
</html>
"""
# No validator is asked: the pages work without a network.
START: Final = """
SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, docExpansion: "none"
});
"""

routes = Blueprint("docs", __name__)


def install(app: OpenAPI) -> None:
    """Serve `/openapi.json`, `/docs` and `/problems`."""
    app.register_blueprint(routes)


@routes.get("/openapi.json")
def document() -> Response:
    """The OpenAPI 3.1 document of this API."""
    app = current_app
    if not isinstance(app, OpenAPI):
        raise NotFound("this application has no OpenAPI document")
    return jsonify(app.api_doc)


@routes.get("/docs")
def page() -> Response:
    """The same for people."""
    return Response(PAGE, content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY})


@routes.get("/docs/start.js")
def start() -> Response:
    """What the page does when it is loaded."""
    return Response(START, content_type="text/javascript; charset=utf-8")


@routes.get("/docs/assets/<path:name>")
def asset(name: str) -> Response:
    """Script, style and image of Swagger UI, from the package that carries them."""
    return send_from_directory(ASSETS, name, max_age=86_400)


@routes.get("/problems/<code>")
def problem(code: str) -> Response:
    """What a problem's code stands for."""
    explanation = problems.explain(code)
    if explanation is None:
        raise NotFound("no problem has this code")
    return jsonify(explanation)
