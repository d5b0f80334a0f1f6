"""What is put before a query and before a passage, for a model that was trained so.

The configuration decides first, then the checkpoint's own prompts, then, for models whose
checkpoints do not say what their cards do, a short list of names.
"""

import re
from dataclasses import dataclass

from cluster.config import EmbedderConfig
from models.embedding.layout import EmbeddingLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefixes:
    query: str = ""
    passage: str = ""


# Of the last part of a name: "intfloat/multilingual-e5-base" and "/models/e5-base-v2" both have it.
_KNOWN = (
    (
        re.compile(r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?", re.IGNORECASE),
        Prefixes(query="query: ", passage="passage: "),
    ),
    (
        re.compile(r"bge-(small|base|large)-en(-v1\.5)?", re.IGNORECASE),
        Prefixes(query="Represent this sentence for searching relevant passages: "),
    ),
)


def choose_prefixes(
    config: EmbedderConfig, layout: EmbeddingLayout, *, names: tuple[str, ...]
) -> Prefixes:
    """`names`: what the model may be called besides `config.source` and `config.name`."""
    query, passage = layout.query_prefix, layout.passage_prefix
    if not query and not passage:
        known = _known_by((config.source, config.name, *names))
        query, passage = known.query, known.passage
    if config.query_prefix is not None:
        query = config.query_prefix
    if config.passage_prefix is not None:
        passage = config.passage_prefix
    return Prefixes(query=query or "", passage=passage or "")


def _known_by(names: tuple[str, ...]) -> Prefixes:
    for name in names:
        last = name.rstrip("/").rsplit("/", 1)[-1]
        for pattern, prefixes in _KNOWN:
            if pattern.fullmatch(last):
                return prefixes
    return Prefixes()
