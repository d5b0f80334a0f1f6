"""From messages or texts to prompt tokens, without holding up other people's streams.

Long texts are rendered and encoded in a small thread pool (the tokenizer releases the interpreter
lock); short ones on the spot, because a thread switch costs more than they do.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.errors import BadRequestError, FieldProblem, ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.completions import Prompt
from cluster.openai_schema.messages import (
    AssistantMessage,
    ContentPart,
    MediaPart,
    Message,
    TextPart,
    ToolMessage,
)
from cluster.openai_schema.tools import Tool
from deployments.ingress.served_model import ServedModel
from models.chat_template import ChatTemplate, RenderError

LONG_TEXT_CHARS = 8192  # a few milliseconds of encoding
NUM_THREADS = 2

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPrompt:
    text: str | None  # None: the client sent token ids
    token_ids: list[int]


class PromptBuilder:
    """Renders and encodes. `close()` ends its threads."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="tokenize")

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def chat(
        self,
        model: ServedModel,
        template: ChatTemplate,
        request: ChatCompletionRequest,
        *,
        add_generation_prompt: bool = True,
        add_special_tokens: bool = False,
        context: str | None = None,
    ) -> TokenizedPrompt:
        """The prompt that the chat template makes of the messages, and of a `context` for them.

        Raises:
            BadRequestError: the template refuses them.
            ValidationError: a message has parts that a text model cannot read.
        """
        messages = [template_message(m, position) for position, m in enumerate(request.messages)]
        if context is not None:
            messages = with_context(messages, context, has_system_role=template.has_system_role)
        # `none` asks for an answer without calls, so the model is not told about the functions.
        tools = template_tools(request.tools or []) if request.tool_choice != "none" else None
        variables = {
            name: value
            for name in ("enable_thinking", "reasoning_effort")
            if (value := getattr(request, name)) is not None
        }

        def build() -> TokenizedPrompt:
            try:
                text = template.render(
                    messages,
                    tools=tools or None,
                    add_generation_prompt=add_generation_prompt,
                    variables=variables,
                )
            except RenderError as error:
                raise BadRequestError(
                    f"The model's chat template refuses these messages: {error}", param="messages"
                ) from error
            token_ids = model.tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return TokenizedPrompt(text=text, token_ids=token_ids)

        num_chars = sum(len(message.get("content", "")) for message in messages)
        return await self._run(build, num_chars)

    async def completion(
        self, model: ServedModel, prompts: Sequence[Prompt]
    ) -> list[TokenizedPrompt]:
        """One prompt's tokens after the other.

        Raises:
            ValidationError: a token id that the model does not have, or a prompt without tokens.
        """

        def build() -> list[TokenizedPrompt]:
            return [_tokenized(model, prompt, position) for position, prompt in enumerate(prompts)]

        return await self._run(build, sum(len(prompt) for prompt in prompts))

    async def tokens(self, model: ServedModel, text: str, *, add_special_tokens: bool) -> list[int]:
        """A text's tokens; it may be empty."""
        return await self._run(
            lambda: model.tokenizer.encode(text, add_special_tokens=add_special_tokens), len(text)
        )

    async def token_counts(self, model: ServedModel, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""

        def build() -> list[int]:
            encode = model.tokenizer.encode
            return [len(encode(text, add_special_tokens=False)) for text in texts]

        return await self._run(build, sum(map(len, texts)))

    async def text(self, model: ServedModel, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones written out."""
        return await self._run(
            lambda: model.tokenizer.decode(token_ids, skip_special_tokens=False), len(token_ids)
        )

    async def _run(self, build: Callable[[], ResultT], num_chars: int) -> ResultT:
        if num_chars < LONG_TEXT_CHARS:
            return build()
        return await asyncio.get_running_loop().run_in_executor(self._executor, build)


def template_message(message: Message, position: int) -> dict[str, Any]:
    """A message as chat templates expect it: plain text, `developer` as `system`.

    Raises:
        ValidationError: a part that is not text.
    """
    role = "system" if message.role == "developer" else message.role
    rendered: dict[str, Any] = {"role": role}
    if message.content is not None:
        rendered["content"] = (
            message.content
            if isinstance(message.content, str)
            else _joined(message.content, position)
        )
    if message.name is not None:
        rendered["name"] = message.name
    if isinstance(message, AssistantMessage):
        if message.tool_calls:
            rendered["tool_calls"] = [
                call.model_dump(exclude={"index"}) for call in message.tool_calls
            ]
        if message.reasoning_content is not None:
            rendered["reasoning_content"] = message.reasoning_content
    elif isinstance(message, ToolMessage):
        rendered["tool_call_id"] = message.tool_call_id
    return rendered


def with_context(
    messages: Sequence[dict[str, Any]], context: str, *, has_system_role: bool
) -> list[dict[str, Any]]:
    """The messages with a text that belongs to none of them: at the end of the system message, or,
    for models that know no system messages, before the text of the user's last one."""
    role, place = ("system", 0) if has_system_role else ("user", -1)
    positions = [index for index, message in enumerate(messages) if message["role"] == role]
    if not positions:
        return [{"role": role, "content": context}, *messages]
    chosen = positions[place]
    own = messages[chosen].get("content", "")
    parts = (own, context) if has_system_role else (context, own)
    grounded = {**messages[chosen], "content": "\n\n".join(part for part in parts if part)}
    return [*messages[:chosen], grounded, *messages[chosen + 1 :]]


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Function tools as chat templates expect them."""
    return [tool.model_dump(exclude_none=True) for tool in tools if tool.type == "function"]


def _joined(parts: Sequence[ContentPart], message_position: int) -> str:
    """The text of a list of parts; a line each, as vLLM joins them."""
    texts = []
    for position, part in enumerate(parts):
        if isinstance(part, MediaPart):
            loc = ("messages", message_position, "content", position, "type")
            message = f"this model reads text only; given {part.type!r}"
            raise ValidationError([FieldProblem(loc=loc, message=message)])
        texts.append(part.text if isinstance(part, TextPart) else part.refusal)
    return "\n".join(texts)


def _tokenized(model: ServedModel, prompt: Prompt, position: int) -> TokenizedPrompt:
    if isinstance(prompt, str):
        token_ids = model.tokenizer.encode(prompt, add_special_tokens=True)
        if not token_ids:
            raise _prompt_problem(position, "must not be empty: the model has no start token")
        return TokenizedPrompt(text=prompt, token_ids=token_ids)
    if max(prompt) >= model.vocab_size:
        message = f"token ids must be below {model.vocab_size}; given {max(prompt)}"
        raise _prompt_problem(position, message)
    return TokenizedPrompt(text=None, token_ids=prompt)


def _prompt_problem(position: int, message: str) -> ValidationError:
    return ValidationError([FieldProblem(loc=("prompt", position), message=message)])
