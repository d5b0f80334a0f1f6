import pytest

from models.documents.errors import UnreadableDocumentError
from models.documents.intercom import read_intercom

ARTICLE = {
    "type": "article",
    "id": "77",
    "title": "Refunds & returns",
    "url": "https://help.example.com/articles/77",
    "updated_at": 1700000000,
    "body": "<p>Intro text.</p><h2>How long</h2><p>Thirty days.</p><p>No longer.</p>",
}
METADATA = {
    "article_id": "77",
    "title": "Refunds & returns",
    "url": "https://help.example.com/articles/77",
    "article_url": "https://help.example.com/articles/77",
    "updated_at": "1700000000",
}


@pytest.mark.parametrize(
    "value", [ARTICLE, [ARTICLE], {"type": "list", "data": [ARTICLE]}, {"articles": [ARTICLE]}]
)
def test_an_articles_sections_carry_where_they_are_from(value: object) -> None:
    blocks = [block for block in read_intercom(value) if block.text.strip()]
    assert [(block.text.strip(), block.heading, block.metadata) for block in blocks] == [
        ("Intro text.", "Refunds & returns", {**METADATA, "heading": "Refunds & returns"}),
        (
            "## How long\n\nThirty days.\n\nNo longer.",
            "Refunds & returns > How long",
            {**METADATA, "heading": "How long"},
        ),
    ]


def test_what_is_missing_is_empty() -> None:
    (block,) = [b for b in read_intercom({"body": "<p>Text.</p>"}) if b.text.strip()]
    assert block.metadata == dict.fromkeys([*METADATA, "heading"], "")


@pytest.mark.parametrize("value", [{"name": "x"}, [], [1, 2], {"data": [{"x": 1}]}])
def test_json_without_articles_is_refused(value: object) -> None:
    with pytest.raises(UnreadableDocumentError, match="not an Intercom article"):
        list(read_intercom(value))
