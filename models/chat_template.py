"""A checkpoint's chat template: messages and tools to the prompt text, as transformers renders it.

Knows where checkpoints keep the template and which environment templates expect. Templates are
the operator's files, yet they run in Jinja's immutable sandbox, as everywhere.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from models.tokenizer import SPECIAL_TOKEN_NAMES, Tokenizer, read_json_object

Message = Mapping[str, Any]


class ChatTemplateError(ValueError):
    """A template that is missing or broken: the operator's to repair."""


class RenderError(ValueError):
    """The template refused these messages, or could not render them: the client's to repair."""


class ChatTemplate:
    """A compiled template with the special tokens that it may mention."""

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        tool_use_source: str | None = None,
    ) -> None:
        """`tool_use_source`: a second template that some checkpoints have for requests with tools.

        Raises:
            ChatTemplateError: not Jinja.
        """
        environment = template_environment()
        tokens = dict(special_tokens or {})
        self._special_tokens = {k: v for k, v in tokens.items() if k in SPECIAL_TOKEN_NAMES}
        #: The template's text, and that of the one for requests with tools.
        self.sources = (source, *filter(None, (tool_use_source,)))
        try:
            self._template = environment.from_string(source)
            self._tool_use_template = environment.from_string(tool_use_source or source)
            self.variables = frozenset(
                jinja2.meta.find_undeclared_variables(environment.parse(source))
            )
            #: Whether the model is told about tools.
            self.knows_tools = any(
                "tools" in jinja2.meta.find_undeclared_variables(environment.parse(text))
                for text in self.sources
            )
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"line {error.lineno}: {error.message}") from error
        #: Whether a system message reaches the model; some templates refuse or drop it.
        self.has_system_role = self._shows_system_message()

    @classmethod
    def from_folder(
        cls, folder: Path, tokenizer: Tokenizer, *, override: Path | None = None
    ) -> Self:
        """The template of a checkpoint, or the one in the file `override`.

        Raises:
            ChatTemplateError: there is none, or it is broken.
        """
        try:
            sources = _sources(folder, override)
        except OSError as error:
            raise ChatTemplateError(f"{error.filename}: {error.strerror}") from error
        if "default" not in sources:
            raise ChatTemplateError(
                f"{folder}: no chat template (chat_template.jinja, chat_template.json or an entry "
                "in tokenizer_config.json); name a file with `chat_template` in the configuration"
            )
        try:
            return cls(
                sources["default"],
                special_tokens=tokenizer.special_tokens,
                tool_use_source=sources.get("tool_use"),
            )
        except ChatTemplateError as error:
            raise ChatTemplateError(f"{override or folder}: chat template: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text. `variables` are further names a template may read (enable_thinking).

        Keys with the value None are left out, and a tool call's `arguments` are handed over as an
        object when they are the JSON text of one: both are what templates are written for.

        Raises:
            RenderError: with the template's own words where it has some.
        """
        template = self._template if tools is None else self._tool_use_template
        names = {**self._special_tokens, **(variables or {})}
        try:
            return template.render(
                messages=[_as_templates_expect(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **names,
            )
        except jinja2.TemplateError as error:
            raise RenderError(error.message or type(error).__name__) from error
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            # What a template's own operations raise on messages it did not expect.
            raise RenderError(f"{type(error).__name__}: {error}") from error

    def _shows_system_message(self) -> bool:
        mark = "a system message"
        messages = [{"role": "system", "content": mark}, {"role": "user", "content": "Hello"}]
        try:
            return mark in self.render(messages)
        except RenderError:
            return False


def _as_templates_expect(message: Message) -> dict[str, Any]:
    present = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in present:
        present["tool_calls"] = [_with_parsed_arguments(call) for call in present["tool_calls"]]
    return present


def _with_parsed_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return dict(call)
    if not isinstance(arguments, dict):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}


def _sources(folder: Path, override: Path | None) -> dict[str, str]:
    """Template texts by name; "default" is the one for everything."""
    if override is not None:
        return {"default": override.read_text(encoding="utf-8")}
    jinja_file = folder / "chat_template.jinja"
    if jinja_file.exists():
        return {"default": jinja_file.read_text(encoding="utf-8")}
    for file_name in ("chat_template.json", "tokenizer_config.json"):
        entry = read_json_object(folder / file_name).get("chat_template")
        if isinstance(entry, str):
            return {"default": entry}
        if isinstance(entry, list):
            return {item["name"]: item["template"] for item in entry}
    return {}


class _GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks trainable text; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012  # the type that jinja declares

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)  # what is set inside stays inside


_DICT_ATTRIBUTES = frozenset(dir(dict))
_PLAIN_STR_METHODS = frozenset(
    ("startswith", "endswith", "split", "strip", "lstrip", "rstrip", "replace", "lower", "upper")
)


# What templates count loops and keep variables in; their public attributes are all harmless.
_TEMPLATES_OWN = (jinja2.runtime.LoopContext, jinja2.utils.Namespace)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with short ways for what templates do all the time.

    Its checks of every attribute take most of the time of rendering a long conversation. A key of
    a plain dictionary needs none, nor do loops, namespaces and the harmless methods of a string.
    """

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        is_plain = (kind is str and attribute in _PLAIN_STR_METHODS) or (
            kind in _TEMPLATES_OWN and attribute[:1] != "_" and hasattr(obj, attribute)
        )
        if is_plain:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


def template_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlocks, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter: no HTML escapes, and umlauts stay umlauts."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
