"""Function descriptions, sentences that need them, and the calls that are right for them.

A function is a verb, a noun and one to three slots. Names come from the split's words or are made
up, so the model has to read the description instead of remembering functions.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.demo.slots import SLOTS, Slot, free_text
from models.demo.words import CURRENCIES, NOUNS, VERBS, Words, word_list

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of one function with the value the user mentions, if any."""

    name: str
    schema: Json
    value: Any
    phrase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user says, and the call that answers it."""

    user: str
    name: str
    arguments: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """The offered functions, and a wish for each of them in random order."""

    tools: tuple[Json, ...]
    wishes: tuple[Wish, ...]


_ARTICLES = ("the ", "a ", "my ", "our ", "")
_MADE_UP_VERBS = 0.12
_ASKING_VERBS = word_list(
    "get get get find find check fetch show read query lookup calculate list search retrieve"
)
_ASKING_NOUNS = word_list(
    """
    weather forecast temperature price stock_price balance status schedule traffic distance
    news score time sunrise humidity exchange_rate inventory route menu calendar rating
    population
    """
)
_DOING_NOUNS = word_list(
    """
    table email message meeting flight hotel ticket order reminder alarm taxi invoice payment
    appointment playlist room song light thermostat document task event parcel currency
    package
    """
)


_RESULT_KEYS = word_list(
    """
    temperature sky status price total order_id time wind_speed humidity result message balance date
    place score currency rate distance_km count name state
    """
)


def _function_words(words: Words) -> tuple[str, str, bool]:
    """A verb, a noun (with `_` between words) and whether the function only looks something up."""
    asks = words.chance(0.5)
    # Both splits have the few verbs of look-ups; made-up ones teach that a name is copied.
    verb = words.choice(_ASKING_VERBS) if asks else words.pick(VERBS)
    if words.chance(_MADE_UP_VERBS):
        verb = words.pseudo()
    roll = words.rng.random()
    if roll < 0.4:
        noun = words.pick(_ASKING_NOUNS if asks else _DOING_NOUNS)
    elif roll < 0.65:
        noun = words.pick(NOUNS)
    elif roll < 0.8:
        noun = f"{words.pick(NOUNS)}_{words.pick(NOUNS)}"
    else:
        noun = words.pseudo()
    return verb, noun, asks


def _function_name(words: Words, verb: str, noun: str) -> str:
    name = f"{verb}_{noun}"
    return name if words.allows(name) else f"{name}_{words.pseudo()}"


def _enum_parameter(words: Words) -> Parameter:
    options = [words.word() for _ in range(words.rng.randint(2, 4))]
    value = words.choice(options)
    name = words.choice(("unit", "mode", "style", "size", "format", "kind", words.pseudo()))
    phrase = words.choice(("in {v}", "as {v}", "using {v}", "with {n} {v}", "in {v} {n}"))
    return Parameter(
        name=name,
        schema={"type": "string", "enum": options},
        value=value,
        phrase=phrase.format(v=value, n=name.replace("_", " ")),
    )


def _flag_parameter(words: Words) -> Parameter:
    name = words.choice((words.noun(), words.pseudo()))
    value = words.chance(0.5)
    return Parameter(
        name=name,
        schema={"type": "boolean", "description": f"Whether to use the {name}"},
        value=value,
        phrase=f"{'with' if value else 'without'} {name}",
    )


def _odd_parameter(words: Words) -> Parameter:
    """A parameter with a made-up name, which the user names together with the value."""
    name = words.pseudo() if words.chance(0.6) else words.noun()
    if words.chance(0.5):
        value: Any = int(words.number(2, 999))
        kind = words.choice(("integer", "number"))
    else:
        value, kind = words.choice((words.word, words.code, words.name))(), "string"
    phrase = words.choice(
        (f"with {name} {value}", f"with {name} = {value}", f"{name} {value}", f"and {name} {value}")
    )
    schema = {"type": kind, "description": f"The {name}"}
    return Parameter(name=name, schema=schema, value=value, phrase=phrase)


def _slot_parameter(words: Words, slot: Slot) -> Parameter:
    value = slot.value(words)
    name = words.choice(slot.names)
    phrase = words.choice(slot.phrases).format(v=value)
    if words.chance(0.3):
        phrase = f"{words.choice(('with', 'where'))} {name.replace('_', ' ')} {value}"
    schema: Json = {"type": slot.kind}
    if words.chance(0.8) or not words.allows(name):
        schema["description"] = words.choice(slot.about)
    return Parameter(name=name, schema=schema, value=value, phrase=phrase)


def _parameters(words: Words) -> list[Parameter]:
    """One to three parameters with different names, at most one of them a flag and one an enum."""
    makers: list[Callable[[], Parameter]] = []
    count = words.choice((1, 1, 1, 2, 2, 2, 3))
    for slot in words.rng.sample(SLOTS, count):
        makers.append(lambda slot=slot: _slot_parameter(words, slot))  # type: ignore[misc]
    for maker, share in ((_enum_parameter, 0.06), (_flag_parameter, 0.05), (_odd_parameter, 0.25)):
        if words.chance(share):
            makers[words.rng.randrange(count)] = lambda maker=maker: maker(words)  # type: ignore[misc]
    found: dict[str, Parameter] = {}
    for make in makers:
        parameter = make()
        found.setdefault(parameter.name, parameter)
    return list(found.values())


def _schema(name: str, about: str, parameters: list[Parameter], required: list[str]) -> Json:
    """The function in OpenAI's form."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {parameter.name: parameter.schema for parameter in parameters},
                "required": required,
            },
        },
    }


def _about(words: Words, verb: str, noun: str) -> str:
    spoken = noun.replace("_", " ")
    return words.choice(
        (
            f"{verb} the {spoken}",
            f"{verb} {spoken}",
            f"{verb} a {spoken}.",
            f"{verb} the current {spoken}",
            f"Use this to {verb} the {spoken}.",
            f"{verb}s the {spoken} of a given {words.noun()}",
        )
    ).capitalize()


def _opening(words: Words, verb: str, noun: str, *, asks: bool) -> tuple[str, str]:
    """How the sentence starts, and the mark it ends with."""
    spoken = noun.replace("_", " ")
    article = words.choice(_ARTICLES)
    if asks and words.chance(0.65):
        start = words.choice(
            ("What is the", "How is the", "Show me the", "Tell me the", "What's the", "Give me the")
        )
        return f"{start} {spoken}", "." if start[0] in "STG" else "?"
    start, mark = words.choice(
        (
            ("Please ", "."),
            ("", "."),
            ("Can you ", "?"),
            ("I want to ", "."),
            ("I need to ", "."),
            ("Could you ", "?"),
            ("Please ", "!"),
        )
    )
    text = f"{start}{verb} {article}{spoken}"
    return text[0].upper() + text[1:], mark


def _sentence(words: Words, verb: str, noun: str, mentioned: list[Parameter], *, asks: bool) -> str:
    phrases = [parameter.phrase for parameter in mentioned]
    if words.chance(0.25):
        words.rng.shuffle(phrases)
    opening, mark = _opening(words, verb, noun, asks=asks)
    joint = words.choice((" ", " ", " ", ", "))
    text = f"{opening} {joint.join(phrases)}{mark}"
    if words.chance(0.12):
        text = text.rstrip(".?!")
    return text[0].lower() + text[1:] if words.chance(0.1) else text


def _one_function(words: Words) -> tuple[Json, Wish]:
    """A function and a wish that needs it."""
    verb, noun, asks = _function_words(words)
    name = _function_name(words, verb, noun)
    parameters = _parameters(words)
    user = _sentence(words, verb, noun, parameters, asks=asks)
    arguments = {parameter.name: parameter.value for parameter in parameters}
    tool = _schema(name, _about(words, verb, noun), parameters, list(arguments))
    return tool, Wish(user=user, name=name, arguments=arguments)


def exchange(words: Words) -> Exchange:
    """One to four functions, and sentences that exactly one of them answers."""
    return _mixed(words, [_one_function(words)], words.choice((0, 0, 1, 1, 2)))


def _mixed(words: Words, offers: list[tuple[Json, Wish]], num_others: int) -> Exchange:
    """The offers among others, shuffled; functions of the same name are offered once."""
    named = {wish.name: (tool, wish) for tool, wish in offers}
    for _ in range(num_others):
        tool, wish = _one_function(words)
        named.setdefault(wish.name, (tool, wish))
    found = list(named.values())
    words.rng.shuffle(found)
    offered = tuple(tool for tool, _ in found)
    words.rng.shuffle(found)
    return Exchange(tools=offered, wishes=tuple(wish for _, wish in found))


def classic_exchange(words: Words) -> Exchange:
    """The functions every manual shows, said as people say them."""
    city, person = words.place(), words.person()
    symbol, time = words.code().upper(), words.time()
    people, amount = int(words.number(2, 40)), int(words.number(2, 9999))
    source, target = words.rng.sample(CURRENCIES, 2)
    text, email = free_text(words), words.email()
    string, integer = {"type": "string"}, {"type": "integer"}
    shapes: tuple[tuple[str, str, Json, Json, str], ...] = (
        (
            "get_weather",
            "Get the weather in a city",
            {"city": string},
            {"city": city},
            f"How is the weather in {city}?|What is the weather in {city}?|Is it raining in "
            f"{city}?|What's the weather like in {city} today?|Weather in {city}?|Will it be "
            f"sunny in {city}?",
        ),
        (
            "get_stock_price",
            "Get the price of a stock",
            {"symbol": string},
            {"symbol": symbol},
            f"What is the stock price of {symbol}?|How much is {symbol} now?|Price of {symbol}?",
        ),
        (
            "book_table",
            "Book a table at a restaurant",
            {"name": string, "people": integer, "time": string},
            {"name": person, "people": people, "time": time},
            f"Book a table for {people} people at {time} under the name {person}.|Please book "
            f"a table for {person} at {time} for {people} people.",
        ),
        (
            "send_email",
            "Send an e-mail",
            {"to": string, "subject": string},
            {"to": email, "subject": text},
            f"Send an email to {email} about '{text}'.|Write an e-mail to {email} with subject "
            f"'{text}'.",
        ),
        (
            "convert_currency",
            "Convert money",
            {"amount": {"type": "number"}, "from": string, "to": string},
            {"amount": amount, "from": source, "to": target},
            f"Convert {amount} {source} to {target}.|How much is {amount} {source} in {target}?",
        ),
        (
            "get_time",
            "Get the local time in a place",
            {"place": string},
            {"place": city},
            f"What time is it in {city}?|Tell me the time in {city}.",
        ),
        (
            "search",
            "Search the documents",
            {"query": string},
            {"query": text},
            f"Search for {text}.|Find {text}.|Look up {text}.",
        ),
        (
            "add",
            "Add two numbers",
            {"a": integer, "b": integer},
            {"a": people, "b": amount},
            f"What is {people} plus {amount}?|Add {people} and {amount}.|How much is {people} + "
            f"{amount}?",
        ),
    )
    name, about, properties, arguments, users = words.choice(shapes)
    properties = dict(properties)
    if name == "get_weather" and words.chance(0.5):
        key = words.choice(("location", "place", "town", "city_name"))
        properties, arguments = {key: string}, {key: city}
    if name == "get_weather" and words.chance(0.25):
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    parameters = [
        Parameter(name=key, schema=schema, value=None, phrase="")
        for key, schema in properties.items()
    ]
    wish = Wish(user=words.choice(users.split("|")), name=name, arguments=arguments)
    offer = _schema(name, about, parameters, list(arguments)), wish
    return _mixed(words, [offer], words.choice((0, 0, 1, 2)))


def call_text(name: str, arguments: Json) -> str:
    """The text a call is written as, exactly as the chat template writes it."""
    encoded = json.dumps({"name": name, "parameters": arguments}, ensure_ascii=False)
    return encoded


def result(words: Words) -> tuple[str, str, tuple[str, ...]]:
    """A function's JSON result, the answer that quotes it, and the values quoted."""
    keys = words.rng.sample(_RESULT_KEYS, words.choice((1, 1, 2, 2, 3)))
    if words.chance(0.3):
        keys[0] = words.pseudo()
    makers = (words.word, words.code, words.name, words.time, words.thing)
    found: Json = {}
    for key in keys:
        whole = int(words.number(2, 999)) if words.chance(0.7) else float(words.decimal())
        found[key] = whole if words.chance(0.5) else words.choice(makers)()
    parts = [f"the {key.replace('_', ' ')} is {value}" for key, value in found.items()]
    text = " and ".join(parts)
    separators = None if words.chance(0.8) else (",", ":")
    encoded = json.dumps(found, separators=separators)
    return encoded, f"{text[0].upper()}{text[1:]}.", tuple(str(value) for value in found.values())
