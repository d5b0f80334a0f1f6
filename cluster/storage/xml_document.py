"""S3's XML: small documents in, without entities; elements found whatever their namespace."""

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.parsers import expat

_SLICE_BYTES = 16 * 1024


class XMLError(ValueError):
    """Not a document that is read here."""


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities are declared in a DOCTYPE; without one there are none to expand."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise XMLError("a document type is not allowed")


def parse_xml(data: bytes) -> ElementTree.Element:
    """On a thread, it lets others run between slices of the document.

    Raises:
        XMLError: it is not well-formed, or has a document type.
    """
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        for start in range(0, len(data), _SLICE_BYTES):
            parser.feed(data[start : start + _SLICE_BYTES])
        root = parser.close()
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise XMLError(f"not well-formed XML: {error}") from error
    assert isinstance(root, ElementTree.Element)
    return root


def tag_of(element: ElementTree.Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def children(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if tag_of(child) == name)


def text_of(element: ElementTree.Element, name: str) -> str | None:
    """The text of the first child of that name; None: there is none."""
    child = next(children(element, name), None)
    return None if child is None else child.text or ""
