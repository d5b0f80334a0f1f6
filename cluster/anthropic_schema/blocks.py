"""The content blocks and messages of Anthropic's Messages API, as clients send them.

`cache_control` is accepted everywhere and changes nothing: prefixes are cached without marks.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from cluster.openai_schema.tools import FunctionName
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import JSONObject

MEDIA_BLOCKS = ("image", "document", "search_result", "container_upload")


class CacheControl(Fields):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Fields):
    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] | None = None  # answers have none
    cache_control: CacheControl | None = None


class MediaBlock(Fields):
    """An image, a document and the like. Its content is not looked at: text models refuse it."""

    model_config = ConfigDict(extra="allow")

    type: Literal["image", "document", "search_result", "container_upload"]


def _kind(value: object) -> object:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def _result_part_tag(value: object) -> str | None:
    kind = _kind(value)
    if kind in MEDIA_BLOCKS:
        return "<media>"
    return "<text>" if kind == "text" else None


ResultPart = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[MediaBlock, Tag("<media>")],
    Discriminator(
        _result_part_tag,
        custom_error_type="block_type",
        custom_error_message="must be 'text' (or 'image' and the like, for models that see)",
    ),
]


def _text_or_blocks_tag(value: object) -> str | None:
    if isinstance(value, str):
        return "<string>"
    return "<blocks>" if isinstance(value, list) else None


ResultContent = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[ResultPart], Field(fail_fast=True), Tag("<blocks>")],
    Discriminator(
        _text_or_blocks_tag,
        custom_error_type="content_type",
        custom_error_message="must be a string or an array of content blocks",
    ),
]


class ToolResultBlock(Fields):
    """What the client's function gave; of an error the model reads "Error: " before it."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: ResultContent | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class Caller(Fields):
    type: Literal["direct"]


class ToolUseBlock(Fields):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: FunctionName
    input: JSONObject
    caller: Caller | None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(Fields):
    """The model's thoughts, replayed. Signatures are not given here, so none is checked."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


def _user_block_tag(value: object) -> str | None:
    return "<result>" if _kind(value) == "tool_result" else _result_part_tag(value)


UserBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolResultBlock, Tag("<result>")]
    | Annotated[MediaBlock, Tag("<media>")],
    Discriminator(
        _user_block_tag,
        custom_error_type="block_type",
        custom_error_message="must be 'text' or 'tool_result' in a user's message",
    ),
]


def _assistant_block_tag(value: object) -> str | None:
    kind = _kind(value)
    return f"<{kind}>" if kind in ("text", "tool_use", "thinking") else None


AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")],
    Discriminator(
        _assistant_block_tag,
        custom_error_type="block_type",
        custom_error_message="must be 'text', 'tool_use' or 'thinking' in an assistant's message",
    ),
]

_CONTENT = Discriminator(
    _text_or_blocks_tag,
    custom_error_type="content_type",
    custom_error_message="must be a string or an array of content blocks",
)
UserContent = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[UserBlock], Field(min_length=1, fail_fast=True), Tag("<blocks>")],
    _CONTENT,
]
AssistantContent = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[AssistantBlock], Field(fail_fast=True), Tag("<blocks>")],
    _CONTENT,
]
SystemContent = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[TextBlock], Field(fail_fast=True), Tag("<blocks>")],
    _CONTENT,
]


class UserTurn(Fields):
    role: Literal["user"]
    content: UserContent


class AssistantTurn(Fields):
    role: Literal["assistant"]
    content: AssistantContent


class SystemTurn(Fields):
    role: Literal["system"]
    content: SystemContent


def _turn_tag(value: object) -> str | None:
    if not isinstance(value, (dict, Fields)):
        return "<user>"  # its class says best that an object is wanted
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return f"<{role}>" if role in ("user", "assistant", "system") else None


Turn = Annotated[
    Annotated[UserTurn, Tag("<user>")]
    | Annotated[AssistantTurn, Tag("<assistant>")]
    | Annotated[SystemTurn, Tag("<system>")],
    Discriminator(
        _turn_tag,
        custom_error_type="turn_role",
        custom_error_message="must be 'user', 'assistant' or 'system'",
    ),
]
