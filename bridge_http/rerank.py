"""POST /v1/rerank, /v2/rerank and /rerank: documents sorted by how well they answer a query.

The shape is the one that Cohere, Jina and vLLM share: clients of each find what they read, and may ignore the rest.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from ..client.scoring import Ranking
from ..protocol.tasks import Rerank
from .errors import json_response
from .in_flight import HttpRequest, InFlight
from .openai.requests import parse
from .openai.schema import EmbeddingUsage
from .request_body import BodyReader


class DocumentText(msgspec.Struct, frozen=True, kw_only=True):
    """A document as an object; whatever else stands in it is its owner's."""

    text: str


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/rerank, /v2/rerank, /rerank.

    `top_n`: so many of the best; 0 = all. `truncate`: false refuses a document that is too long, instead of cutting it.
    """

    model: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    query: str
    documents: Annotated[list[str | DocumentText], Meta(min_length=1, max_length=2048)]
    top_n: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    return_documents: bool | None = None
    truncate: bool | None = None


class Relevance(msgspec.Struct, frozen=True, kw_only=True):
    """One document by its place among those that were sent; its text unless `return_documents` is false."""

    index: int
    relevance_score: float
    document: DocumentText | UnsetType = UNSET


class ReadTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Cohere's count of tokens."""

    input_tokens: int


class RerankMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What Cohere tells beside the results."""

    tokens: ReadTokens


class RerankReply(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to POST /v1/rerank: the most relevant first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[Relevance]
    meta: RerankMeta
    usage: EmbeddingUsage


async def post(in_flight: InFlight, bodies: BodyReader, request: HttpRequest) -> Response:
    """Answer POST /v1/rerank, /v2/rerank and /rerank."""
    body = parse(await bodies.read(request.headers, request.scope, request.receive), RerankRequest)
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    task = Rerank(query=body.query, documents=texts, truncate=body.truncate is not False)
    ranking = await in_flight.rerank(task, request, model=body.model).whole(request)
    return json_response(200, _reply(ranking, body, texts, f"rerank-{request.caller.rid.hex()}"))


def _reply(ranking: Ranking, body: RerankRequest, texts: list[str], id_: str) -> RerankReply:
    read = ranking.usage.prompt_tokens
    with_text = body.return_documents is not False
    results = [
        Relevance(
            index=one.index,
            relevance_score=one.score,
            document=DocumentText(text=texts[one.index]) if with_text else UNSET,
        )
        for one in ranking.best(body.top_n or None)
    ]
    return RerankReply(
        id=id_,
        model=ranking.model,
        results=results,
        meta=RerankMeta(tokens=ReadTokens(input_tokens=read)),
        usage=EmbeddingUsage(prompt_tokens=read, total_tokens=read),
    )
