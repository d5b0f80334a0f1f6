"""How found chunks are written for a model to read: a Jinja template per model family.

A template sees `passages`, each with `number` (from 1), `source`, `heading`, `page` (or None) and
`text`. Looked for in this order: the operator's file, `retrieval_template.jinja` in the checkpoint,
the family's in `context_templates/`, the default there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import jinja2

from cluster.types import FoundChunk
from models.chat_template import ChatTemplateError, RenderError, template_environment
from models.tokenizer import read_json_object

CHECKPOINT_FILE = "retrieval_template.jinja"
_FOLDER = Path(__file__).resolve().parent / "context_templates"
_FAMILIES = {"qwen": "qwen", "qwen2": "qwen", "qwen3": "qwen"}


class ContextTemplate:
    """A compiled template."""

    def __init__(self, source: str) -> None:
        """
        Raises:
            ChatTemplateError: not Jinja.
        """
        try:
            self._template = template_environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"line {error.lineno}: {error.message}") from error

    @classmethod
    def from_folder(cls, folder: Path, *, override: Path | None = None) -> Self:
        """The template for a checkpoint, or the one in the file `override`.

        Raises:
            ChatTemplateError: it is missing or broken.
        """
        return cls.from_file(override or _path_for(folder))

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """
        Raises:
            ChatTemplateError: it is missing or broken.
        """
        try:
            return cls(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ChatTemplateError(f"{path}: {error}") from error
        except ChatTemplateError as error:
            raise ChatTemplateError(f"{path}: retrieval template: {error}") from error

    @classmethod
    def default(cls) -> Self:
        """For a model of which nothing is known."""
        return cls.from_file(_FOLDER / "default.jinja")

    def render(self, chunks: Sequence[FoundChunk]) -> str:
        """The text that goes into the context.

        Raises:
            RenderError: the template refused them; the operator's to repair.
        """
        passages = [
            {
                "number": number,
                "source": f"{found.bucket}/{found.filename}",
                "heading": found.chunk.heading,
                "page": found.chunk.page,
                "text": found.chunk.text,
            }
            for number, found in enumerate(chunks, 1)
        ]
        try:
            return self._template.render(passages=passages)
        except jinja2.TemplateError as error:
            raise RenderError(error.message or type(error).__name__) from error


def _path_for(folder: Path) -> Path:
    own = folder / CHECKPOINT_FILE
    if own.exists():
        return own
    model_type = str(read_json_object(folder / "config.json").get("model_type", ""))
    return _FOLDER / f"{_FAMILIES.get(model_type, 'default')}.jinja"
