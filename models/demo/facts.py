"""Facts: what a passage states, how a question asks for it, and which value answers it.

The answer to a question is the stating sentence itself, word for word: answering is copying.
"""

import re
from dataclasses import dataclass, replace
from functools import cache

from models.demo.attributes import Attribute
from models.demo.words import VERBS, Words, word_list

KINDRED_SHARE = 0.75
ANY_ORDER_SHARE = 0.5  # of the facts, whose value may open the sentence
MIN_VALUE_START = 8
_EMPTY_STEMS = frozenset(
    word[:4]
    for word in word_list(
        """
        the of is in a an to for and what how does do did at on was were with you can it has have
        are be i from who where when which long much many that this by your me my we our us will
        must should may one or as about under each every per all up if there get give
        """
    )
)
_BEFORE = (
    "Please note: ", "In general, ", "As a rule, ", "Since last year, ", "Remember: ", "Usually, ",
    "At the moment, ", "According to the rules, ", "Good to know: ", "From now on, ",
)  # fmt: skip
_NOTES = ("Please note: ", "Remember: ", "Good to know: ", "Important: ", "New: ")
_AFTER = (
    ", as agreed", ", without exception", " at the moment", ", see the list", " in all countries",
    ", unless agreed otherwise", " (see below)", ", no matter what", " as of today", " for now",
)  # fmt: skip
_LOWERED = frozenset(
    word_list("The You We All Every Our A An On In From Up For If Each Call Send With To Go Write")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A sentence, the questions it answers, and the value a right answer must contain."""

    sentence: str
    questions: tuple[str, ...]
    value: str
    entity: str
    label: str


@cache
def _stems(text: str) -> frozenset[str]:
    """The beginnings of the words that say what a sentence or a question is about."""
    bare = text.replace("{e}", " ").replace("{v}", " ").lower()
    return frozenset(word[:4] for word in re.findall(r"[a-z]+", bare)) - _EMPTY_STEMS


@cache
def _value_last(statements: tuple[str, ...]) -> tuple[str, ...]:
    """The statements that name the thing before the value, where there are any.

    What comes later in a sentence cannot be seen at its start: a value that opens its sentence is
    found in two steps, which is harder to learn.
    """
    found = tuple(
        one
        for one in statements
        if one.find("{v}") > (one.find("{e}") if "{e}" in one else MIN_VALUE_START)
    )
    return found or statements


@cache
def _kindred(
    statements: tuple[str, ...], questions: tuple[str, ...]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The statements with the questions that share a word with them, where there are any."""
    pairs = []
    for statement in statements:
        asked = [one for one in questions if _stems(one) & _stems(statement)]
        if asked:
            pairs.append((statement, tuple(asked)))
    return tuple(pairs)


def state(words: Words, attribute: Attribute, entity: str) -> Fact:
    """Give `entity` a fresh value; most questions share a word with the sentence."""
    value = attribute.value(words)
    statements = attribute.statements
    if not words.chance(ANY_ORDER_SHARE):
        statements = _value_last(statements)
    pairs = _kindred(statements, attribute.questions) if words.chance(KINDRED_SHARE) else ()
    if pairs:
        statement, questions = words.choice(pairs)
    else:
        statement, questions = words.choice(statements), attribute.questions
    sentence = statement.format(e=entity, v=value)
    sentence = sentence[0].upper() + sentence[1:]
    return Fact(
        sentence=_dressed(words, sentence) if words.chance(0.1) else sentence,
        questions=tuple(question.format(e=entity) for question in questions),
        value=value,
        entity=entity,
        label=attribute.label,
    )


def _dressed(words: Words, sentence: str) -> str:
    """The sentence with a few words before or after it that change nothing."""
    if words.chance(0.5):
        return f"{sentence[:-1]}{words.choice(_AFTER)}."
    continued = _continued(sentence)
    return words.choice(_NOTES if continued == sentence else _BEFORE) + continued


def _continued(sentence: str) -> str:
    """The sentence as it stands after other words."""
    first = sentence.partition(" ")[0]
    return sentence[0].lower() + sentence[1:] if first in _LOWERED else sentence


def joined(words: Words, first: Fact, second: Fact) -> tuple[Fact, Fact]:
    """Both facts in one sentence, which answers the questions of both."""
    joint = words.choice((", and ", " and ", "; ", ", but "))
    sentence = f"{first.sentence[:-1]}{joint}{_continued(second.sentence)}"
    return replace(first, sentence=sentence), replace(second, sentence=sentence)


def named_property(words: Words, entity: str) -> Fact:
    """A property with a random name: `The frell of the blue lamp is QX-12.`"""
    label = words.choice((words.noun, words.pseudo, words.thing))()
    kinds = (words.code, words.quantity, words.name, words.amount, words.word, words.person)
    value = words.choice(kinds)()
    owner = f"the {entity}" if entity[0].islower() and not entity.startswith("the ") else entity
    sentence = words.choice(
        (
            f"The {label} of {owner} is {value}.",
            f"The {label} for {owner} is {value}.",
            f"{owner} has the {label} {value}.",
            f"For {owner}, the {label} is {value}.",
        )
    )
    questions = (
        f"What is the {label} of {owner}?",
        f"What is the {label} for {owner}?",
        f"Which {label} does {owner} have?",
        f"Tell me the {label} of {owner}.",
        f"I need the {label} of {owner}.",
    )
    return Fact(
        sentence=sentence[0].upper() + sentence[1:],
        questions=questions,
        value=value,
        entity=entity,
        label=label,
    )


def event(words: Words) -> Fact:
    """An open fact about anything: who did what where, asked for by the words it shares."""
    actor = words.choice((words.person(), f"the {words.thing()}", words.company()))
    verb = words.pick(VERBS)
    target = words.choice((f"the {words.thing()}", words.product(), f"a {words.thing()}"))
    where = words.choice(
        (
            f"in {words.place()}",
            f"on {words.date()}",
            f"at {words.time()}",
            f"near the {words.thing()}",
            f"with {words.person()}",
            f"for {words.price()}",
            f"in {words.spot()}",
            f"because of the {words.thing()}",
        )
    )
    link = words.choice(("will", "can", "must", "should", "may"))
    sentence = f"{actor} {link} {verb} {target} {where}."
    asking = {"in": "Where", "on": "When", "at": "When", "near": "Where", "because": "Why"}
    word = asking.get(where.split()[0], "How")
    questions = (
        f"{word} {link} {actor} {verb} {target}?",
        f"Who {link} {verb} {target}?",
        f"What {link} {actor} {verb}?",
        f"Tell me about {target}.",
        f"What do you know about {actor}?",
        f"What about {target}?",
    )
    return Fact(
        sentence=sentence[0].upper() + sentence[1:],
        questions=questions,
        value=where,
        entity=actor,
        label=verb,
    )
