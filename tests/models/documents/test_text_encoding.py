import io

import pytest

from models.documents.errors import UnreadableDocumentError
from models.documents.plain_text import open_text
from models.documents.text_encoding import detect_encoding

GERMAN = "Größe und Maß: über 5 € – „schön“ wäre’s. " * 20
FRENCH = "L’été dernier, une créature naïve a mangé à Noël. " * 20
RUSSIAN = "Съешь же ещё этих мягких французских булок. " * 20
JAPANESE = "日本語の文章です。とても長いです。" * 20


def read(data: bytes) -> str:
    return open_text(io.BytesIO(data)).read()


@pytest.mark.parametrize("text", [GERMAN, FRENCH, RUSSIAN, JAPANESE, "plain ASCII\n", "ä"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_as_what_it_is(text: str, encoding: str) -> None:
    assert read(text.encode(encoding)) == text


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_told_by_its_zeros(encoding: str) -> None:
    assert read(GERMAN.encode(encoding)) == GERMAN


@pytest.mark.parametrize("text", [GERMAN, FRENCH, "Müller", "© 2024 Ærø", "Preis: 5 €"])
def test_windows_1252_is_read_as_such(text: str) -> None:
    assert read(text.encode("cp1252")) == text


def test_latin_1_is_a_part_of_windows_1252() -> None:
    text = "Año nuevo, señor Çelik: ¿qué tal? " * 5
    assert read(text.encode("latin-1")) == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        ("Mostly English text, " * 30 + RUSSIAN, "cp1251"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc-jp"),
        ("这是一个中文文本文件。" * 20, "gbk"),
        ("Αυτό είναι ένα κείμενο. " * 20, "iso8859-7"),
    ],
)
def test_other_encodings_are_refused_and_not_read_as_nonsense(text: str, encoding: str) -> None:
    with pytest.raises(UnreadableDocumentError, match="neither UTF-8 nor Windows-1252"):
        read(text.encode(encoding))


@pytest.mark.parametrize(
    "data", [bytes(range(256)) * 8, b"\0" * 5000, b"text\0\0\0\1\2" * 50, b"\x01\x02\x03abc" * 40]
)
def test_binary_data_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableDocumentError, match="binary data"):
        read(data)


def test_utf8_that_ends_within_a_character_is_still_utf8() -> None:
    assert read(GERMAN.encode() + "ü".encode()[:1]) == GERMAN + "\ufffd"


def test_utf8_that_is_damaged_in_places_is_still_utf8() -> None:
    data = JAPANESE.encode() + b"\xff\xfe" + JAPANESE.encode()
    assert read(data) == JAPANESE + "\ufffd\ufffd" + JAPANESE


def test_the_whole_file_decides_not_its_beginning() -> None:
    text = "a" * 3_000_000 + "ä und ö"
    assert detect_encoding(io.BytesIO(text.encode("cp1252"))) == "cp1252"
    assert detect_encoding(io.BytesIO(text.encode())) == "utf-8"


def test_a_mark_that_lies_is_refused() -> None:
    with pytest.raises(UnreadableDocumentError, match="not valid UTF-16"):
        read(b"\xff\xfe" + b"\x00\xdc" * 10)


def test_the_file_is_at_its_start_again() -> None:
    file = io.BytesIO(b"hello")
    detect_encoding(file)
    assert file.tell() == 0
