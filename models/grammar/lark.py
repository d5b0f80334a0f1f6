"""Lark grammars as llguidance reads them: a look at the tokens that must not pass unchecked.

Inline JSON schemas go through the schema check. Refused by name: options that the engine would not
honour (a rule's own temperature), text that the back end would hide by backtracking (`stop`), and,
in a client's grammar, special tokens.
"""

import json
import re
from collections.abc import Callable

from models.grammar.errors import GrammarError

_TOKEN = re.compile(
    r"""
      (?P<comment>  (?://|\#)[^\n]* )
    | (?P<string>   "(?:\\.|[^"\\\n])*"i? )
    | (?P<regex>    /(?:\\.|[^/\\\n])+/[imslux]* )
    | (?P<special>  <[^<>\s]+> )
    | (?P<json>     %json\b\s* )
    | (?P<regexp>   %regex\b\s* )
    | (?P<options>  %llguidance\b\s* )
    | (?P<import>   %(?:import|include|extend|override|declare)\b )
    | (?P<reference>@[A-Za-z0-9_\-]+ )
    | (?P<rule_option> \b(?:temperature|max_tokens|stop|stop_capture)\s*= )
    """,
    re.VERBOSE,
)
_REFUSED = {
    "reference": "a reference to another grammar",
    "rule_option": "the rule option",
}
_JSON_KINDS = ("json", "regexp", "options")


def check_lark(
    text: str, *, allow_special_tokens: bool, rewrite_schema: Callable[[str], str]
) -> str:
    """The grammar with its inline schemas rewritten.

    Raises:
        GrammarError: names the line and what is refused there.
    """
    parts: list[str] = []
    at = 0
    while match := _TOKEN.search(text, at):
        parts.append(text[at : match.end()])
        at = match.end()
        kind = match.lastgroup
        assert kind is not None, "every alternative has a name"
        where = f"line {text.count(chr(10), 0, match.start()) + 1} of the grammar"
        if kind in _REFUSED or (kind == "special" and not allow_special_tokens):
            name = _REFUSED.get(kind, "the special token")
            raise GrammarError(f"{where}: {name} {match[0].rstrip(' =')} is not supported")
        if kind in _JSON_KINDS:
            end = _json_end(text, at, where)
            parts.append(_inline_json(kind, text[at:end], where, rewrite_schema))
            at = end
    return "".join((*parts, text[at:]))


def _inline_json(kind: str, written: str, where: str, rewrite_schema: Callable[[str], str]) -> str:
    if kind == "json":
        try:
            return rewrite_schema(written)
        except GrammarError as error:
            raise GrammarError(f"{where}: %json {error}") from error
    if kind == "options" and json.loads(written) != {}:
        raise GrammarError(f"{where}: options of %llguidance are not supported")
    return written


def _json_end(text: str, start: int, where: str) -> int:
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except RecursionError as error:
        raise GrammarError(f"{where}: nested too deeply") from error
    except ValueError as error:
        raise GrammarError(f"{where}: not valid JSON: {error}") from error
