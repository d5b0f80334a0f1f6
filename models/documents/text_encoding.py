"""Which encoding the bytes of a text are in: UTF-8, UTF-16, UTF-32 or Windows-1252, or none.

Windows-1252 (and with it Latin-1) has no marks of its own. It is believed of bytes that read like
a Western European language in it, and anything else is refused rather than read as nonsense.
"""

import codecs
import re
from typing import BinaryIO

from models.documents.errors import UnreadableDocumentError

#: What web pages call their encoding -> the codec that a browser would use.
WEB_ENCODINGS = {
    **dict.fromkeys(("utf-8", "utf8"), "utf-8"),
    **dict.fromkeys(("ascii", "us-ascii", "iso-8859-1", "latin1", "windows-1252"), "cp1252"),
    **{f"windows-{number}": f"cp{number}" for number in (1250, *range(1253, 1259))},
    **dict.fromkeys(("windows-1251", "cp1251"), "cp1251"),
    **{f"iso-8859-{number}": f"iso8859_{number}" for number in (*range(2, 9), 10, 13, 14, 15, 16)},
    "iso-8859-9": "cp1254",
    **{name: name.replace("-", "_") for name in ("koi8-r", "koi8-u", "euc-jp", "iso-2022-jp")},
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "windows-31j"), "cp932"),
    **dict.fromkeys(("gb2312", "gbk", "gb18030"), "gb18030"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987"), "cp949"),
    "big5": "big5hkscs",
}

_PIECE_BYTES = 2**20
_SAMPLE_BYTES = 2**18
_BYTE_ORDER_MARKS = (  # UTF-32's begin like UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8_CHARACTER = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MAX_CONTROL_SHARE = 0.002
# What Western European text has beside letters.
_WESTERN_MARKS = frozenset("€…‘’‚“”„‹›•–—™ ¡¢£¥§©ª«®¯°±²³´µ·¹º»¼½¾¿×÷‰†\xad")
_LONG_RUN = re.compile(r"[^\W\d_a-zA-Z]{4,}")


def load_codecs() -> None:
    """Load every codec that reading may need: where no file can be opened later."""
    names_in_archives = "cp437"
    unicode = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
    for name in (*unicode, names_in_archives, *WEB_ENCODINGS.values()):
        codecs.lookup(name)


def detect_encoding(file: BinaryIO) -> str:
    """A codec that decodes the whole file without an error, or with few replacements; reads the
    file from its start, in pieces, and returns to it.

    Raises:
        UnreadableDocumentError: the bytes are not text in an encoding that can be told.
    """
    try:
        return _detect(file)
    finally:
        file.seek(0)


def _detect(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(_SAMPLE_BYTES)
    for mark, codec in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            if not _decodes(file, codec):
                raise UnreadableDocumentError(f"It is not valid {codec[:6].upper()} text.")
            return codec
    if b"\0" in head[:4096]:
        return _unmarked_utf16(file, head)
    _refuse_binary(head)
    if _decodes(file, "utf-8"):
        return "utf-8"
    return _eight_bit(_around_first_error(file))


def _decodes(file: BinaryIO, codec: str) -> bool:
    """Whether all of it does, but for a character that the end cuts."""
    file.seek(0)
    decoder = codecs.getincrementaldecoder(codec)("strict")
    try:
        while piece := file.read(_PIECE_BYTES):
            decoder.decode(piece)
    except UnicodeDecodeError:
        return False
    return True


def _unmarked_utf16(file: BinaryIO, head: bytes) -> str:
    """UTF-16 without a mark has its zeros in every second place."""
    even, odd = head[:4096:2], head[1:4096:2]
    num_even, num_odd = even.count(0), odd.count(0)
    codec = "utf-16-le" if num_odd > num_even else "utf-16-be"
    few, many = sorted((num_even, num_odd))
    if many < len(odd) * 0.4 or few > many * 0.05 or not _decodes(file, codec):
        raise UnreadableDocumentError("It is binary data, not text.")
    return codec


def _refuse_binary(sample: bytes) -> None:
    if len(_CONTROL.findall(sample)) > len(sample) * _MAX_CONTROL_SHARE:
        raise UnreadableDocumentError("It is binary data, not text.")


def _around_first_error(file: BinaryIO) -> bytes:
    """A sample with the first bytes that are not UTF-8 in it."""
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    position = 0
    while piece := file.read(_PIECE_BYTES):
        try:
            decoder.decode(piece)
        except UnicodeDecodeError as error:
            file.seek(max(0, position + error.start - _SAMPLE_BYTES // 2))
            return file.read(_SAMPLE_BYTES)
        position += len(piece)
    raise AssertionError("the file has changed while it was read")


def _eight_bit(sample: bytes) -> str:
    _refuse_binary(sample)
    num_high = len(_NOT_ASCII.findall(sample))
    num_in_utf8 = sum(len(character) for character in _UTF8_CHARACTER.findall(sample))
    if num_in_utf8 >= num_high * 0.9 and num_high >= 10:
        return "utf-8"  # damaged in a few places
    if _is_western(sample):
        return "cp1252"
    raise UnreadableDocumentError(
        "Its text is neither UTF-8 nor Windows-1252, and nothing tells the encoding; save it as "
        "UTF-8."
    )


def _is_western(sample: bytes) -> bool:
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        return False  # five bytes mean nothing
    high = [character for character in text if character >= "\x80"]
    letters = [character for character in high if character.isalpha()]
    marks = sum(character in _WESTERN_MARKS for character in high)
    num_ascii_letters = sum(character.isascii() and character.isalpha() for character in text)
    in_long_runs = sum(len(run) for run in _LONG_RUN.findall(text))
    return (
        len(letters) + marks >= len(high) * 0.95
        and len(letters) <= max(num_ascii_letters, 3)
        and in_long_runs <= len(letters) * 0.05
    )
