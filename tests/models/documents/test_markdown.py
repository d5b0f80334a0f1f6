from models.documents.block import Block
from models.documents.markdown import read_markdown

TEXT = """\
---
title: no heading
# nor this
---
Before.

# First #

Text.

## Second level
```
# a comment, no heading
```
Setext
======
More.

Sub
---

- item
---
####### seven are none
#hashtag
    # code
"""


def headings(text: str, *, title: str = "") -> list[tuple[str, str]]:
    return [
        (block.heading, block.text.splitlines()[0])
        for block in read_markdown(text, title=title)
        if block.text
    ]


def test_sections_know_the_headings_above_them() -> None:
    assert headings(TEXT) == [
        ("", "---"),
        ("First", "# First #"),
        ("First > Second level", "## Second level"),
        ("Setext", "Setext"),
        ("Setext > Sub", "Sub"),
    ]


def test_the_text_stays_as_it_is() -> None:
    assert "".join(block.text for block in read_markdown(TEXT)) == TEXT


def test_a_title_is_above_all_headings_unless_the_first_says_the_same() -> None:
    assert headings("# Pricing\n\nText\n", title="Pricing | Shoal")[0][0] == "Pricing"
    assert headings("# Pricing\n\nText\n", title="Shoal")[0][0] == "Shoal > Pricing"
    assert headings("Text\n", title="Shoal")[0][0] == "Shoal"


def test_a_deeper_heading_does_not_outlive_its_section() -> None:
    assert headings("# A\n### deep\n## B\n# C\n")[-1][0] == "C"
    assert headings("# A\n### deep\n## B\n")[-1][0] == "A > B"


def test_a_fence_of_other_marks_does_not_end_code() -> None:
    text = "~~~\n```\n# no\n~~~\n# yes\n"
    assert [heading for heading, _ in headings(text)] == ["", "yes"]


def test_a_long_section_is_several_blocks() -> None:
    blocks: list[Block] = list(read_markdown("# Long\n\n" + "Words and words. " * 10_000))
    assert len(blocks) > 2
    assert {block.heading for block in blocks if block.text} == {"Long"} | {""} - {""}
