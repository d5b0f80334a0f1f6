"""How found chunks are written for a model, and which template that is."""

import json
from pathlib import Path

import pytest

from cluster.types import Chunk, FoundChunk
from models.chat_template import ChatTemplateError
from models.context_template import ContextTemplate

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


def found(filename: str, text: str) -> FoundChunk:
    return FoundChunk(
        bucket="handbook",
        filename=filename,
        etag="",
        embedding_model="m",
        chunk=Chunk(text=text, start=0, end=len(text)),
        position=0,
        distance=0.1,
        score=1.0,
    )


CHUNKS = [found("a.md", "One."), found("b.md", "Two\nlines.")]


def test_the_demo_model_reads_passages_as_it_was_trained_on_them() -> None:
    template = ContextTemplate.from_folder(DEMO / "checkpoint")
    assert template.render(CHUNKS) == (
        "Answer from these passages.\n\n[1] handbook/a.md\nOne.\n\n[2] handbook/b.md\nTwo\nlines."
    )


def test_families_have_their_own_way_and_others_the_default(tmp_path: Path) -> None:
    for model_type, mark in (("qwen3", '<passage number="1" source="handbook/a.md">'),
                             ("llama", "\n\n[1] handbook/a.md\nOne.\n\n[2] handbook/b.md\n"),
                             ("unheard-of", "\n\n[1] handbook/a.md\n")):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert mark in ContextTemplate.from_folder(tmp_path).render(CHUNKS)


def test_the_operators_file_comes_first(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{% for p in passages %}{{ p.text }}|{% endfor %}")
    template = ContextTemplate.from_folder(DEMO / "checkpoint", override=own)
    assert template.render(CHUNKS) == "One.|Two\nlines.|"


def test_text_of_a_chunk_is_never_run_as_a_template() -> None:
    template = ContextTemplate.from_folder(DEMO / "checkpoint")
    assert "{{ 7 * 7 }}" in template.render([found("a.md", "{{ 7 * 7 }}")])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for %}")
    for path in (broken, tmp_path / "missing.jinja"):
        with pytest.raises(ChatTemplateError, match=path.name):
            ContextTemplate.from_folder(DEMO, override=path)
