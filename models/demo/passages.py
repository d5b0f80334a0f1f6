"""Passages for retrieval: facts among filler and look-alikes, and the context message "
"around them."""

from dataclasses import dataclass

from models.demo import facts
from models.demo.attributes import ENTITY_KINDS
from models.demo.facts import Fact
from models.demo.filler import filler, heading, source
from models.demo.words import Words

HEADER = "Answer from these passages."


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


def _subject_facts(words: Words, num_entities: int) -> tuple[list[list[Fact]], list[str]]:
    """Facts of several entities of one kind, attribute by attribute, and unanswerable questions."""
    make_entity, attributes = words.choice(ENTITY_KINDS)
    chosen = words.rng.sample(attributes, min(words.rng.randint(1, 3), len(attributes)))
    entities = list({make_entity(words) for _ in range(num_entities)})
    groups, missing = [], []
    for entity in entities:
        group = []
        for attribute in chosen:
            fact = facts.state(words, attribute, entity)
            if len(chosen) > 1 and words.chance(0.08):
                missing.append(words.choice(fact.questions))
            else:
                group.append(fact)
        if words.chance(0.3):
            group.append(facts.named_property(words, entity))
        groups.append(group)
    stranger = make_entity(words)
    if stranger not in entities and words.chance(0.5):
        missing.append(words.choice(facts.state(words, words.choice(chosen), stranger).questions))
    others = [attribute for attribute in attributes if attribute not in chosen]
    if others and entities and words.chance(0.5):
        unasked = facts.state(words, words.choice(others), words.choice(entities))
        missing.append(words.choice(unasked.questions))
    return groups, missing


def _passage(words: Words, stated: list[Fact], *, num_filler: int) -> str:
    """One passage: the facts in any order among filler, now and then as a markdown list."""
    sentences = [fact.sentence for fact in stated] + [filler(words) for _ in range(num_filler)]
    words.rng.shuffle(sentences)
    roll = words.rng.random()
    if roll < 0.12:
        body = "\n".join(f"- {sentence}" for sentence in sentences)
    elif roll < 0.24:
        body = "\n".join(sentences)
    else:
        body = " ".join(sentences)
    if words.chance(0.25):
        return f"{heading(words)}\n{words.choice(('', chr(10)))}{body}"
    return body


def scene(words: Words, *, length: float) -> Scene:
    """Passages of a size that grows with `length` (1.0: about 60 words in all; 5.0: five times)."""
    num_entities = words.choice((1, 1, 2, 2, 3)) + (int(length) if words.chance(0.5) else 0)
    groups, missing = _subject_facts(words, min(num_entities, 6))
    if words.chance(0.2):
        groups.append([facts.event(words)])
    if words.chance(0.4):
        groups = [[fact for group in groups for fact in group]]
    words.rng.shuffle(groups)
    groups = groups[:5]
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
