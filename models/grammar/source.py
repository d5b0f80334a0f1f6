"""A client's grammar as source text for llguidance: checked, and saying what it said.

Runs in the guard process: Python code over a hostile megabyte must not hold the engine's
interpreter lock.
"""

import json

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax

from cluster.types import GrammarKind, GrammarSpec
from models.grammar.errors import GrammarError
from models.grammar.json_schema_check import Schema, check_schema, parse_json
from models.grammar.lark import check_lark
from models.grammar.regex_dialect import RegexError, translate_regex

# Between two JSON tokens: nothing, one space, or one line end and an indentation. Bounded, so that
# a model cannot fill its budget with blanks; wide enough for `json.dumps` with and without indent.
_WHITESPACE = r"\x20|\n\x20{0,24}|\n\t{0,8}"


def grammar_source(spec: GrammarSpec) -> str:
    """The grammar as llguidance takes it.

    Raises:
        GrammarError: the place and the reason.
    """
    if not spec.text and spec.kind is not GrammarKind.JSON_OBJECT:
        raise GrammarError(f"an empty {spec.kind} allows nothing")
    match spec.kind:
        case GrammarKind.JSON_SCHEMA:
            return _of_schema(_with_whitespace(check_schema(spec.text, check_pattern=complaint)))
        case GrammarKind.JSON_OBJECT:
            return _of_schema(_with_whitespace({"type": "object"}))
        case GrammarKind.REGEX:
            return _of_regex(spec.text)
        case GrammarKind.CHOICE:
            return _of_choice(spec.text)
        case GrammarKind.EBNF:
            return _of_lark(_ebnf_to_lark(spec.text), allow_special_tokens=False)
        case GrammarKind.LARK:
            return _of_lark(spec.text, allow_special_tokens=True)


def complaint(translated_regex: str) -> str | None:
    """What the back end has against a regular expression; None when it takes it."""
    source = LLMatcher.grammar_from_regex(translated_regex)
    message = LLMatcher.validate_grammar(source, limits=LLParserLimits(verbose_errors=False))
    return shorten(message) if message else None


def shorten(message: str) -> str:
    """A back-end message on one line, without its dumps of the grammar."""
    if "NoExtension" in message:
        return "no output satisfies it"
    lines = [line.strip() for line in message.replace("<non-verbose/>", "").splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    text = errors[-1] if errors else " ".join(line for line in lines if line)
    text = text.replace("json-schema:///#", "#")
    return text if len(text) <= 300 else f"{text[:297]}..."


def _of_schema(schema: Schema) -> str:
    return json.dumps({"grammars": [{"json_schema": schema}]}, ensure_ascii=False)


def _with_whitespace(schema: Schema | bool) -> Schema:
    if schema is False:
        raise GrammarError("#: `false` allows no document")
    options = {"x-guidance": {"whitespace_pattern": _WHITESPACE}}
    return {**options, **(schema if isinstance(schema, dict) else {})}


def _of_regex(text: str) -> str:
    try:
        source: str = LLMatcher.grammar_from_regex(translate_regex(text))
    except RegexError as error:
        raise GrammarError(f"regular expression: {error}") from error
    return source


def _of_choice(text: str) -> str:
    choices = parse_json(text, "the list of choices")
    if not isinstance(choices, list) or not choices:
        raise GrammarError("choices: must be a list with at least one string")
    for index, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            raise GrammarError(f"choices/{index}: must be a string that is not empty")
    # One terminal: alternatives of a rule would each cost the parser an item per step.
    written = " | ".join(json.dumps(choice) for choice in dict.fromkeys(choices))
    return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {written}")


def _ebnf_to_lark(text: str) -> str:
    if is_lark_syntax(text):
        return text
    try:
        converted: str = gbnf_to_lark(text)
    except RecursionError as error:
        raise GrammarError("EBNF: nested too deeply") from error
    except Exception as error:  # the converter raises bare Exception and IndexError
        raise GrammarError(f"EBNF: {shorten(str(error))}") from error
    return converted


def _of_lark(text: str, *, allow_special_tokens: bool) -> str:
    def rewrite(schema_text: str) -> str:
        schema = _with_whitespace(check_schema(schema_text, check_pattern=complaint))
        return json.dumps(schema, ensure_ascii=False)

    checked = check_lark(text, allow_special_tokens=allow_special_tokens, rewrite_schema=rewrite)
    source: str = LLMatcher.grammar_from_lark(checked)
    return source
