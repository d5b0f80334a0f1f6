"""Messages of a chat request, one class per role.

`developer` is OpenAI's newer name for `system` and is rendered as `system`. Besides the documented
fields, those are accepted that official clients replay from earlier answers (`name` on tool
messages, null `refusal`, `audio`, `function_call`, `annotations` on assistant messages).
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from cluster.openai_schema.validation import Fields

ROLES = ("system", "developer", "user", "assistant", "tool")
MEDIA_PARTS = ("image_url", "audio_url", "input_audio", "video_url", "file")


class TextPart(Fields):
    type: Literal["text"]
    text: str


class RefusalPart(Fields):
    type: Literal["refusal"]
    refusal: str


class MediaPart(Fields):
    """An image, audio, video or file part. Its content is not looked at: text models refuse it."""

    model_config = ConfigDict(extra="allow")

    type: Literal["image_url", "audio_url", "input_audio", "video_url", "file"]


def _part_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind in MEDIA_PARTS:
        return "<media>"
    return f"<{kind}>" if kind in ("text", "refusal") else None


ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[MediaPart, Tag("<media>")],
    Discriminator(
        _part_tag,
        custom_error_type="part_type",
        custom_error_message="must be 'text' (or 'image_url' and the like, for models that see)",
    ),
]


def _content_tag(value: object) -> str | None:
    if isinstance(value, str):
        return "<string>"
    return "<parts>" if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[ContentPart], Field(min_length=1, fail_fast=True), Tag("<parts>")],
    Discriminator(
        _content_tag,
        custom_error_type="content_type",
        custom_error_message="must be a string or an array of content parts",
    ),
]


class CalledFunction(Fields):
    name: str
    arguments: str  # JSON text, as the model wrote it


class ToolCall(Fields):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # clients that assemble a stream leave it in


class SystemMessage(Fields):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Fields):
    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(Fields):
    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[dict[str, Any]] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Fields):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


_TAG_OF_ROLE = {
    "system": "<system>",
    "developer": "<system>",
    "user": "<user>",
    "assistant": "<assistant>",
    "tool": "<tool>",
}


def _message_tag(value: object) -> str | None:
    if not isinstance(value, (dict, Fields)):
        return "<user>"  # its class says best that an object is wanted
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return _TAG_OF_ROLE.get(role) if isinstance(role, str) else None


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    Discriminator(
        _message_tag,
        custom_error_type="message_role",
        custom_error_message="must be a known role",
    ),
]
