"""Plain-prose rules of a handbook, asked for in the words a reader would use."""

from collections.abc import Callable

from models.demo.facts import Fact
from models.demo.words import WEEKDAYS, Words


def _period(words: Words) -> str:
    kind = words.choice(
        ("days", "days", "weeks", "hours", "working days", "business days", "months")
    )
    return f"{words.number(2, 99)} {kind}"


def _moment(words: Words) -> str:
    return words.choice((words.time(), words.choice(WEEKDAYS), words.date()))


# {t} is a thing, {g} a plural topic, {v} the value.
_RULES: tuple[tuple[Callable[[Words], str], str, str], ...] = (
    (
        _period,
        "You can return the {t} within {v}.",
        "How long can I return the {t}?|Within how many days can I return the {t}?|What is "
        "the return period of the {t}?|How many days do I have to return the {t}?",
    ),
    (
        _period,
        "Customers may return {t}s within {v} of delivery.",
        "How long do I have to return {t}s?|When can customers return {t}s?",
    ),
    (
        _period,
        "You may return most items within {v} of delivery for a full refund.",
        "How long do I have to return an item?|How many days do I have to return "
        "something?|What is the return policy?|When can I get a full refund?",
    ),
    (
        _period,
        "Unused {t}s can be sent back within {v}.",
        "When can I send back a {t}?|How long can unused {t}s be sent back?",
    ),
    (
        _period,
        "Shipping of the {t} takes {v}.",
        "How long does shipping of the {t} take?|How long is the shipping time of the {t}?|When "
        "will the {t} arrive?",
    ),
    (
        _period,
        "Standard shipping takes {v}.",
        "How long does standard shipping take?|How long is shipping?|When will my order arrive?",
    ),
    (
        _period,
        "Express delivery takes {v}.",
        "How long does express delivery take?|How fast is express delivery?",
    ),
    (
        Words.price,
        "Express delivery costs {v}.",
        "How much is express delivery?|What does express delivery cost?",
    ),
    (Words.price, "{G} over {v} are free.", "Which {g} are free?|When are {g} free?"),
    (
        Words.price,
        "A new {t} costs {v} for members.",
        "How much does a new {t} cost for members?|What do members pay for a {t}?",
    ),
    (
        Words.person,
        "All {g} must be approved by {v}.",
        "Who approves {g}?|Who must approve all {g}?",
    ),
    (Words.person, "Please send {g} to {v}.", "Where do I send {g}?|Who gets {g}?"),
    (
        Words.email,
        "Questions about {g} go to {v}.",
        "Where do questions about {g} go?|Who can I ask about {g}?|Where can I ask about {g}?",
    ),
    (
        Words.phone,
        "In an emergency call {v}.",
        "What do I do in an emergency?|Which number do I call in an emergency?",
    ),
    (_period, "{G} take {v}.", "How long do {g} take?|How much time do {g} need?"),
    (_period, "{G} are answered within {v}.", "How soon are {g} answered?|When are {g} answered?"),
    (
        _period,
        "Employees get {v} of holiday a year.",
        "How much holiday do employees get?|How many days of holiday do I get?",
    ),
    (
        Words.thing,
        "To open the {t}, press the {v}.",
        "How do I open the {t}?|How can I open the {t}?",
    ),
    (
        Words.thing,
        "To reset the {t}, hold the {v} for ten seconds.",
        "How do I reset the {t}?|How can I reset the {t}?|How to reset the {t}?",
    ),
    (
        Words.person,
        "If the {t} fails, call {v}.",
        "What should I do if the {t} fails?|Who do I call if the {t} fails?",
    ),
    (
        _moment,
        "The {t} is closed on {v}.",
        "When is the {t} closed?|On which day is the {t} closed?",
    ),
    (_moment, "Lunch is served at {v}.", "When is lunch?|At what time is lunch served?"),
    (
        _moment,
        "The {t} leaves at {v}.",
        "When does the {t} leave?|At what time does the {t} leave?",
    ),
    (
        _moment,
        "{G} are accepted until {v}.",
        "Until when are {g} accepted?|How long are {g} accepted?",
    ),
    (
        Words.quantity,
        "Each team may order {v} {t}s.",
        "How many {t}s may a team order?|How many {t}s can each team order?",
    ),
    (
        Words.quantity,
        "There are {v} {t}s in the building.",
        "How many {t}s are there?|How many {t}s are in the building?",
    ),
    (
        Words.percent,
        "Students get a discount of {v} on the {t}.",
        "What discount do students get?|How much is the discount on the {t}?",
    ),
    (
        Words.spot,
        "Visitors sign in at {v}.",
        "Where do visitors sign in?|Where can visitors sign in?",
    ),
    (
        Words.spot,
        "Spare {t}s are kept in {v}.",
        "Where are spare {t}s?|Where can I find a spare {t}?",
    ),
    (
        Words.code,
        "The wifi password is {v}.",
        "What is the wifi password?|Which password does the wifi have?|How do I get on the wifi?",
    ),
    (Words.word, "The secret word is {v}.", "What is the secret word?|Tell me the secret word."),
    (Words.code, "The door code is {v}.", "What is the door code?|How do I open the door?"),
    (
        Words.thing,
        "Never put the {t} near the {v}.",
        "What should I keep the {t} away from?|Where should I never put the {t}?",
    ),
)
_TOPICS = ("returns", "refunds", "orders", "tickets", "visits", "loans", "repairs", "bookings")


def rule(words: Words) -> Fact:
    """One rule with its own thing, topic and value."""
    value_of, statement, questions = words.choice(_RULES)
    topic = words.choice(_TOPICS)
    thing = words.choice((words.noun, words.thing, words.product))()
    value = value_of(words)
    names = {"t": thing, "g": topic, "G": topic.capitalize(), "v": value}
    return Fact(
        sentence=statement.format(**names),
        questions=tuple(question.format(**names) for question in questions.split("|")),
        value=value,
        entity=statement,
        label=statement,
    )
