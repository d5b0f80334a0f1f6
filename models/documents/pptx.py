"""PowerPoint files as blocks: one per slide, below its title, with its notes."""

from collections.abc import Iterator

from models.documents.block import Block, Boundary
from models.documents.office_package import OfficePackage
from models.documents.plain_text import divide_block

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_PRESENTATION = "ppt/presentation.xml"
_TITLES = ("title", "ctrTitle")
_NOT_CONTENT = ("sldNum", "dt", "ftr", "hdr")
_MAX_HEADING_CHARS = 200


def read_pptx(package: OfficePackage) -> Iterator[Block]:
    """
    Raises:
        UnreadableDocumentError: a part is damaged or unpacks to too much.
    """
    for number, name in enumerate(_slide_names(package), start=1):
        slide = _Shapes(package, name)
        paragraphs = list(slide)
        for kind, notes_name in package.relationships(name).values():
            if kind == "notesSlide":
                paragraphs += _Shapes(package, notes_name)
        if paragraphs:
            block = Block(
                text="\n\n".join(paragraphs) + "\n\n",
                boundary=Boundary.SECTION,
                heading=slide.title[:_MAX_HEADING_CHARS],
                page=number,
            )
            yield from divide_block(block)


def _slide_names(package: OfficePackage) -> list[str]:
    """In the order of the presentation."""
    parts = package.relationships(_PRESENTATION)
    ids = [
        element.get(f"{_R}id", "")
        for event, element in package.elements(_PRESENTATION)
        if event == "end" and element.tag == f"{_P}sldId"
    ]
    return [parts[slide_id][1] for slide_id in ids if slide_id in parts]


class _Shapes:
    """Iterates over the paragraphs of a slide or its notes; a table's row is one."""

    def __init__(self, package: OfficePackage, name: str) -> None:
        self.title = ""  # known when all has been read
        self._events = package.elements(name)
        self._texts: list[str] = []  # of the paragraph
        self._cells: list[str] = []
        self._is_in_row = False
        self._placeholder = ""  # of the shape
        self._num_fallbacks = 0

    def __iter__(self) -> Iterator[str]:
        for event, element in self._events:
            tag = element.tag
            if tag == _FALLBACK:
                self._num_fallbacks += 1 if event == "start" else -1
            elif event == "start" and tag in (f"{_P}sp", f"{_A}tr"):
                self._placeholder = ""
                self._is_in_row = tag == f"{_A}tr"
                self._cells = []
            elif event == "end" and not self._num_fallbacks:
                if tag == f"{_P}ph":
                    self._placeholder = element.get("type", "")
                yield from self._end(tag, element.text or "")
                if tag in (f"{_P}sp", f"{_P}graphicFrame"):
                    element.clear()

    def _end(self, tag: str, text: str) -> Iterator[str]:
        if tag == f"{_A}t":
            self._texts.append(text)
        elif tag == f"{_A}br":
            self._texts.append("\n")
        elif tag == f"{_A}p":
            paragraph = "".join(self._texts).strip()
            self._texts = []
            if self._is_in_row:
                self._cells.append(paragraph)
            elif paragraph and self._placeholder not in _NOT_CONTENT:
                if self._placeholder in _TITLES:
                    self.title = " ".join(f"{self.title} {paragraph}".split())
                yield paragraph
        elif tag == f"{_A}tr":
            self._is_in_row = False
            if any(self._cells):
                yield " | ".join(self._cells)
