"""Rules about arbitrary things: questions that only shared words tie to the sentence they ask for.

They teach what the fixed attributes cannot: to find the sentence whatever it is about.
"""

# ruff: noqa: E501  -- one line for all the patterns of a fact reads better than six

from models.demo.facts import ANY_ORDER_SHARE, Fact
from models.demo.words import VERBS, Words, word_list

_PEOPLE = word_list(
    """
    visitors drivers nurses teachers guests members tenants players students managers customers
    employees owners parents pilots cooks artists farmers sellers buyers workers volunteers
    """
)
_IRREGULAR = frozenset(
    word_list("build buy find get send read sell fetch set run cancel submit tag log pack plan")
)
_PATTERNS = (
    ("span", "{S} must {verb} the {o} within {v}.|{S} have {v} to {verb} the {o}.", "How long do {s} have to {verb} the {o}?|Within how many days must {s} {verb} the {o}?|When must {s} {verb} the {o}?|By when do {s} have to {verb} the {o}?"),
    ("span", "The {o} is {verbed} every {v}.|Every {v} the {o} is {verbed}.", "How often is the {o} {verbed}?|When is the {o} {verbed}?|How often do you {verb} the {o}?|How often must the {o} be {verbed}?"),
    ("date", "{p} {verbed} the {o} on {v}.|The {o} was {verbed} on {v} by {p}.", "When did {p} {verb} the {o}?|When was the {o} {verbed}?|On which date was the {o} {verbed}?"),
    ("person", "The {o} is {verbed} by {v}.|{v} {verbed} the {o}.|It was {v} who {verbed} the {o}.", "Who {verbed} the {o}?|Who {verb}s the {o}?|By whom is the {o} {verbed}?|Who has {verbed} the {o}?"),
    ("person", "To {verb} a {o}, ask {v}.|If you want to {verb} a {o}, talk to {v}.|{v} helps you to {verb} a {o}.", "Who do I ask to {verb} a {o}?|Who can help me to {verb} a {o}?|Who helps if I want to {verb} a {o}?|I want to {verb} a {o}. Who do I ask?"),
    ("price", "It costs {v} to {verb} a {o}.|To {verb} a {o} you pay {v}.|{S} pay {v} to {verb} a {o}.", "How much does it cost to {verb} a {o}?|What does it cost to {verb} a {o}?|How much do I pay to {verb} a {o}?|What is the price to {verb} a {o}?"),
    ("spot", "The {o} can be {verbed} in {v}.|{S} {verb} the {o} in {v}.|Go to {v} to {verb} the {o}.", "Where can I {verb} the {o}?|Where do {s} {verb} the {o}?|Where can the {o} be {verbed}?|Where do I go to {verb} the {o}?"),
    ("code", "Use the code {v} to {verb} the {o}.|The {o} is {verbed} with the code {v}.|{S} enter {v} to {verb} the {o}.", "Which code do I need to {verb} the {o}?|What is the code to {verb} the {o}?|With which code is the {o} {verbed}?|How do I {verb} the {o}?"),
    ("word", "{S} {verb} the {o} with a {v}.|You need a {v} to {verb} the {o}.", "What do I need to {verb} the {o}?|With what do {s} {verb} the {o}?|What do you use to {verb} the {o}?"),
    ("time", "{S} {verb} the {o} at {v}.|At {v} the {o} is {verbed}.", "At what time do {s} {verb} the {o}?|When do {s} {verb} the {o}?|At what time is the {o} {verbed}?|When is the {o} {verbed}?"),
    ("word", "The {o} was {verbed} because of the {v}.|{S} {verb} the {o} because of the {v}.", "Why was the {o} {verbed}?|Why do {s} {verb} the {o}?|Why did they {verb} the {o}?"),
)  # fmt: skip


def _value(words: Words, kind: str) -> str:
    if kind == "span":
        return f"{words.number(2, 99)} {words.choice(('days', 'days', 'weeks', 'hours', 'months'))}"
    makers = {
        "date": words.date,
        "person": words.person,
        "price": words.price,
        "spot": words.spot,
        "code": words.code,
        "word": words.noun,
        "time": words.time,
    }
    return makers[kind]()


def _regular(words: Words) -> tuple[str, str]:
    """A verb and its past participle."""
    while True:
        verb = words.pick(VERBS)
        if verb not in _IRREGULAR:
            break
    if verb.endswith("e"):
        return verb, f"{verb}d"
    ends_in_y = verb.endswith("y") and verb[-2] not in "aeiou"
    return verb, f"{verb[:-1]}ied" if ends_in_y else f"{verb}ed"


def _rule(words: Words, pattern: tuple[str, str, str], verbs: tuple[str, str], thing: str) -> Fact:
    kind, statements, questions = pattern
    value = _value(words, kind)
    people = words.pick(_PEOPLE)
    parts = {
        "verb": verbs[0],
        "verbed": verbs[1],
        "o": thing,
        "s": people,
        "S": people.capitalize(),
        "p": words.person(),
        "v": value,
    }
    told = statements.split("|")
    if not words.chance(ANY_ORDER_SHARE):
        told = [one for one in told if one.find("{v}") > one.find("{o}")]
    sentence = words.choice(told).format(**parts)
    asked = questions.split("|")
    if people not in sentence.lower():
        asked = [question for question in asked if "{s}" not in question]
    if parts["p"] not in sentence:
        asked = [question for question in asked if "{p}" not in question]
    return Fact(
        sentence=sentence[0].upper() + sentence[1:],
        questions=tuple(question.format(**parts) for question in asked),
        value=value,
        entity=thing,
        label=verbs[0],
    )


def rules(words: Words, count: int) -> tuple[list[Fact], list[str]]:
    """Rules that share verbs, things or patterns, no two of them both, and unanswered questions."""
    verbs = [_regular(words) for _ in range(words.choice((1, 2, 3)))]
    things = list({words.thing() for _ in range(words.choice((1, 2, 3)))})
    patterns = words.rng.sample(_PATTERNS, words.choice((1, 2, 3)))
    drawn = [(pattern, pair, thing) for pattern in patterns for pair in verbs for thing in things]
    words.rng.shuffle(drawn)
    found = [_rule(words, *item) for item in drawn[: count + 1]]
    stated = found[:count]
    missing = [words.choice(fact.questions) for fact in found[count:]]
    return stated, missing
