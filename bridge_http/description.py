"""The API described: /openapi.json for programs, and /docs for people, a page that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from .errors import encode
from .openapi import OPERATIONS, document
from .replies import json_response

_CSS: Final = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; --code: #8881 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .3rem; border-top: 1px solid var(--line);
padding-top: 1rem } h2 code { background: none; padding: 0 }
code, pre { font: .875em/1.5 ui-monospace, monospace; background: var(--code); border-radius: .3rem }
code { padding: .1em .3em } pre { padding: .7rem; overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .93em } td, th { text-align: left; vertical-align: top;
padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line) } .dim { color: var(--dim) }
nav ul { columns: 16rem; padding-left: 1.2rem } .wide { overflow-x: auto; margin: .9rem 0 }
"""
_POLICY: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()}'"
)
_EXAMPLES: Final = {
    "/infer": '{"prompt": "What is the capital of France?", "max_tokens": 16}',
    "/v1/chat/completions": '{"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}]}',
    "/v1/completions": '{"model": "MODEL", "prompt": "Once upon a time"}',
    "/v1/embeddings": '{"model": "MODEL", "input": ["one", "two"]}',
}


class Description:
    """The two endpoints; what they answer does not change while the bridge lives."""

    def routes(self) -> list[Route]:
        """Return what is where."""
        return [Route("/openapi.json", self._openapi), Route("/docs", self._docs)]

    async def _openapi(self, _request: Request) -> Response:
        return json_response(200, encode(document()), {"cache-control": "no-cache"})

    async def _docs(self, _request: Request) -> Response:
        headers = {"cache-control": "no-cache", "content-security-policy": _POLICY, "x-content-type-options": "nosniff"}
        return HTMLResponse(page(), headers=headers)


@cache
def page() -> str:
    """Write the page."""
    described = document()
    body = "".join(_body(described))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{_CSS}</style>'
    head += "<title>zmqrt bridge: API</title>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def _body(described: dict[str, Any]) -> Iterator[str]:
    info = described["info"]
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
    yield 'For programs: <a href="/openapi.json">openapi.json</a>. Where the bridge has keys, send one as '
    yield "<code>Authorization: Bearer KEY</code> or <code>x-api-key: KEY</code>.</p><nav><ul>"
    for one in OPERATIONS:
        yield f'<li><a href="#{_anchor(one.method, one.path)}"><code>{one.method.upper()} {escape(one.path)}</code></a>'
    yield "</ul></nav><main>"
    for one in OPERATIONS:
        yield from _operation(described, one.method, one.path)
    yield "</main>"


def _operation(described: dict[str, Any], method: str, path: str) -> Iterator[str]:
    said = described["paths"][path][method]
    yield f'<h2 id="{_anchor(method, path)}"><code>{method.upper()} {escape(path)}</code></h2>'
    yield f"<p>{escape(said['summary'])}.</p>"
    headers = [(one["name"], one.get("description", "")) for one in said.get("parameters", ())]
    if headers:
        yield _table(("header or part of the path", "meaning"), headers)
    if "requestBody" in said:
        yield _table(("field", "type", "default"), list(_fields(described, said["requestBody"])))
        yield f"<pre>{escape(_curl(method, path))}</pre>"
    answers = sorted((status, one["description"]) for status, one in said["responses"].items())
    yield _table(("status", "meaning"), answers)


def _fields(described: dict[str, Any], body: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    schema = _resolve(described, body["content"]["application/json"]["schema"])
    required = schema.get("required", ())
    for name, one in schema["properties"].items():
        default = "required" if name in required else json.dumps(one.get("default"))
        yield name, _type(one), default


def _resolve(described: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema["$ref"].rsplit("/", 1)[1]
    found: dict[str, Any] = described["components"]["schemas"][name]
    return found


def _type(schema: dict[str, Any]) -> str:
    """Put a schema into a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(json.dumps(one) for one in schema["enum"])
    words = str(schema.get("type", "anything"))
    if words == "array":
        return f"list of ({_type(schema.get('items', {}))})"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    if low is not None:
        words += f" from {low}" + (f" to {schema['maximum']}" if "maximum" in schema else "")
    return words


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = "".join(
        f"<tr><td><code>{escape(first)}</code></td>{''.join(f'<td>{escape(one)}</td>' for one in rest)}</tr>"
        for first, *rest in rows
    )
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'


def _curl(method: str, path: str) -> str:
    lines = (f"curl -X {method.upper()} http://localhost:8000{path}", "  -H 'content-type: application/json'")
    return " \\\n".join((*lines, f"  -d '{_EXAMPLES[path]}'"))


def _anchor(method: str, path: str) -> str:
    return escape(f"{method}-{path.strip('/').replace('/', '-').replace('{', '').replace('}', '')}", quote=True)
