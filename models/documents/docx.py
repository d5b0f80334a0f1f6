"""Word files as blocks: one per section, below its headings; a table's rows are lines.

Knows paragraphs with their styles' outline levels, tables, text boxes, footnotes and endnotes, and
tracked changes as if accepted. Running headers and footers are left out.
"""

from collections.abc import Iterator
from xml.etree import ElementTree

from models.documents.block import Block, Boundary, join_headings
from models.documents.office_package import OfficePackage
from models.documents.plain_text import divide_block

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
# Older readers' version of what stands beside it; text that has been moved elsewhere.
_SKIPPED = (
    "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",
    f"{_W}moveFrom",
)
_TEXT = {f"{_W}t": None, f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n"}
_TEXT |= {f"{_W}noBreakHyphen": "-"}
_BODY = "word/document.xml"
_MAX_LEVEL = 10  # the title, and nine levels of headings
_MAX_HEADING_CHARS = 200
_MAX_STYLE_DEPTH = 20  # styles are based on styles; a circle of them ends here


def read_docx(package: OfficePackage) -> Iterator[Block]:
    """
    Raises:
        UnreadableDocumentError: a part is damaged or unpacks to too much.
    """
    levels = _heading_levels(package)
    headings = [""] * _MAX_LEVEL
    lines: list[str] = []

    def section() -> Block:
        return Block(
            text="\n\n".join(lines) + "\n\n",
            boundary=Boundary.SECTION,
            heading=join_headings(*headings),
        )

    for name in (_BODY, "word/footnotes.xml", "word/endnotes.xml"):
        for style, text in _Paragraphs(package, name):
            level = levels.get(style, 0)
            if level and lines:
                yield from divide_block(section())
                lines = []
            if level:
                headings[level - 1 :] = [""] * (_MAX_LEVEL - level + 1)
                headings[level - 1] = " ".join(text.split())[:_MAX_HEADING_CHARS]
            lines.append(text)
        if lines:
            yield from divide_block(section())
            lines = []
        headings = [""] * _MAX_LEVEL


def _heading_levels(package: OfficePackage) -> dict[str, int]:
    """Style id -> level, of styles that are headings; a title's is 1, above all of them."""
    own: dict[str, int] = {}
    parents: dict[str, str] = {}
    for event, style in package.elements("word/styles.xml"):
        if event != "end" or style.tag != f"{_W}style":
            continue
        style_id = style.get(f"{_W}styleId", "")
        name = _value(style.find(f"{_W}name")).lower()
        outline = _value(style.find(f"{_W}pPr/{_W}outlineLvl"))
        parents[style_id] = _value(style.find(f"{_W}basedOn"))
        if outline and outline in "012345678":  # 9 is text
            own[style_id] = int(outline) + 2
        elif name.startswith("heading ") and name[8:] and name[8:] in "123456789":
            own[style_id] = int(name[8:]) + 1
        elif name == "title":
            own[style_id] = 1
    levels = {f"Heading{number}": number + 1 for number in range(1, _MAX_LEVEL)} | {"Title": 1}
    for style_id in parents:
        ancestor = style_id
        for _ in range(_MAX_STYLE_DEPTH):
            if ancestor in own or not ancestor:
                break
            ancestor = parents.get(ancestor, "")
        if ancestor in own:
            levels[style_id] = own[ancestor]
    return levels


def _value(element: ElementTree.Element | None) -> str:
    return "" if element is None else element.get(f"{_W}val", "")


class _Paragraphs:
    """Iterates over a part's paragraphs, each with its style's id; a table row is one."""

    def __init__(self, package: OfficePackage, name: str) -> None:
        self._events = package.elements(name)
        self._open: list[list[str]] = []  # texts of the paragraphs that are open, outermost first
        self._styles: list[str] = []
        self._cells: list[list[str]] = []  # of the rows that are open
        self._texts_in_cell: list[list[str]] = []
        self._num_skipped = 0  # elements that are open and skipped

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for event, element in self._events:
            if element.tag in _SKIPPED:
                self._num_skipped += 1 if event == "start" else -1
            elif self._num_skipped == 0 and event == "start":
                self._start(element.tag)
            elif self._num_skipped == 0:
                yield from self._end(element)
            if event == "end":
                element.clear()

    def _start(self, tag: str) -> None:
        if tag == f"{_W}p":
            self._open.append([])
            self._styles.append("")
        elif tag == f"{_W}tr":
            self._cells.append([])
        elif tag == f"{_W}tc":
            self._texts_in_cell.append([])

    def _end(self, element: ElementTree.Element) -> Iterator[tuple[str, str]]:
        tag = element.tag
        if tag in _TEXT and self._open:
            self._open[-1].append(_TEXT[tag] or element.text or "")
        elif tag == f"{_W}pStyle" and self._styles:
            self._styles[-1] = element.get(f"{_W}val", "")
        elif tag == f"{_W}p":
            yield from self._paragraph("".join(self._open.pop()).strip(), self._styles.pop())
        elif tag == f"{_W}tc" and self._cells:
            self._cells[-1].append(" ".join(self._texts_in_cell.pop()))
        elif tag == f"{_W}tr":
            row = self._cells.pop()
            if any(row):
                yield from self._paragraph(" | ".join(row), "")

    def _paragraph(self, text: str, style: str) -> Iterator[tuple[str, str]]:
        if self._texts_in_cell:
            self._texts_in_cell[-1].append(text)
        elif text:
            yield style, text
