import io

import pytest

from models.documents import office_package
from models.documents.errors import UnreadableDocumentError
from models.documents.office_package import OfficePackage
from tests.models.documents.made_files import archive, bomb, pptx


def test_a_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    package = OfficePackage(io.BytesIO(bomb("word/document.xml", 300 * 2**20)))
    with pytest.raises(UnreadableDocumentError, match=r"unpacks from .* to 314,572,800 bytes"):
        list(package.elements("word/document.xml"))
    with pytest.raises(UnreadableDocumentError, match="unpacks"):
        package.check_size()


def test_many_parts_that_are_large_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office_package, "MAX_PART_BYTES", 2**20)
    data = bytes(range(256)) * 2**11
    package = OfficePackage(io.BytesIO(archive({f"xl/{n}.xml": data for n in range(5)})))
    with pytest.raises(UnreadableDocumentError, match="2,621,440 bytes; at most 2,097,152"):
        package.check_size()


def test_a_part_that_is_not_there_has_no_elements() -> None:
    assert list(OfficePackage(io.BytesIO(archive({}))).elements("x.xml")) == []


def test_relationships_are_names_of_parts() -> None:
    package = OfficePackage(io.BytesIO(pptx([("a", "b")], notes={0: "n"})))
    assert package.relationships("ppt/presentation.xml") == {
        "rId0": ("slide", "ppt/slides/slide0.xml")
    }
    assert package.relationships("ppt/slides/slide0.xml") == {
        "rId1": ("notesSlide", "ppt/notesSlides/notesSlide0.xml")
    }


@pytest.mark.parametrize("data", [b"PK\x03\x04 and then rubbish", b""])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableDocumentError, match="damaged or cut short"):
        OfficePackage(io.BytesIO(data))


def test_a_part_whose_bytes_are_damaged_is_refused() -> None:
    data = bytearray(archive({"word/document.xml": "<a>" + "text " * 1000 + "</a>"}))
    data[60:70] = b"\xff" * 10
    with pytest.raises(UnreadableDocumentError, match="damaged"):
        list(OfficePackage(io.BytesIO(bytes(data))).elements("word/document.xml"))
