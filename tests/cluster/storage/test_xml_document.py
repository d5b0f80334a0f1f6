import pytest

from cluster.storage.xml_document import XMLError, children, parse_xml, tag_of, text_of


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
def test_elements_are_found_whatever_their_namespace(namespace: str) -> None:
    root = parse_xml(f"<Delete{namespace}><Key>a</Key><Key>&lt;é</Key><No/></Delete>".encode())
    assert tag_of(root) == "Delete"
    assert [child.text for child in children(root, "Key")] == ["a", "<é"]
    assert (text_of(root, "Key"), text_of(root, "No"), text_of(root, "None")) == ("a", "", None)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"text",
        b"<a>",
        b"<a></b>",
        b"<a/><b/>",
        b"\xff\xfe",
        b"<a>\x00</a>",
        b"<a>&unknown;</a>",
        b'<?xml version="1.0" encoding="klingon"?><a/>',
        b"<!DOCTYPE a><a/>",
        b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
    ],
)
def test_what_is_not_a_plain_document_is_refused(document: bytes) -> None:
    with pytest.raises(XMLError):
        parse_xml(document)


def test_a_billion_laughs_are_not_laughed() -> None:
    entities = "".join(
        f'<!ENTITY l{number} "{f"&l{number - 1};" * 10 if number else "lol"}">'
        for number in range(10)
    )
    with pytest.raises(XMLError, match="document type"):
        parse_xml(f"<!DOCTYPE a [{entities}]><a>&l9;</a>".encode())
