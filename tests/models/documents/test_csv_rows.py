import io

import pytest

from models.documents.block import Block
from models.documents.csv_rows import read_csv
from models.documents.errors import UnreadableDocumentError


def read(text: str, encoding: str = "utf-8") -> list[Block]:
    return list(read_csv(io.BytesIO(text.encode(encoding))))


def texts(text: str) -> list[str]:
    return [block.text.strip() for block in read(text)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_each_row_is_a_record_with_its_columns_names(delimiter: str) -> None:
    rows = [["name", "city", "note"], ["Ann", "Oslo", "x"], ["Bob", "Rome", ""]]
    assert texts("\n".join(delimiter.join(row) for row in rows)) == [
        "name: Ann\ncity: Oslo\nnote: x",
        "name: Bob\ncity: Rome",
    ]


def test_quoted_fields_may_have_delimiters_and_lines() -> None:
    assert texts('name,note\n"Doe, Ann","first\nsecond ""line"""\n') == [
        'name: Doe, Ann\nnote: first\nsecond "line"'
    ]


def test_columns_without_names_are_numbered() -> None:
    assert texts("1,2\n3,4\n") == ["column 1: 1\ncolumn 2: 2", "column 1: 3\ncolumn 2: 4"]
    assert texts("a,b\nc,d,e\n") == ["a: c\nb: d\ncolumn 3: e"]


def test_a_single_column_is_lines_of_text() -> None:
    assert texts("1. First\n2. Second\n") == ["1. First", "2. Second"]


def test_a_header_alone_is_read_too() -> None:
    assert texts("name,city\n") == ["name\ncity"]


def test_windows_1252_is_read() -> None:
    blocks = read("name;größe\nKäse;5 €\n", "cp1252")
    assert [block.text.strip() for block in blocks] == ["name: Käse\ngröße: 5 €"]


def test_a_long_row_names_itself_where_it_goes_on() -> None:
    long = "words " * 30_000
    blocks = read(f"name,text\nAnn,{long}\n")
    assert len(blocks) > 2
    assert {block.heading for block in blocks[1:]} == {"name: Ann"}


def test_a_quote_that_never_ends_is_refused() -> None:
    with pytest.raises(UnreadableDocumentError, match=r"is not CSV: field larger"):
        read('a,b\n1,"' + "x" * 17_000_000)


def test_rows_come_one_by_one() -> None:
    first = next(iter(read_csv(io.BytesIO(b"a,b\n" + b"1,2\n" * 1_000_000))))
    assert first.text == "a: 1\nb: 2\n\n"
