"""A user's regular expression in the back end's dialect, with one meaning that all dialects share.

Python, ECMAScript (JSON Schema's) and Rust (the back end's) disagree in the corners: is "é" a word
character, is "[" inside a class a literal, is "a++" possessive. Everything is translated so that
what the back end generates matches in Python and in ECMAScript alike:

- `\\d`, `\\w`, `\\s` mean the ASCII sets. `\\D`, `\\W`, `\\S` and their use in negated classes
  exclude whatever either dialect counts as a digit, word or space character of any script.
- `.` is any character but a line end; `(?s)` makes it any character.
- Character classes are rewritten item by item: no nested classes, no set operations.

What a finite automaton cannot do is refused by name: look-around, back-references, word
boundaries, possessive and atomic groups, conditionals.
"""

import re
from dataclasses import dataclass

_ASCII_SETS = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\x{9}-\x{D}\x{20}"}
# Everything that Python or ECMAScript counts as one.
_WIDE_SETS = {
    "d": r"\p{Nd}",
    "w": r"\p{Alphabetic}\p{M}\p{N}\p{Pc}\p{Join_Control}",
    "s": r"\p{White_Space}\x{1C}-\x{1F}\x{FEFF}",
}
_NOT_LINE_END = r"[^\x{A}\x{D}\x{85}\x{2028}\x{2029}]"
_CONTROL_ESCAPES = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B}
_BOUNDS = re.compile(r"\{(\d+)(,(\d*))?\}")
_PROPERTY = re.compile(r"\{[A-Za-z0-9_=]+\}")
_GROUP_NAME = re.compile(r"\(\?P?<([A-Za-z_][A-Za-z0-9_]*)>")
_FLAGS = re.compile(r"\(\?([is]+)([:)])")
_REFUSED_GROUPS = (
    ("(?=", "look-ahead"),
    ("(?!", "look-ahead"),
    ("(?<=", "look-behind"),
    ("(?<!", "look-behind"),
    ("(?P=", "a back-reference"),
    ("(?>", "an atomic group"),
    ("(?(", "a conditional"),
    ("(?#", "a comment"),
)
_REFUSED_ESCAPES = {
    "b": "a word boundary (\\b)",
    "B": "a word boundary (\\B)",
    "A": "\\A (the whole text is matched anyway)",
    "Z": "\\Z (the whole text is matched anyway)",
    "z": "\\z (the whole text is matched anyway)",
    "G": "\\G",
    "k": "a back-reference (\\k)",
    "c": "a control escape (\\c)",
}
_MAX_CODE_POINT = 0x10FFFF


class RegexError(ValueError):
    """A regular expression that cannot be honoured; names the position and the reason."""


def translate_regex(pattern: str) -> str:
    """The same language in the back end's syntax.

    Raises:
        RegexError: a feature that no finite automaton has, or one whose meaning differs between
            dialects.
    """
    return _Translator(pattern).run()


def literal_regex(text: str) -> str:
    """A regular expression, in the back end's syntax, that only `text` matches."""
    return "".join(_literal(ord(char)) for char in text)


@dataclass(frozen=True, slots=True)
class _ClassItem:
    """One item of a character class: a single character, or a set written out for the back end."""

    code_point: int | None
    written: str


class _Translator:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._is_dot_all = any("s" in match[1] for match in _FLAGS.finditer(pattern))

    def run(self) -> str:
        parts: list[str] = []
        while self._at < len(self._pattern):
            parts.append(self._next_part())
        return "".join(parts)

    def _next_part(self) -> str:
        char = self._pattern[self._at]
        match char:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case "*" | "+" | "?" | "{":
                return self._quantifier()
            case "\\":
                item = self._escape(in_class=False, wide=False)
                return item.written if item.code_point is None else _literal(item.code_point)
        self._at += 1
        if char in ")|^$":
            return char
        if char == ".":
            return "." if self._is_dot_all else _NOT_LINE_END
        return _literal(ord(char))

    def _refusal(self, what: str) -> RegexError:
        return RegexError(f"{what} is not supported (at character {self._at})")

    def _take(self, text: str) -> bool:
        if not self._pattern.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _group(self) -> str:
        for opening, name in _REFUSED_GROUPS:
            if self._pattern.startswith(opening, self._at):
                raise self._refusal(name)
        if match := _GROUP_NAME.match(self._pattern, self._at):
            self._at = match.end()
            return "(?:"
        if self._take("(?:"):
            return "(?:"
        if match := _FLAGS.match(self._pattern, self._at):
            if match[2] == ")" and self._at > 0:
                raise self._refusal("a flag that is not at the beginning")
            self._at = match.end()
            return match[0]
        if self._pattern.startswith("(?", self._at):
            raise self._refusal(f"the group {self._pattern[self._at : self._at + 4]!r}")
        self._at += 1
        return "(?:"

    def _quantifier(self) -> str:
        bounds = _BOUNDS.match(self._pattern, self._at)
        if self._pattern[self._at] == "{" and bounds is None:
            if self._pattern.startswith("{,", self._at):
                raise self._refusal("a repetition without a lower bound")
            self._at += 1
            return r"\{"
        written = bounds[0] if bounds else self._pattern[self._at]
        self._at += len(written)
        self._take("?")  # lazy or greedy, the language is the same
        if self._pattern.startswith("+", self._at):
            raise self._refusal("a possessive or doubled quantifier")
        if self._pattern.startswith(("*", "?"), self._at) or _BOUNDS.match(self._pattern, self._at):
            raise self._refusal("a quantifier after a quantifier")
        return written

    def _class(self) -> str:
        self._at += 1
        is_negated = self._take("^")
        if self._pattern.startswith("]", self._at):
            raise self._refusal("an empty character class (write \\] for the character)")
        parts: list[str] = []
        while not self._take("]"):
            if self._at >= len(self._pattern):
                raise RegexError("a character class is not closed")
            parts.append(self._class_part(wide=is_negated))
        return f"[{'^' if is_negated else ''}{''.join(parts)}]"

    def _class_part(self, *, wide: bool) -> str:
        first = self._class_item(wide=wide)
        follows_range = self._pattern.startswith("-", self._at) and not self._pattern.startswith(
            "-]", self._at
        )
        if first.code_point is None or not follows_range:
            return first.written
        self._at += 1
        if self._at >= len(self._pattern):
            raise RegexError("a character class is not closed")
        last = self._class_item(wide=wide)
        if last.code_point is None:
            raise self._refusal("a range that ends in a set of characters")
        if last.code_point < first.code_point:
            raise self._refusal("a range that ends before it begins")
        return f"{first.written}-{last.written}"

    def _class_item(self, *, wide: bool) -> _ClassItem:
        if self._pattern[self._at] == "\\":
            return self._escape(in_class=True, wide=wide)
        self._at += 1
        return _character(ord(self._pattern[self._at - 1]))

    def _escape(self, *, in_class: bool, wide: bool) -> _ClassItem:
        """`wide`: the item stands in a negated class, where a set must exclude what any dialect
        counts to it."""
        if self._at + 1 >= len(self._pattern):
            raise RegexError("the expression ends in a backslash")
        char = self._pattern[self._at + 1]
        if char.lower() in _ASCII_SETS:
            self._at += 2
            return _ClassItem(None, _set(char, in_class=in_class, wide=wide))
        if in_class and char == "b":
            self._at += 2
            return _character(0x08)
        if char in _REFUSED_ESCAPES:
            raise self._refusal(_REFUSED_ESCAPES[char])
        if char in "pP":
            return self._property()
        if char.isdigit() and (char != "0" or self._pattern[self._at + 2 : self._at + 3].isdigit()):
            raise self._refusal("a back-reference or octal escape")
        return _character(self._escaped_code_point(char))

    def _property(self) -> _ClassItem:
        match = _PROPERTY.match(self._pattern, self._at + 2)
        if match is None:
            raise self._refusal("\\p without a {name}")
        written = self._pattern[self._at : match.end()]
        self._at = match.end()
        return _ClassItem(None, written)

    def _escaped_code_point(self, char: str) -> int:
        if char in "xu":
            return self._hexadecimal(char, num_digits=2 if char == "x" else 4)
        if char == "0":
            self._at += 2
            return 0
        if char in _CONTROL_ESCAPES:
            self._at += 2
            return _CONTROL_ESCAPES[char]
        if char.isascii() and char.isalnum():
            raise self._refusal(f"the escape \\{char}")
        self._at += 2
        return ord(char)

    def _hexadecimal(self, kind: str, *, num_digits: int) -> int:
        value = self._hex_digits(self._at + 2, num_digits)
        if value is None:
            raise self._refusal(f"\\{kind} without {num_digits} hexadecimal digits")
        self._at += 2 + num_digits
        if 0xD800 <= value < 0xDC00 and self._pattern.startswith("\\u", self._at):
            low = self._hex_digits(self._at + 2, 4)
            if low is not None and 0xDC00 <= low < 0xE000:
                self._at += 6
                return 0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00)
        if 0xD800 <= value < 0xE000:
            raise self._refusal("half of a surrogate pair")
        return value

    def _hex_digits(self, start: int, count: int) -> int | None:
        digits = self._pattern[start : start + count]
        is_hex = len(digits) == count and all(d in "0123456789abcdefABCDEF" for d in digits)
        return int(digits, 16) if is_hex else None


def _character(code_point: int) -> _ClassItem:
    assert 0 <= code_point <= _MAX_CODE_POINT
    return _ClassItem(code_point, f"\\x{{{code_point:X}}}")


def _literal(code_point: int) -> str:
    char = chr(code_point)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code_point:X}}}"


def _set(char: str, *, in_class: bool, wide: bool) -> str:
    """What \\d, \\w, \\s and their complements become, in and outside of a class.

    A complement leaves out the wide set; inside of a negated class it is the other way round.
    """
    name = char.lower()
    if char.islower():
        inner = _WIDE_SETS[name] if wide else _ASCII_SETS[name]
        return inner if in_class else f"[{inner}]"
    return f"[^{_ASCII_SETS[name] if wide else _WIDE_SETS[name]}]"
