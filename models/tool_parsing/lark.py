"""Pieces of Lark grammars, as llguidance reads them, that the call formats share."""

import json
from collections.abc import Sequence

from models.tokenizer import Tokenizer
from models.tool_parsing.call_format import GuidedFunction

# Any text; bounded white space between JSON tokens, so that nothing can go round in circles.
ANYTHING = "(?s:.*)"
SOMETHING = "(?s:.+)"
SPACE_RULE = r"SPACE: /[ \n\t]{1,8}/"


def literal(text: str) -> str:
    return json.dumps(text)


def marker(tokenizer: Tokenizer, text: str) -> str:
    """A marker of a format: its special token where the vocabulary has one, else its text."""
    token_id = tokenizer.token_id(text)
    return f"<[{token_id}]>" if token_id in tokenizer.special_ids else literal(text)


def is_special(tokenizer: Tokenizer, text: str) -> bool:
    return tokenizer.token_id(text) in tokenizer.special_ids


def name_pattern(functions: Sequence[GuidedFunction]) -> str:
    """A regular expression of the names."""
    return "(" + "|".join(function.name.replace(".", r"\.") for function in functions) + ")"


def one_of(rule: str, functions: Sequence[GuidedFunction]) -> str:
    """`rule` is one of `rule_0`, `rule_1`, …"""
    return f"{rule}: " + " | ".join(f"{rule}_{index}" for index in range(len(functions)))


def argument_rules(functions: Sequence[GuidedFunction]) -> list[str]:
    """`arguments_0`, `arguments_1`, … as the schemas say."""
    return [
        f"arguments_{index}: %json {function.schema_text}"
        for index, function in enumerate(functions)
    ]


def call_object_start(names: str, key: str = "(parameters|arguments)") -> str:
    """A regular expression for a call object up to its arguments."""
    return rf'\{{\s*"name"\s*:\s*"{names}"\s*,\s*"{key}"\s*:'


def loose_object_rules(functions: Sequence[GuidedFunction]) -> list[str]:
    """`object`: a call object as a model may space it."""
    rules = [one_of("object", functions)]
    for index, function in enumerate(functions):
        start = call_object_start(name_pattern([function]))
        rules.append(f'object_{index}: /{start}/ SPACE? arguments_{index} SPACE? "}}"')
    return [*rules, *argument_rules(functions), SPACE_RULE]


def strict_object_rules(functions: Sequence[GuidedFunction], key: str) -> list[str]:
    """`object`: a call object as the chat template writes it."""
    rules = [one_of("object", functions)]
    for index, function in enumerate(functions):
        start = f'{{"name": {json.dumps(function.name)}, "{key}": '
        rules.append(f'object_{index}: {literal(start)} arguments_{index} "}}"')
    return [*rules, *argument_rules(functions)]


def text(pattern: str, *excluded: str) -> str:
    """A terminal of texts that match a regular expression and none of the excluded ones."""
    return " & ~".join(f"/{part}/" for part in (pattern, *excluded))


def lines(*rules: str) -> str:
    return "\n".join(rules) + "\n"
