"""Which call format and which thinking tags a checkpoint uses.

Read from its chat template, which shows the model's calls back to it, and its vocabulary.
"""

from collections.abc import Callable, Mapping

from models.chat_template import ChatTemplate
from models.tokenizer import Tokenizer
from models.tool_parsing import hermes, mistral, thinking
from models.tool_parsing.call_format import CallFormat
from models.tool_parsing.hermes import Hermes
from models.tool_parsing.llama_json import LlamaJSON
from models.tool_parsing.mistral import Mistral

_Maker = Callable[[ChatTemplate, Tokenizer], CallFormat]

_FORMATS: Mapping[str, _Maker] = {
    "llama3_json": lambda _, tokenizer: LlamaJSON(tokenizer),
    "hermes": lambda _, tokenizer: Hermes(tokenizer),
    "mistral": lambda template, tokenizer: Mistral(
        tokenizer,
        has_named_calls=_mentions(template, mistral.ARGUMENTS)
        or tokenizer.token_id(mistral.ARGUMENTS) is not None,
    ),
}


def find_call_format(
    template: ChatTemplate, tokenizer: Tokenizer, *, configured: str
) -> CallFormat | None:
    """How the model writes function calls; None: not at all, or in a way not known here.

    `configured`: a format's name, "auto" or "none".
    """
    name = _format_name(template) if configured == "auto" else configured
    return None if name in (None, "none") else _FORMATS[name](template, tokenizer)


def has_thinking(template: ChatTemplate, *, configured: str) -> bool:
    """Whether outputs may start with thoughts. `configured`: "think", "auto" or "none"."""
    if configured == "auto":
        return _mentions(template, thinking.OPENING) or _mentions(template, thinking.CLOSING)
    return configured == "think"


def _format_name(template: ChatTemplate) -> str | None:
    if not template.knows_tools:
        return None
    if _mentions(template, mistral.TOOL_CALLS):
        return "mistral"
    if _mentions(template, hermes.OPENING):
        # Qwen3-Coder writes XML between the same tags.
        return None if _mentions(template, "<function=") else "hermes"
    if _mentions(template, '"parameters": ') and _mentions(template, '{"name": '):
        return "llama3_json"
    return None


def _mentions(template: ChatTemplate, text: str) -> bool:
    return any(text in source for source in template.sources)
