"""PARAMETERS.md lists what requests really have, and names tests that exist."""

import re
from pathlib import Path

import pytest

from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.completions import CompletionRequest

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "PARAMETERS.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| ([CP ]+) \|.*\| (.+) \|$", re.MULTILINE)


def documented(letter: str) -> set[str]:
    """Parameters with a row of their own for an endpoint, or in a paragraph of those without."""
    rows = {name for name, endpoints, _ in ROW.findall(DOCUMENT) if letter in endpoints}
    paragraphs = DOCUMENT[DOCUMENT.index("## Accepted, and without effect") :]
    return rows | set(re.findall(r"`(\w+)`", paragraphs))


@pytest.mark.parametrize(
    ("request_type", "letter"), [(ChatCompletionRequest, "C"), (CompletionRequest, "P")]
)
def test_every_field_of_a_request_is_documented(
    request_type: type[ChatCompletionRequest] | type[CompletionRequest], letter: str
) -> None:
    assert set(request_type.model_fields) - documented(letter) == set()


def test_every_documented_parameter_exists() -> None:
    fields = set(ChatCompletionRequest.model_fields) | set(CompletionRequest.model_fields)
    assert {name for name, _, _ in ROW.findall(DOCUMENT)} - fields == set()


def test_every_named_test_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", DOCUMENT)
    assert len(named) > 30
    assert all(proof.startswith("`") for _, _, proof in ROW.findall(DOCUMENT)), "a row has no test"
    missing = [
        f"{path}::{name}"
        for path, name in named
        if f"def {name}(" not in (ROOT / "tests" / path).read_text(encoding="utf-8")
    ]
    assert missing == []
