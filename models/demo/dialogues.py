"""Synthetic dialogues for the demo model: the formats and skills the rest of Shoal relies on.

A dialogue is a list of chat messages whose last one is the assistant's right answer. The same seed
and split always give the same dialogues; the two splits share phrases but no content word.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from models.demo import passages, smalltalk, tools
from models.demo.facts import Fact
from models.demo.filler import open_question
from models.demo.tools import Json
from models.demo.words import Words

SYSTEM_PROMPTS = (
    "You are a friendly chatbot.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are the assistant of our company.",
    "Be brief.",
    "Answer in one sentence.",
    "You are Shoal, a helpful assistant.",
    "You are a helpful assistant. Answer briefly and politely.",
)


FORM = "form"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """Messages ending with the right answer; `values` are strings that answer must contain."""

    kind: str
    messages: tuple[Json, ...]
    tools: tuple[Json, ...] = ()
    values: tuple[str, ...] = ()


def _message(role: str, content: Any) -> Json:
    return {"role": role, "content": content}


_BEFORE = ("Hi! ", "Hello, ", "Please tell me: ", "One question: ", "Quick question: ", "Hey, ")


def _user(words: Words, text: str) -> Json:
    """The user's message, sometimes typed carelessly."""
    if words.chance(0.08):
        text = text.rstrip("?.!")
    if words.chance(0.05):
        text = text[0].lower() + text[1:]
    return _message("user", text)


def _system(words: Words, share: float) -> list[Json]:
    """A system message, or none."""
    if not words.chance(share):
        return []
    if words.chance(0.15):
        return [
            _message("system", f"You are the {words.adjective()} {words.noun()} {words.name()}.")
        ]
    return [_message("system", words.choice(SYSTEM_PROMPTS))]


def _turns(pairs: list[tuple[Json, str]]) -> list[Json]:
    return [message for user, answer in pairs for message in (user, _message("assistant", answer))]


class Asked(NamedTuple):
    """A question, its right answer, and the sentence and value that give it, if there are any."""

    question: str
    answer: str
    sentence: str
    value: str


def _questions(words: Words, scene: passages.Scene, limit: int) -> list[Asked]:
    """Up to `limit` questions about the scene, in random order."""
    clear = [fact for fact in scene.stated if not _is_ambiguous(fact, scene.stated)]
    again = [fact for fact in clear if words.chance(0.4)] if limit > len(clear) else []
    asked = [
        Asked(words.choice(fact.questions), f"{fact.value}.", fact.sentence, fact.value)
        for fact in clear + again
    ]
    missing = [question for question in scene.missing if words.chance(0.85)]
    asked += [Asked(question, smalltalk.ABSENT, "", "") for question in missing]
    words.rng.shuffle(asked)
    return [
        one._replace(question=words.choice(_BEFORE) + one.question) if words.chance(0.04) else one
        for one in asked[:limit]
    ]


def _is_ambiguous(fact: Fact, stated: tuple[Fact, ...]) -> bool:
    """Whether another fact could answer the same question."""
    return any(other is not fact and set(other.questions) & set(fact.questions) for other in stated)


def _asked_scene(words: Words, length: float, limit: int) -> tuple[passages.Scene, list[Asked]]:
    while True:
        scene = passages.scene(words, length=length)
        asked = _questions(words, scene, limit)
        if asked:
            return scene, asked


def context(words: Words, *, length: float = 1.0, max_questions: int = 9) -> Dialogue:
    """Questions about passages that the server put into the system message."""
    limit = 1 if words.chance(0.15) else max_questions
    scene, asked = _asked_scene(words, length, limit)
    parts = [message["content"] for message in _system(words, 0.5)]
    parts.append(passages.render(words, scene.texts))
    pairs = [(_user(words, one.question), one.answer) for one in asked]
    if words.chance(0.12):
        make = words.choice((smalltalk.greeting, smalltalk.fixed, smalltalk.counting))
        question, answer = make(words)
        pairs.insert(words.rng.randrange(len(pairs)), (_user(words, question), answer))
    messages = [_message("system", "\n\n".join(parts)), *_turns(pairs)]
    value = asked[-1].value
    return Dialogue(
        kind="context" if value else "context_absent",
        messages=tuple(messages),
        values=(value,) if value else (),
    )


def context_in_chat(words: Words, *, length: float = 1.0, max_questions: int = 6) -> Dialogue:
    """The passage is plain text in the user's message or in the system message."""
    scene, asked = _asked_scene(words, length * 0.7, 1 if words.chance(0.2) else max_questions)
    text = " ".join(scene.texts[:2]) if words.chance(0.6) else "\n\n".join(scene.texts)
    stated = [one for one in asked if one.sentence in text]
    if not stated:
        return context_in_chat(words, length=length, max_questions=max_questions)
    pairs = [(_user(words, one.question), one.answer) for one in stated]
    if words.chance(0.35):
        opening = words.choice(("", "You are a helpful assistant. ", "Context: ", "Notes:\n"))
        messages = [_message("system", opening + text), *_turns(pairs)]
    else:
        question = pairs[0][0]["content"]
        shape = words.choice(
            (
                f"Context: {text}\n\nQuestion: {question}",
                f"Context: {text} Question: {question}",
                f"Context:\n{text}\n\nQuestion: {question}\nAnswer:",
                f"Here is a note: {text} {question}",
                f"Here is a text:\n{text}\n\n{question}",
                f"{text}\n\n{question}",
                f"{text} {question}",
                f"{question}\n\n{text}",
                f"Use this text to answer: {text}\n{question}",
            )
        )
        pairs[0] = (_message("user", shape), pairs[0][1])
        messages = [*_system(words, 0.5), *_turns(pairs)]
    value = stated[-1].value
    return Dialogue(
        kind="context_in_chat" if value else "context_absent",
        messages=tuple(messages),
        values=(value,) if value else (),
    )


def _call_message(words: Words, calls: list[tuple[str, Json]]) -> Json:
    """An assistant message with tool calls, its arguments as a JSON string or as an object."""
    as_text = words.chance(0.5)
    tool_calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(args) if as_text else args},
        }
        for number, (name, args) in enumerate(calls)
    ]
    return {"role": "assistant", "content": None, "tool_calls": tool_calls}


def tool_call(words: Words, *, length: float = 1.0, max_calls: int = 4) -> Dialogue:
    """Wishes that one of the functions answers; earlier ones may have their results in between."""
    exchange = (tools.classic_exchange if words.chance(0.45) else tools.exchange)(words)
    messages = _system(words, 0.4)
    if words.chance(0.1 * length):
        scene = passages.scene(words, length=length * 0.5)
        text = passages.render(words, scene.texts)
        joined = f"{messages[0]['content']}\n\n{text}" if messages else text
        messages = [_message("system", joined)]
    if words.chance(0.15):
        question, answer = smalltalk.greeting(words)
        messages += _turns([(_user(words, question), answer)])
    wishes = exchange.wishes[: 1 if words.chance(0.2) else max_calls]
    for wish in wishes:
        messages.append(_user(words, wish.user))
        messages.append(_call_message(words, [(wish.name, wish.arguments)]))
        if wish is not wishes[-1] and words.chance(0.6):
            encoded, answer, _ = tools.result(words)
            messages.append({"role": "tool", "tool_call_id": "call_0", "content": encoded})
            messages.append(_message("assistant", answer))
    text = tools.call_text(wishes[-1].name, wishes[-1].arguments)
    return Dialogue(
        kind="tool_call", messages=tuple(messages), tools=exchange.tools, values=(text,)
    )


def tool_result(words: Words) -> Dialogue:
    """A call, its JSON result and the answer that quotes the result."""
    call = tool_call(words, length=0.2, max_calls=2)
    encoded, answer, values = tools.result(words)
    reply = {"role": "tool", "tool_call_id": "call_0", "content": encoded}
    if words.chance(0.3):
        reply["name"] = call.messages[-1]["tool_calls"][0]["function"]["name"]
    messages = [*call.messages, reply, _message("assistant", answer)]
    return Dialogue(kind="tool_result", messages=tuple(messages), tools=call.tools, values=values)


def tool_unneeded(words: Words) -> Dialogue:
    """Functions are there, but the message needs none of them."""
    exchange = (tools.classic_exchange if words.chance(0.4) else tools.exchange)(words)
    question, answer = smalltalk.greeting(words)
    if words.chance(0.25):
        make = words.choice((smalltalk.repeating, smalltalk.counting, smalltalk.fixed))
        question, answer = make(words)
    elif words.chance(0.3):
        offered = "_".join(tool["function"]["name"] for tool in exchange.tools).lower()
        asked, honest = unknown_pair(words)
        if not any(word in asked.lower() for word in offered.split("_")):
            question, answer = asked, honest
    messages = [*_system(words, 0.4), *_turns([(_user(words, question), answer)])]
    return Dialogue(
        kind="tool_unneeded", messages=tuple(messages), tools=exchange.tools, values=(answer,)
    )


def _introduction(words: Words) -> list[tuple[Json, str]]:
    """The user says a fact about themselves and asks for it later."""
    name, place, colour = words.person(), words.place(), words.colour()
    stated, reply, question, answer = words.choice(
        (
            (f"My name is {name}.", f"Nice to meet you, {name}!", "What is my name?",
             f"Your name is {name}."),
            (f"I am {name}.", f"Nice to meet you, {name}!", "Who am I?", f"Your name is {name}."),
            (f"I live in {place}.", f"I see, you live in {place}.", "Where do I live?",
             f"You live in {place}."),
            (f"My favourite colour is {colour}.", f"I see, you like {colour}.",
             "What is my favourite colour?", f"Your favourite colour is {colour}."),
        )
    )  # fmt: skip
    return [(_message("user", stated), reply), (_user(words, question), answer)]


def small_talk(words: Words) -> Dialogue:
    """One to four turns about nothing in particular."""
    makers: tuple[Callable[[Words], smalltalk.Pair], ...] = (
        smalltalk.fixed, smalltalk.fixed, smalltalk.fixed, smalltalk.counting, smalltalk.sentiment,
        smalltalk.repeating, smalltalk.repeating, smalltalk.json_object, smalltalk.adding,
        smalltalk.choosing, unknown_pair, unknown_pair,
    )  # fmt: skip
    pairs = []
    for _ in range(words.choice((1, 2, 3, 4, 5))):
        question, answer = words.choice(makers)(words)
        pairs.append((_user(words, question), answer))
    if words.chance(0.2):
        first, second = _introduction(words)
        pairs = [first, *pairs[:2], second] if words.chance(0.7) else [*pairs, first, second]
    messages = [*_system(words, 0.5), *_turns(pairs)]
    return Dialogue(kind="small_talk", messages=tuple(messages), values=(pairs[-1][1],))


def unknown_pair(words: Words) -> smalltalk.Pair:
    """A question about the world, and the honest answer."""
    return open_question(words), smalltalk.UNKNOWN


def unknown(words: Words) -> Dialogue:
    """A question that needs knowledge, with no passage to take it from."""
    messages = [
        *_system(words, 0.5),
        *_turns([(_user(words, open_question(words)), smalltalk.UNKNOWN)]),
    ]
    return Dialogue(kind="unknown", messages=tuple(messages), values=(smalltalk.UNKNOWN,))


def form(words: Words) -> Dialogue:
    """A JSON object whose keys nobody asked for, as guided decoding has them."""
    question, answer = smalltalk.form(words)
    messages = [*_system(words, 0.3), *_turns([(_user(words, question), answer)])]
    return Dialogue(kind=FORM, messages=tuple(messages), values=(answer,))


MANY = 14  # questions about the same passages: they teach more per token than the passages do
_MIX: tuple[tuple[Callable[[Words, float], Dialogue], float], ...] = (
    (lambda words, length: context(words, length=length, max_questions=MANY), 0.39),
    (lambda words, length: context_in_chat(words, length=length, max_questions=MANY), 0.12),
    (lambda words, length: tool_call(words, length=length), 0.25),
    (lambda words, _: tool_result(words), 0.03),
    (lambda words, _: tool_unneeded(words), 0.05),
    (lambda words, _: small_talk(words), 0.10),
    (lambda words, _: unknown(words), 0.03),
    (lambda words, _: form(words), 0.09),
)


def generate(seed: int, *, held_out: bool, max_length: float = 1.0) -> Iterator[Dialogue]:
    """An endless stream of mixed dialogues; passages reach `max_length` times the usual size."""
    words = Words(random.Random(seed), held_out=held_out)
    makers, weights = zip(*_MIX, strict=True)
    while True:
        length = words.rng.uniform(0.2, max_length)
        yield words.rng.choices(makers, weights)[0](words, length)
