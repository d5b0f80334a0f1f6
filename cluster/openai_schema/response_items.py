"""The items of OpenAI's Responses API: what `input` is made of.

Clients replay the items of earlier answers as they got them, so the fields of answers (`id`,
`status`, `annotations`, `logprobs`) are accepted here too.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from cluster.openai_schema.validation import Fields

ItemStatus = Literal["in_progress", "completed", "incomplete"]

TEXT_PARTS = ("input_text", "output_text", "text")
MEDIA_PARTS = ("input_image", "input_file", "input_audio")


class ItemText(Fields):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


class ItemRefusal(Fields):
    type: Literal["refusal"]
    refusal: str


class ItemMedia(Fields):
    """An image, file or audio part. Its content is not looked at: text models refuse it."""

    model_config = ConfigDict(extra="allow")

    type: Literal["input_image", "input_file", "input_audio"]


def _part_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind in TEXT_PARTS:
        return "<text>"
    if kind in MEDIA_PARTS:
        return "<media>"
    return "<refusal>" if kind == "refusal" else None


ItemPart = Annotated[
    Annotated[ItemText, Tag("<text>")]
    | Annotated[ItemRefusal, Tag("<refusal>")]
    | Annotated[ItemMedia, Tag("<media>")],
    Discriminator(
        _part_tag,
        custom_error_type="part_type",
        custom_error_message="must be 'input_text', 'output_text' or 'refusal'",
    ),
]


def _content_tag(value: object) -> str | None:
    if isinstance(value, str):
        return "<string>"
    return "<parts>" if isinstance(value, list) else None


ItemContent = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[ItemPart], Field(fail_fast=True), Tag("<parts>")],
    Discriminator(
        _content_tag,
        custom_error_type="content_type",
        custom_error_message="must be a string or an array of content parts",
    ),
]


class MessageItem(Fields):
    """A message; `type` may be left out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: ItemContent
    type: Literal["message"] | None = None
    id: str | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(Fields):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str  # JSON text, as the model wrote it
    id: str | None = None
    status: ItemStatus | None = None


class FunctionCallOutputItem(Fields):
    """What the client's function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: ItemContent
    id: str | None = None
    status: ItemStatus | None = None


class ReasoningText(Fields):
    type: Literal["reasoning_text"]
    text: str


class SummaryText(Fields):
    type: Literal["summary_text"]
    text: str


class ReasoningItem(Fields):
    """Thoughts before the assistant's next message. This server never encrypts them."""

    type: Literal["reasoning"]
    summary: list[SummaryText]
    content: list[ReasoningText] | None = None
    id: str | None = None
    status: ItemStatus | None = None
    encrypted_content: None = None


_TAG_OF_TYPE = {
    "message": "<message>",
    "function_call": "<call>",
    "function_call_output": "<output>",
    "reasoning": "<reasoning>",
}


def _item_tag(value: object) -> str | None:
    if not isinstance(value, (dict, Fields)):
        return "<message>"  # its class says best that an object is wanted
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind is None:
        return "<message>"
    return _TAG_OF_TYPE.get(kind) if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<call>")]
    | Annotated[FunctionCallOutputItem, Tag("<output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(
        _item_tag,
        custom_error_type="item_type",
        custom_error_message=(
            "must be 'message', 'function_call', 'function_call_output' or 'reasoning'; "
            "nothing is stored here that an item could refer to, and no other tools run here"
        ),
    ),
]
