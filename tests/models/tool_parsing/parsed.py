"""An output read piece by piece, put together again as a client does."""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from models.tool_parsing.call_format import CallFormat
from models.tool_parsing.output_parser import CallRules, OutputParser, OutputRules
from models.tool_parsing.thinking import Thinking

NAMES = frozenset({"get_weather", "get_time", "f"})


class Parsed(NamedTuple):
    content: str
    reasoning: str
    calls: list[tuple[str, str]]  # name, arguments


def parse(
    pieces: Iterable[str],
    call_format: CallFormat | None,
    *,
    thinking: Thinking | None = None,
    max_calls: int | None = None,
) -> Parsed:
    calls = None
    if call_format is not None:
        calls = CallRules(call_format=call_format, names=NAMES, max_calls=max_calls)
    parser = OutputParser(OutputRules(thinking=thinking, calls=calls))
    content = reasoning = ""
    read: list[tuple[str, str]] = []
    for parts in [*(parser.push(piece) for piece in pieces), parser.finish()]:
        content += parts.content
        reasoning += parts.reasoning
        for delta in parts.calls:
            if delta.name is not None:
                assert delta.call_index == len(read), "calls come one after the other"
                assert delta.call_id
                assert delta.arguments == ""
                read.append((delta.name, ""))
            else:
                assert delta.call_index == len(read) - 1
                assert delta.arguments, "nothing is sent that says nothing"
                assert delta.call_id is None
                name, arguments = read[-1]
                read[-1] = (name, arguments + delta.arguments)
    return Parsed(content, reasoning, read)


def cut(text: str, places: Iterable[int]) -> list[str]:
    """The text in pieces, cut at these places (modulo its length)."""
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]
