"""Facts: what a passage states, how a question asks for it, and which value answers it.

The answer to a question is the stating sentence itself, word for word: answering is copying.
"""

from dataclasses import dataclass

from models.demo.attributes import Attribute
from models.demo.words import VERBS, Words


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A sentence, the questions it answers, and the value a right answer must contain."""

    sentence: str
    questions: tuple[str, ...]
    value: str
    entity: str
    label: str


def state(words: Words, attribute: Attribute, entity: str) -> Fact:
    """Give `entity` a fresh value for `attribute`."""
    value = attribute.value(words)
    sentence = words.choice(attribute.statements).format(e=entity, v=value)
    return Fact(
        sentence=sentence[0].upper() + sentence[1:],
        questions=tuple(question.format(e=entity) for question in attribute.questions),
        value=value,
        entity=entity,
        label=attribute.label,
    )


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
