"""Which characters the text of a file may have: what is invisible, or in the way, goes."""

import re

_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*+\n){2,}+")
_WIDE_GAP = re.compile(r"[^\S\n]{33,}+")  # a table's columns are nearer

_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB06: "st"}
_INVISIBLE = (
    *(code for code in range(0x20) if code not in (0x09, 0x0A)),
    *range(0x7F, 0xA0),
    0xAD,  # soft hyphen
    0x200B,  # zero-width space
    0xFEFF,  # byte order mark
    0xFFFE,  # what PDFium makes of a hyphen at a line's end
    0xFFFF,
)
_TABLE: dict[int, str | None] = {**dict.fromkeys(_INVISIBLE), **_LIGATURES, 0xA0: " "}
# A word that the end of a line divides, where the file itself says so.
_DIVIDED_WORD = re.compile("[\x02\u00ad\ufffe](?<=\\w.)[\r\n]*(?=\\w)")


def clean(text: str) -> str:
    """Lines end with a line feed, there are no control characters, and never two blank lines."""
    text = _DIVIDED_WORD.sub("", text)
    text = _LINE_ENDS.sub("\n", text).translate(_TABLE)
    return _WIDE_GAP.sub(" " * 32, _BLANK_LINES.sub("\n\n", text))
