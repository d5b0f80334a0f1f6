"""A chat in the terminal: asks over the HTTP API and shows the answer as it arrives.

Knows chat completions as a client sees them, server-sent events included; nothing of the server.
"""

import re
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import typer
from rich.console import Console

from cluster.cli_connection import APIConnection
from cluster.cli_error import CommandError

Message = dict[str, str]
Events = Generator[dict[str, Any], None, None]

HELP_LINE = "/new forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer"
_TIMEOUT = httpx.Timeout(10.0, read=300.0)  # seconds; a long prompt may wait for its first token
# What a model says must not move the cursor, ring or set the terminal's title.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class ChatError(CommandError):
    """No answer, or not all of it; the message is meant for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What goes with every question. None: the server's default."""

    model: str | None = None
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    buckets: tuple[str, ...] = ()  # to answer from

    def opening(self) -> list[Message]:
        """The messages before the first question."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def body(self, messages: list[Message]) -> dict[str, object]:
        """The request for an answer to `messages`, streamed, with usage at its end."""
        optional = {
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "tools": self._tools() or None,
        }
        return {
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in optional.items() if value is not None},
        }

    def _tools(self) -> list[dict[str, object]]:
        if not self.buckets:
            return []
        return [{"type": "retrieval", "retrieval": {"bucket_ids": list(self.buckets)}}]


class ChatClient(APIConnection):
    """One connection to the API; a context manager."""

    def __init__(self, base_url: str, *, api_key: str | None) -> None:
        super().__init__(base_url, api_key=api_key, timeout=_TIMEOUT)

    def events(self, body: dict[str, object]) -> Events:
        """The events of one streamed chat completion. Closing the generator ends the request.

        Raises:
            ChatError: nobody answers, the request is refused, or the stream breaks.
        """
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise ChatError(refusal(response.status_code, response.content))
                yield from _parse_events(response.iter_lines())
        except httpx.ConnectError as error:
            raise ChatError(
                f"nothing answers at {self._base_url}; `shoal up` starts a cluster"
            ) from error
        except httpx.TimeoutException as error:
            raise ChatError(f"no answer from {self._base_url} for {_TIMEOUT.read:.0f} s") from error
        except httpx.TransportError as error:
            raise ChatError(f"the connection to {self._base_url} broke: {error}") from error


class Answer:
    """One answer as it arrives: iterate for its text, then read the figures.

    `text` holds what has arrived so far, also when the iteration is stopped early.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self.text = ""
        self.finish_reason: str | None = None
        self.num_tokens: int | None = None  # known once the usage has arrived
        self.sources: tuple[str, ...] = ()  # what it was given to read: bucket/file, each once
        self.first_token_s: float | None = None
        self.total_s = 0.0

    def __iter__(self) -> Generator[str, None, None]:
        started = time.monotonic()
        with closing(self._events) as events:
            for event in events:
                piece = self._take(event)
                if not piece:
                    continue
                if self.first_token_s is None:
                    self.first_token_s = time.monotonic() - started
                self.text += piece
                yield piece
        self.total_s = time.monotonic() - started

    def _take(self, event: dict[str, Any]) -> str:
        """Note what an event says besides text; its text."""
        if usage := event.get("usage"):
            self.num_tokens = int(usage["completion_tokens"])
        text = ""
        for choice in event.get("choices", ()):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta", {})
            text += delta.get("content") or ""
            if retrieval := delta.get("retrieval"):
                found = [f"{c['bucket_id']}/{c['filename']}" for c in retrieval["chunks"]]
                self.sources = tuple(dict.fromkeys(found))
        return text

    def figures(self) -> str:
        """Tokens, speed and time to the first token, for a person."""
        if self.num_tokens is None or self.first_token_s is None:
            return "no usage reported"
        parts = [f"{self.num_tokens} tokens", f"first after {self.first_token_s:.2f} s"]
        decode_s = self.total_s - self.first_token_s
        if self.num_tokens > 1 and decode_s > 0:
            parts.insert(1, f"{(self.num_tokens - 1) / decode_s:.1f} tokens/s")
        if self.finish_reason == "length":
            parts.append("cut at the token limit")
        return ", ".join(parts)


def refusal(status: int, content: bytes) -> str:
    """What an error response says, in one line; understands all three error shapes of the API."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = None
    detail = (_openai_message(body) or _listed_message(body)) if isinstance(body, dict) else None
    if detail is None:
        detail = content.decode("utf-8", "replace").strip()[:300] or "no explanation"
    hint = ""
    if status == httpx.codes.UNAUTHORIZED:
        hint = " (the key comes from SHOAL_API_KEY, else from the api_key file in SHOAL_HOME)"
    return f"{detail}{hint} [HTTP {status}]"


def ask_once(client: ChatClient, question: str, *, options: ChatOptions, console: Console) -> None:
    """Ask one question. The answer goes to standard output, its figures to `console`.

    Raises:
        ChatError: there is no answer, or an empty one.
    """
    messages = [*options.opening(), {"role": "user", "content": question}]
    answer = Answer(client.events(options.body(messages)))
    _show(answer, console)
    if not answer.text.strip():
        raise ChatError(f"the answer is empty (finish reason: {answer.finish_reason})")


def converse(client: ChatClient, *, options: ChatOptions, console: Console) -> None:
    """Ask question after question until the input ends or says /quit."""
    console.print(HELP_LINE, style="dim")
    messages = options.opening()
    while (question := _read_question(console)) is not None:
        if question == "/new":
            messages = options.opening()
            continue
        asked = [*messages, {"role": "user", "content": question}]
        answer = Answer(client.events(options.body(asked)))
        try:
            _show(answer, console)
        except KeyboardInterrupt:
            console.print("\n(stopped)", style="dim")
        except ChatError as error:
            console.print(f"\n{error}", style="red", markup=False, highlight=False)
            continue
        messages = [*asked, {"role": "assistant", "content": answer.text}]


def _read_question(console: Console) -> str | None:
    """The next line that says something; None at the end of the conversation."""
    while True:
        try:
            line = console.input("[bold cyan]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return None
        if line == "/quit":
            return None
        if line:
            return line


def _show(answer: Answer, console: Console) -> None:
    with closing(iter(answer)) as pieces:
        for piece in pieces:
            typer.echo(_CONTROL_CHARACTERS.sub("", piece), nl=False)
    typer.echo()
    if answer.sources:
        sources = _CONTROL_CHARACTERS.sub("", ", ".join(answer.sources))
        console.print(f"read: {sources}", style="dim", highlight=False, markup=False)
    console.print(answer.figures(), style="dim", highlight=False)


def _parse_events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Server-sent events as JSON objects, up to [DONE].

    Raises:
        ChatError: an event carries an error, or the stream ends without [DONE].
    """
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = orjson.loads(data)
        if "error" in event:
            raise ChatError(f"the answer broke off: {_openai_message(event)}")
        yield event
    raise ChatError("the answer broke off: the server closed the connection")


def _openai_message(body: dict[str, Any]) -> str | None:
    error = body.get("error")
    return str(error["message"]) if isinstance(error, dict) and "message" in error else None


def _listed_message(body: dict[str, Any]) -> str | None:
    """The first item of `errors` or of `detail`."""
    items = body.get("errors") or body.get("detail")
    if not isinstance(items, list) or not items or not isinstance(items[0], dict):
        return None
    message = items[0].get("detail") or items[0].get("msg") or items[0].get("title")
    return None if message is None else str(message)
