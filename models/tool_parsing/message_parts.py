"""What an output's text consists of: content, reasoning and function calls, as they come."""

from collections.abc import Callable
from typing import NamedTuple


class CallDelta(NamedTuple):
    """Part of a function call. The first one of a call has its id and name, and no arguments."""

    call_index: int  # 0 for the message's first call
    arguments: str  # JSON text as the model wrote it; the parts together are the whole
    call_id: str | None = None
    name: str | None = None


class MessageParts(NamedTuple):
    """What some text added to a message."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()

    def followed_by(self, other: "MessageParts") -> "MessageParts":
        return MessageParts(
            self.content + other.content,
            self.reasoning + other.reasoning,
            self.calls + other.calls,
        )


class PartsWriter:
    """Where readers put what they read."""

    def __init__(self, new_call_id: Callable[[], str], *, max_calls: int | None = None) -> None:
        self.num_calls = 0
        self._new_call_id = new_call_id
        self._max_calls = max_calls
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[CallDelta] = []

    @property
    def is_full(self) -> bool:
        """Whether no further call is wanted."""
        return self.num_calls == self._max_calls

    def content(self, text: str) -> None:
        self._content.append(text)

    def reasoning(self, text: str) -> None:
        self._reasoning.append(text)

    def begin_call(self, name: str) -> None:
        self._calls.append(CallDelta(self.num_calls, "", self._new_call_id(), name))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that was begun last."""
        index = self.num_calls - 1
        last = self._calls[-1] if self._calls else None
        if last is not None and last.name is None and last.call_index == index:
            self._calls[-1] = last._replace(arguments=last.arguments + text)
        elif text:
            self._calls.append(CallDelta(index, text))

    def drain(self) -> MessageParts:
        """What was written since the last time."""
        parts = MessageParts("".join(self._content), "".join(self._reasoning), tuple(self._calls))
        self._content, self._reasoning, self._calls = [], [], []
        return parts
