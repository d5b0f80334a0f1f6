"""Found chunks for a model whose tokenizer we do not have: fitted by characters."""

from collections.abc import Sequence

from cluster.errors import BadRequestError
from cluster.types import FoundChunk
from deployments.ingress.providers.providers import ExternalModel
from models.chat_template import RenderError

#: Number, source, line breaks.
CHUNK_OVERHEAD_CHARS = 64


def fitting_chunks(found: Sequence[FoundChunk], *, max_chars: int) -> tuple[FoundChunk, ...]:
    """As many as there is room for, the best first; in a stable order, so that a provider's prompt
    cache finds equal finds equal.

    Raises:
        BadRequestError: there is not room for a single one.
    """
    kept, room = [], max_chars
    for one in found:
        size = _num_chars(one)
        if size <= room:
            kept.append(one)
            room -= size
    if found and not kept:
        smallest = min(map(_num_chars, found))
        raise BadRequestError(
            f"Retrieved passages get {max_chars} characters for models of this provider, and the"
            f" smallest that was found needs {smallest}.",
            param="tools",
            openai_code="context_length_exceeded",
        )
    return tuple(sorted(kept, key=lambda one: (one.bucket, one.filename, one.position)))


def context_text(model: ExternalModel, chunks: Sequence[FoundChunk]) -> str:
    """
    Raises:
        BadRequestError: the template refuses them.
    """
    try:
        return model.context_template.render(chunks)
    except RenderError as error:
        raise BadRequestError(f"The provider's retrieval template failed: {error}") from error


def _num_chars(one: FoundChunk) -> int:
    return len(one.chunk.text) + len(one.filename) + CHUNK_OVERHEAD_CHARS
