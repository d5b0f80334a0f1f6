"""Passages for retrieval: facts among filler and look-alikes, and the context message "
"around them."""

from dataclasses import dataclass

from models.demo import facts
from models.demo.attributes import ENTITY_KINDS
from models.demo.facts import Fact
from models.demo.filler import filler, heading, source
from models.demo.handbook import FAMILIES, GENERAL
from models.demo.rules import rules
from models.demo.words import Words

HEADER = "Answer from these passages."
_TOPICS = {
    "where": {"address", "city", "place", "room", "floor", "office", "storage"},
    "when": {"start", "weekday", "deadline", "hours", "opening hours", "founding", "closed"},
    "who": {"owner", "manager", "head", "contact"},
    "reach": {"phone", "email", "extension"},
    "secret": {"code", "password"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A few passages, the facts they state, and questions they do not answer."""

    texts: tuple[str, ...]
    stated: tuple[Fact, ...]
    missing: tuple[str, ...]


def render(words: Words, texts: tuple[str, ...]) -> str:
    """The text the server inserts into the system message."""
    numbered = (f"[{number}] {source(words)}\n{text}" for number, text in enumerate(texts, 1))
    return "\n\n".join((HEADER, *numbered))


def _same_kind(words: Words, num_entities: int) -> tuple[list[list[Fact]], list[str]]:
    """Facts of several entities of one kind, attribute by attribute, and unanswerable questions."""
    make_entity, attributes = words.choice(ENTITY_KINDS if words.chance(0.45) else FAMILIES)
    chosen = words.rng.sample(attributes, min(words.rng.randint(1, 4), len(attributes)))
    entities = sorted({make_entity(words) for _ in range(num_entities)})
    groups, missing = [], []
    for entity in entities:
        group = []
        for attribute in chosen:
            fact = facts.state(words, attribute, entity)
            if len(chosen) > 1 and words.chance(0.12):
                missing.append(words.choice(fact.questions))
            else:
                group.append(fact)
        if words.chance(0.08):
            group.append(facts.named_property(words, entity))
        groups.append(group)
    stranger = make_entity(words)
    if stranger not in entities and words.chance(0.7):
        unasked = facts.state(words, words.choice(chosen), stranger)
        missing.append(words.choice(unasked.questions))
    taken = {_topic(attribute.label) for attribute in chosen}
    others = [attribute for attribute in attributes if _topic(attribute.label) not in taken]
    if others and words.chance(0.7):
        unasked = facts.state(words, words.choice(others), words.choice(entities))
        missing.append(words.choice(unasked.questions))
    return groups, missing


def _topic(label: str) -> str:
    """Labels whose questions a reader could mix up (`Where is it?`) have one topic."""
    return next((topic for topic, labels in _TOPICS.items() if label in labels), label)


def _general(words: Words, count: int) -> tuple[list[list[Fact]], list[str]]:
    """A handbook's rules without an entity, and a question about one that is not there."""
    chosen = words.rng.sample(GENERAL, count + 1)
    found = [facts.state(words, attribute, "") for attribute in chosen]
    num_groups = words.rng.randint(1, min(3, count))
    groups = [found[start:count:num_groups] for start in range(num_groups)]
    return groups, [words.choice(found[count].questions)]


def _rules(words: Words, count: int) -> tuple[list[list[Fact]], list[str]]:
    stated, missing = rules(words, count)
    return [stated], missing


def _subjects(words: Words, length: float) -> tuple[list[list[Fact]], list[str]]:
    """What a scene is about: one kind of thing, a handbook's rules, now and then several."""
    num_entities = words.choice((1, 1, 2, 2, 3, 4)) + (int(length) if words.chance(0.5) else 0)
    size = 1 + round(words.rng.uniform(0.0, 5.0) * min(length, 2.0))
    roll = words.rng.random()
    if roll < 0.55:
        groups, missing = _same_kind(words, min(num_entities, 6))
    elif roll < 0.80:
        groups, missing = _general(words, size)
    else:
        groups, missing = _rules(words, size)
    for make in (_general, _rules):
        if words.chance(0.25 * min(length, 1.6)):
            more, unsaid = make(words, words.rng.randint(1, 3))
            groups, missing = groups + more, missing + unsaid
    if words.chance(0.04):
        groups.append([facts.event(words)])
    return groups, missing


def _joined(words: Words, group: list[Fact]) -> list[Fact]:
    """The facts, now and then two of them in one sentence."""
    if len(group) < 2 or not words.chance(0.07):
        return group
    return [*facts.joined(words, group[0], group[1]), *group[2:]]


def _passage(words: Words, stated: list[Fact], *, num_filler: int) -> str:
    """One passage: the facts in any order among filler, in prose, paragraphs or a markdown list."""
    sentences = list(dict.fromkeys(fact.sentence for fact in stated))
    sentences += [filler(words) for _ in range(num_filler)]
    words.rng.shuffle(sentences)
    roll = words.rng.random()
    if roll < 0.12:
        body = "\n".join(f"- {sentence}" for sentence in sentences)
    elif roll < 0.20:
        body = "\n".join(sentences)
    elif roll < 0.45:
        body = _paragraphs(words, sentences)
    else:
        body = " ".join(sentences)
    if words.chance(0.4):
        return f"{heading(words)}\n{words.choice(('', chr(10)))}{body}"
    return body


def _paragraphs(words: Words, sentences: list[str]) -> str:
    """Paragraphs of one to three sentences, some of them under a heading or as a list."""
    parts = []
    start = 0
    while start < len(sentences):
        end = start + words.rng.randint(1, 3)
        chunk = sentences[start:end]
        text = " ".join(chunk)
        if words.chance(0.15):
            text = "\n".join(f"- {sentence}" for sentence in chunk)
        if words.chance(0.2):
            text = f"{heading(words)}\n{words.choice(('', chr(10)))}{text}"
        parts.append(text)
        start = end
    return "\n\n".join(parts)


def scene(words: Words, *, length: float) -> Scene:
    """Passages of a size that grows with `length` (1.0: about 60 words in all; 5.0: five times)."""
    groups, missing = _subjects(words, length)
    if words.chance(0.4):
        groups = [[fact for group in groups for fact in group]]
    words.rng.shuffle(groups)
    groups = [_joined(words, group) for group in groups[:5]]
    num_filler = round(words.rng.uniform(0.0, 5.0) * length)
    shares = [num_filler // len(groups)] * len(groups)
    texts = tuple(
        _passage(words, group, num_filler=share)
        for group, share in zip(groups, shares, strict=True)
        if group or share
    )
    kept = tuple(fact for group in groups for fact in group)
    said = {question for fact in kept for question in fact.questions}
    return Scene(
        texts=texts or (filler(words),),
        stated=kept,
        missing=tuple(question for question in missing if question not in said),
    )
