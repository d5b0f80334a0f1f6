"""Reasoning models: thoughts between `<think>` and `</think>` in front of the answer.

Some chat templates write the opening tag themselves, at the end of the prompt; others leave it to
the model, which then may also do without.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from models.tokenizer import Tokenizer
from models.tool_parsing import lark
from models.tool_parsing.message_parts import PartsWriter
from models.tool_parsing.text_feed import SPACE, Reading, TextFeed, read_until

OPENING, CLOSING = "<think>", "</think>"
CLOSING_PATTERN = r"<\/think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """The thoughts at the start of one output."""

    is_open: bool  # the prompt ends within them

    @classmethod
    def after(cls, prompt: str) -> "Thinking | None":
        """What a model that thinks does after this prompt; None: the prompt has it skip them."""
        end = prompt.rstrip(SPACE)
        return None if end.endswith(CLOSING) else cls(is_open=end.endswith(OPENING))

    def read(self, feed: TextFeed, parts: PartsWriter) -> Reading[None]:
        """The thoughts, without the white space around them, and what separates the answer."""
        if not self.is_open:
            space = yield from feed.take_space()
            if not (yield from feed.try_literal(OPENING)):
                feed.put_back(space)
                return
        yield from feed.take_space()
        marker, _ = yield from read_until(feed, parts.reasoning, (CLOSING,), separators=SPACE)
        feed.take(len(marker))
        yield from feed.take_space()

    def beginning(self, tokenizer: Tokenizer) -> Sequence[str]:
        """Regular expressions of what no text after them, or without them, may be: it would be
        read as thoughts. None where that needs a special token, which is no text."""
        if self.is_open or lark.is_special(tokenizer, OPENING):
            return ()
        return (rf"[ \t\r\n]*{OPENING}{lark.ANYTHING}",)

    def rules(self, tokenizer: Tokenizer) -> str:
        """Lark rules where `thinking` is what `read` reads, and `unfinished_thoughts` thoughts that
        never end."""
        closing = lark.marker(tokenizer, CLOSING)
        if self.is_open:
            start, unfinished = "", "THOUGHT"
        else:
            start, unfinished = "opening ", "opening THOUGHT?"
        if lark.is_special(tokenizer, CLOSING):
            thoughts = [f"thoughts: THOUGHT? {closing}", f"THOUGHT: /{lark.SOMETHING}/"]
        else:
            unclosed = f"/{lark.SOMETHING}/ & ~/{lark.ANYTHING}{CLOSING_PATTERN}{lark.ANYTHING}/"
            thoughts = [f"thoughts[suffix={closing}]: /{lark.ANYTHING}/", f"THOUGHT: {unclosed}"]
        return lark.lines(
            f"thinking: {start}thoughts THINKING_END?",
            *thoughts,
            f"unfinished_thoughts: {unfinished}",
            r"THINKING_END: /\n{1,4}/",
            *([] if self.is_open else [_opening_rule(tokenizer)]),
        )


def _opening_rule(tokenizer: Tokenizer) -> str:
    if lark.is_special(tokenizer, OPENING):
        return f"opening: {lark.marker(tokenizer, OPENING)}"
    return rf"opening: /[ \t\r\n]{{0,8}}{OPENING}/"
