"""Kinds of function parameters: what they are called, and how people say their values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.demo.words import CURRENCIES, FOODS, TOPICS, WEEKDAYS, Words


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One kind of parameter: what it may be called, and how people say its value."""

    names: tuple[str, ...]
    about: tuple[str, ...]
    kind: str
    value: Callable[[Words], Any]
    phrases: tuple[str, ...]


def _slot(names: str, about: str, kind: str, value: Callable[[Words], Any], phrases: str) -> Slot:
    return Slot(
        names=tuple(names.split()),
        about=tuple(about.split("|")),
        kind=kind,
        value=value,
        phrases=tuple(phrases.split("|")),
    )


def _whole(low: int, high: int) -> Callable[[Words], int]:
    return lambda words: int(words.number(low, high))


def free_text(words: Words) -> str:
    """A short message or title of two to five words."""
    return " ".join(words.word() for _ in range(words.rng.randint(2, 5)))


SLOTS = (
    _slot(
        "city location place town destination where",
        "The city|Name of the city|The city, e.g. Oslo|Where|The place to look up",
        "string",
        Words.place,
        "in {v}|for {v}|in {v}|at {v}",
    ),
    _slot(
        "name person customer user guest contact",
        "The person's name|Who it is for|Full name|Name of the customer",
        "string",
        Words.person,
        "for {v}|with {v}|under the name {v}|on behalf of {v}",
    ),
    _slot(
        "to recipient receiver address email",
        "The e-mail address|Who gets it|Recipient address",
        "string",
        Words.email,
        "to {v}|for {v}",
    ),
    _slot(
        "symbol ticker code id reference order_id",
        "The code|Ticker symbol|The identifier|Reference code",
        "string",
        Words.code,
        "for {v}|of {v}|with code {v}|number {v}",
    ),
    _slot(
        "date day when start_date",
        "The date|Which day|Date of the event",
        "string",
        Words.date,
        "on {v}|for {v}|starting {v}",
    ),
    _slot(
        "day weekday when",
        "Day of the week|The weekday",
        "string",
        lambda words: words.choice(WEEKDAYS),
        "on {v}|this {v}|next {v}",
    ),
    _slot(
        "time hour at start", "The time|Time of day|When", "string", Words.time, "at {v}|for {v}"
    ),
    _slot(
        "people guests party_size seats persons",
        "How many people|Number of guests",
        "integer",
        _whole(2, 60),
        "for {v} people|with {v} guests|for {v}|for {v} persons",
    ),
    _slot(
        "count quantity amount number copies",
        "How many|The quantity|Number of items",
        "integer",
        _whole(2, 900),
        "{v} times|with {v} copies|in quantity {v}|{v} pieces",
    ),
    _slot(
        "amount value sum total",
        "The amount|How much money|The value",
        "number",
        lambda words: float(words.decimal()) if words.chance(0.4) else int(words.number(2, 9999)),
        "of {v}|for {v}|with the amount {v}|worth {v}",
    ),
    _slot(
        "temperature degrees level target",
        "Temperature in degrees|The target level",
        "number",
        lambda words: float(words.decimal()) if words.chance(0.4) else int(words.number(2, 99)),
        "to {v} degrees|at {v} degrees|to {v}|at level {v}",
    ),
    _slot(
        "minutes duration_minutes length duration",
        "Length in minutes|How many minutes",
        "integer",
        _whole(2, 180),
        "for {v} minutes|of {v} minutes|lasting {v} minutes",
    ),
    _slot(
        "subject title topic about",
        "The subject|Title|What it is about",
        "string",
        free_text,
        "about '{v}'|with the title '{v}'|titled \"{v}\"|with subject '{v}'",
    ),
    _slot(
        "text message body note content",
        "The text|Message text|What to say",
        "string",
        free_text,
        "saying '{v}'|with the text '{v}'|that says \"{v}\"|with the message '{v}'",
    ),
    _slot(
        "currency unit",
        "Currency code|Three-letter currency",
        "string",
        lambda words: words.pick(CURRENCIES),
        "in {v}|using {v}",
    ),
    _slot(
        "product item article thing",
        "The product|Name of the item|Which product",
        "string",
        Words.product,
        "for the {v}|of the {v}|with the {v}",
    ),
    _slot(
        "room area zone",
        "The room|Which room",
        "string",
        lambda words: words.noun(),
        "in the {v}|for the {v}",
    ),
    _slot(
        "color colour paint",
        "The colour|Which colour",
        "string",
        Words.colour,
        "in {v}|with colour {v}|to {v}",
    ),
    _slot(
        "dish food meal ingredient",
        "The dish|Which food",
        "string",
        lambda words: words.pick(FOODS),
        "with {v}|of {v}",
    ),
    _slot(
        "category topic section department",
        "The category|Which department",
        "string",
        lambda words: words.pick(TOPICS),
        "in {v}|about {v}|from {v}",
    ),
    _slot(
        "query keyword search_term q",
        "What to search for|The search words",
        "string",
        lambda words: words.choice((words.thing, words.product, words.word))(),
        "for {v}|matching '{v}'|about {v}",
    ),
)
