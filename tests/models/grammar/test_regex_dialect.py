import pytest

from models.grammar.regex_dialect import RegexError, literal_regex, translate_regex


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a(?=b)", "look-ahead"),
        ("a(?!b)", "look-ahead"),
        ("(?<=a)b", "look-behind"),
        ("(?<!a)b", "look-behind"),
        (r"(a)\1", "back-reference"),
        (r"(?P<x>a)(?P=x)", "back-reference"),
        (r"(?<x>a)\k<x>", "back-reference"),
        (r"\bword", "word boundary"),
        ("a++", "possessive"),
        ("a{2}{3}", "a quantifier after a quantifier"),
        ("a**", "a quantifier after a quantifier"),
        ("(?>a)", "atomic"),
        ("a(?i)b", "a flag that is not at the beginning"),
        ("a{,3}", "without a lower bound"),
        ("[]", "empty character class"),
        ("[a", "not closed"),
        ("[z-a]", "ends before it begins"),
        (r"[a-\d]", "ends in a set"),
        ("a\\", "ends in a backslash"),
        (r"\q", r"the escape \\q"),
        (r"\ud800", "surrogate"),
        (r"\x4", "hexadecimal"),
    ],
)
def test_what_has_no_common_meaning_is_refused_by_name(pattern: str, reason: str) -> None:
    with pytest.raises(RegexError, match=reason):
        translate_regex(pattern)


@pytest.mark.parametrize(
    ("pattern", "translated"),
    [
        ("^ab$", "^ab$"),
        (r"\d", "[0-9]"),
        (r"[\d_]", r"[0-9\x{5F}]"),
        (r"[^\d]", r"[^\p{Nd}]"),
        (r"\D", r"[^\p{Nd}]"),
        ("[[a]", r"[\x{5B}\x{61}]"),
        ("[a-c-]", r"[\x{61}-\x{63}\x{2D}]"),
        ("(?s).", "(?s)."),
        ("(?P<n>a)(?:b)", "(?:a)(?:b)"),
        ("a{2,3}?b*?", "a{2,3}b*"),
        ("a{b", r"a\{b"),
        (r"\u0041\ud83d\ude00\x41", r"A\x{1F600}A"),
        (r"\/\-", r"\x{2F}\x{2D}"),
    ],
)
def test_the_language_stays_the_same_in_the_other_syntax(pattern: str, translated: str) -> None:
    assert translate_regex(pattern) == translated


def test_a_literal_is_escaped_whole() -> None:
    assert literal_regex("a.b") == r"a\x{2E}b"
