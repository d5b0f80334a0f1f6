"""The output items of a Responses answer while they grow: what each announces, adds and ends with.

An event here is an object without its `sequence_number`, which the answer gives it.
"""

from collections.abc import Sequence

from cluster.openai_schema.chat import TokenLogprob
from cluster.openai_schema.response_object import (
    ItemState,
    OutputCall,
    OutputMessage,
    OutputReasoning,
    OutputText,
    OutputThought,
)
from deployments.ingress.answer import new_id

Event = dict[str, object]


class GrowingMessage:
    """The text that the user reads."""

    def __init__(self, output_index: int) -> None:
        self._index = output_index
        self._id = new_id("msg", separator="_")
        self._place: Event = {
            "item_id": self._id,
            "output_index": output_index,
            "content_index": 0,
        }
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    def opened(self) -> list[Event]:
        empty = OutputMessage(id=self._id, status="in_progress", content=[])
        return [
            _item_event("added", self._index, empty.model_dump()),
            self._part_event("added", OutputText(text="")),
        ]

    def grown(self, text: str, logprobs: Sequence[TokenLogprob]) -> Event:
        self._texts.append(text)
        self._logprobs.extend(logprobs)
        return {
            "type": "response.output_text.delta",
            **self._place,
            "delta": text,
            "logprobs": [entry.model_dump() for entry in logprobs],
        }

    def closed(self, status: ItemState) -> list[Event]:
        part = self._part()
        done = {
            "type": "response.output_text.done",
            **self._place,
            "text": part.text,
            "logprobs": [entry.model_dump() for entry in part.logprobs],
        }
        item = self.item(status).model_dump()
        return [done, self._part_event("done", part), _item_event("done", self._index, item)]

    def item(self, status: ItemState) -> OutputMessage:
        return OutputMessage(id=self._id, status=status, content=[self._part()])

    def _part(self) -> OutputText:
        return OutputText(text="".join(self._texts), logprobs=self._logprobs)

    def _part_event(self, what: str, part: OutputText) -> Event:
        return {
            "type": f"response.content_part.{what}",
            **self._place,
            "part": part.model_dump(),
        }


class GrowingReasoning:
    """The model's thoughts before its answer."""

    def __init__(self, output_index: int) -> None:
        self._index = output_index
        self._id = new_id("rs", separator="_")
        self._place: Event = {
            "item_id": self._id,
            "output_index": output_index,
            "content_index": 0,
        }
        self._texts: list[str] = []

    def opened(self) -> list[Event]:
        empty = OutputReasoning(id=self._id, status="in_progress", content=[])
        return [
            _item_event("added", self._index, empty.model_dump()),
            self._part_event("added", OutputThought(text="")),
        ]

    def grown(self, text: str) -> Event:
        self._texts.append(text)
        return {"type": "response.reasoning_text.delta", **self._place, "delta": text}

    def closed(self, status: ItemState) -> list[Event]:
        part = self._part()
        done = {"type": "response.reasoning_text.done", **self._place, "text": part.text}
        item = self.item(status).model_dump()
        return [done, self._part_event("done", part), _item_event("done", self._index, item)]

    def item(self, status: ItemState) -> OutputReasoning:
        return OutputReasoning(id=self._id, status=status, content=[self._part()])

    def _part(self) -> OutputThought:
        return OutputThought(text="".join(self._texts))

    def _part_event(self, what: str, part: OutputThought) -> Event:
        return {
            "type": f"response.content_part.{what}",
            **self._place,
            "part": part.model_dump(),
        }


class GrowingCall:
    """A call of one of the client's functions."""

    def __init__(self, output_index: int, *, call_id: str, name: str) -> None:
        self._index = output_index
        self._id = new_id("fc", separator="_")
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []

    def opened(self) -> list[Event]:
        return [_item_event("added", self._index, self.item("in_progress").model_dump())]

    def grown(self, arguments: str) -> Event:
        self._arguments.append(arguments)
        return {
            "type": "response.function_call_arguments.delta",
            "item_id": self._id,
            "output_index": self._index,
            "delta": arguments,
        }

    def closed(self, status: ItemState) -> list[Event]:
        item = self.item(status)
        done: Event = {
            "type": "response.function_call_arguments.done",
            "item_id": self._id,
            "output_index": self._index,
            "name": item.name,
            "arguments": item.arguments,
        }
        return [done, _item_event("done", self._index, item.model_dump())]

    def item(self, status: ItemState) -> OutputCall:
        return OutputCall(
            id=self._id,
            call_id=self._call_id,
            name=self._name,
            arguments="".join(self._arguments),
            status=status,
        )


GrowingItem = GrowingMessage | GrowingReasoning | GrowingCall


def _item_event(what: str, output_index: int, item: Event) -> Event:
    return {"type": f"response.output_item.{what}", "output_index": output_index, "item": item}
