import pytest

from models.documents.cleaning import clean


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\x00b\x07c", "abc"),
        ("page\x0cpage", "page\npage"),
        ("infor\x02\r\nmation", "information"),
        ("infor\u00admation", "information"),
        ("ef\ufb01cient \ufb02ow", "efficient flow"),
        ("a\u200bb\ufeffc", "abc"),
        ("a\xa0b", "a b"),
        ("a\n \n\t\n\n\nb", "a\n\nb"),
        ("a" + " " * 500 + "b", "a" + " " * 32 + "b"),
        ("    indented\n\ttab", "    indented\n\ttab"),
        ("👨\u200d👩", "👨\u200d👩"),
    ],
)
def test_what_is_invisible_or_in_the_way_goes(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned
    assert clean(cleaned) == cleaned
