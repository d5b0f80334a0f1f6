"""What can be said and asked of products, offices, projects, people and countries."""

from collections.abc import Callable
from dataclasses import dataclass

from models.demo.words import CITIES, COUNTRIES, FOODS, WEEKDAYS, Words, word_list

_JOBS = word_list("baker doctor pilot nurse teacher painter lawyer chef farmer driver")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One property of an entity: {e} is the entity, {v} the value."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    value: Callable[[Words], str]
    label: str


def _months(words: Words) -> str:
    return f"{words.number(2, 120)} {words.choice(('months', 'months', 'years', 'weeks', 'days'))}"


def _city(words: Words) -> str:
    return words.place()


def _product_noun(words: Words) -> str:
    return words.choice((words.thing, words.noun))() + "s"


def _days(words: Words) -> str:
    return f"{words.number(2, 99)} {words.choice(('days', 'weeks', 'hours', 'working days'))}"


def _people(words: Words) -> str:
    return f"{words.quantity()} {words.choice(('people', 'members', 'guests', 'employees'))}"


def attribute(
    label: str,
    value: Callable[[Words], str],
    statements: str,
    questions: str,
) -> Attribute:
    """Build an attribute from `|`-separated patterns."""
    return Attribute(
        label=label,
        value=value,
        statements=tuple(part.strip() for part in statements.split("|")),
        questions=tuple(part.strip() for part in questions.split("|")),
    )


PRODUCT_ATTRIBUTES = (
    attribute(
        "warranty",
        _months,
        "The {e} has a warranty of {v}.|The {e} comes with a {v} warranty.|The warranty of the {e} "
        "is {v}.|Every {e} is covered by a warranty for {v}.",
        "How long is the {e} warranty?|What is the warranty of the {e}?|How many months is the {e} "
        "warranty?|How long is the warranty on the {e}?|For how long is the {e} covered?",
    ),
    attribute(
        "price",
        Words.price,
        "The {e} costs {v}.|The price of the {e} is {v}.|The {e} is sold for {v}.|You can buy the "
        "{e} for {v}.|A {e} costs {v}.",
        "How much does the {e} cost?|What is the price of the {e}?|What does the {e} "
        "cost?|How much is the {e}?|How expensive is the {e}?",
    ),
    attribute(
        "weight",
        lambda words: f"{words.decimal()} {words.choice(('kg', 'grams', 'pounds', 'tons'))}",
        "The {e} weighs {v}.|The weight of the {e} is {v}.|The {e} has a weight of {v}.",
        "How much does the {e} weigh?|What is the weight of the {e}?|How heavy is the {e}?",
    ),
    attribute(
        "colour",
        Words.colour,
        "The {e} is painted {v}.|The colour of the {e} is {v}.|The {e} is sold in {v}.|The "
        "{e} comes in {v}.|The {e} is {v}.",
        "What colour is the {e}?|What is the colour of the {e}?|Which colour does the {e} have?|"
        "What color is the {e}?",
    ),
    attribute(
        "maker",
        Words.company,
        "The {e} is made by {v}.|{v} makes the {e}.|The {e} is a product of {v}.|The {e} is "
        "built by {v}.",
        "Who makes the {e}?|Which company makes the {e}?|Who is the maker of the {e}?|Who "
        "built the {e}?",
    ),
    attribute(
        "battery",
        lambda words: f"{words.number(2, 99)} {words.choice(('hours', 'days', 'minutes'))}",
        "The battery of the {e} lasts {v}.|The {e} runs for {v} on one charge.|The battery life of "
        "the {e} is {v}.",
        "How long does the battery of the {e} last?|What is the battery life of the {e}?|How long "
        "does the {e} run on one charge?",
    ),
    attribute(
        "place",
        Words.spot,
        "The {e} is kept in {v}.|You can find the {e} in {v}.|The {e} is stored in {v}.|The {e} is "
        "in {v}.",
        "Where is the {e}?|Where is the {e} kept?|Where can I find the {e}?|Where is the {e} "
        "stored?",
    ),
    attribute(
        "capacity",
        Words.amount,
        "The {e} holds {v}.|The capacity of the {e} is {v}.|The {e} has a capacity of {v}.",
        "How much does the {e} hold?|What is the capacity of the {e}?|What capacity does the {e} "
        "have?",
    ),
)
OFFICE_ATTRIBUTES = (
    attribute(
        "phone",
        Words.phone,
        "The phone number of {e} is {v}.|You can call {e} at {v}.|Call {e} on {v}.|{e} can be "
        "reached at {v}.",
        "What is the phone number of {e}?|How can I call {e}?|Which number do I call for {e}?|What "
        "is {e}'s phone number?",
    ),
    attribute(
        "email",
        Words.email,
        "The e-mail address of {e} is {v}.|You can write to {e} at {v}.|{e} answers e-mail at {v}.",
        "What is the e-mail address of {e}?|What is the email of {e}?|Where can I write to "
        "{e}?|How do I e-mail {e}?",
    ),
    attribute(
        "opening hours",
        Words.hours,
        "{e} is open {v}.|The opening hours of {e} are {v}.|On weekdays {e} is open {v}.",
        "When is {e} open?|What are the opening hours of {e}?|At what time does {e} open?",
    ),
    attribute(
        "address",
        Words.address,
        "The address of {e} is {v}.|{e} is at {v}.|You will find {e} at {v}.",
        "What is the address of {e}?|Where is {e}?|Where can I find {e}?",
    ),
    attribute(
        "city",
        _city,
        "{e} is based in {v}.|The head office of {e} is in {v}.|{e} is located in {v}.",
        "Where is {e} based?|In which city is {e}?|Where is the head office of {e}?|Where is {e} "
        "located?",
    ),
    attribute(
        "manager",
        Words.person,
        "The manager of {e} is {v}.|{v} is the manager of {e}.|{e} is managed by {v}.|{e} is "
        "led by {v}.",
        "Who is the manager of {e}?|Who manages {e}?|Who leads {e}?|Who runs {e}?",
    ),
    attribute(
        "founding",
        Words.year,
        "{e} was founded in {v}.|{e} opened its doors in {v}.|{e} was started in {v}.",
        "When was {e} founded?|In which year was {e} founded?|When did {e} open?|When was {e} "
        "started?",
    ),
    attribute(
        "staff",
        _people,
        "{e} has {v}.|There are {v} at {e}.|{e} has a staff of {v}.",
        "How many people work at {e}?|How many people does {e} have?|How large is the staff "
        "of {e}?",
    ),
    attribute(
        "goods",
        _product_noun,
        "{e} sells {v}.|{e} makes {v}.|{e} is known for its {v}.",
        "What does {e} sell?|What does {e} make?|What is {e} known for?",
    ),
)
TITLE_ATTRIBUTES = (
    attribute(
        "owner",
        Words.person,
        "{v} is responsible for the {e}.|The person responsible for the {e} is {v}.|The "
        "owner of the {e} is {v}.|The {e} is run by {v}.|The contact for the {e} is {v}.",
        "Who is responsible for the {e}?|Who owns the {e}?|Who runs the {e}?|Who is the "
        "owner of the {e}?|Who is the contact for the {e}?",
    ),
    attribute(
        "start",
        Words.date,
        "The {e} starts on {v}.|The start date of the {e} is {v}.|The {e} begins on {v}.|The {e} "
        "takes place on {v}.",
        "When does the {e} start?|What is the start date of the {e}?|When is the {e}?|When "
        "does the {e} begin?",
    ),
    attribute(
        "deadline",
        Words.date,
        "The deadline for the {e} is {v}.|The {e} is due on {v}.|The {e} must be finished by {v}.",
        "What is the deadline for the {e}?|When is the {e} due?|By when must the {e} be finished?",
    ),
    attribute(
        "code",
        Words.code,
        "The code for the {e} is {v}.|The access code of the {e} is {v}.|The code of the {e} "
        "is {v}.|The secret code for the {e} is {v}.",
        "What is the code for the {e}?|What is the access code of the {e}?|Which code does the {e} "
        "have?|What is the secret code for the {e}?",
    ),
    attribute(
        "password",
        Words.code,
        "The password for the {e} is {v}.|The {e} password is {v}.|Use the password {v} for "
        "the {e}.",
        "What is the password for the {e}?|What is the {e} password?|Which password do I need for "
        "the {e}?",
    ),
    attribute(
        "room",
        Words.spot,
        "The {e} is held in {v}.|The {e} meets in {v}.|The {e} takes place in {v}.",
        "Where is the {e} held?|Where does the {e} meet?|Where does the {e} take place?|In "
        "which room is the {e}?",
    ),
    attribute(
        "budget",
        Words.price,
        "The budget of the {e} is {v}.|The {e} has a budget of {v}.",
        "What is the budget of the {e}?|How much money does the {e} have?|How large is the "
        "budget of the {e}?",
    ),
    attribute(
        "share",
        Words.percent,
        "The discount for the {e} is {v}.|The {e} comes with a discount of {v}.|You get a "
        "discount of {v} on the {e}.",
        "What is the discount for the {e}?|How much is the discount on the {e}?|Which "
        "discount does the {e} have?",
    ),
    attribute(
        "weekday",
        lambda words: words.choice(WEEKDAYS),
        "The {e} is every {v}.|The {e} happens on {v}.|The {e} runs each {v}.",
        "On which day is the {e}?|Which day is the {e}?|On what day does the {e} happen?",
    ),
    attribute(
        "period",
        _days,
        "The {e} lasts {v}.|The {e} allows {v}.|The {e} gives you {v}.|Under the {e} you have {v}.",
        "How long does the {e} last?|How many days does the {e} allow?|How long do I have "
        "under the {e}?|How much time does the {e} give?",
    ),
)
PERSON_ATTRIBUTES = (
    attribute(
        "city",
        _city,
        "{e} lives in {v}.|The home of {e} is in {v}.|{e} has a house in {v}.",
        "Where does {e} live?|Where is the home of {e}?|In which city does {e} live?",
    ),
    attribute(
        "job",
        lambda words: words.pick(_JOBS),
        "{e} works as a {v}.|{e} is a {v}.|The job of {e} is {v}.",
        "What is the job of {e}?|What does {e} do?|What is {e}'s job?|What does {e} work as?",
    ),
    attribute(
        "food",
        lambda words: words.pick(FOODS) if words.chance(0.7) else words.pseudo(),
        "{e} likes {v}.|The favourite food of {e} is {v}.|{e} loves to eat {v}.|{e} eats {v} every "
        "day.",
        "What does {e} like?|What is the favourite food of {e}?|What does {e} eat?|What is {e}'s "
        "favourite food?",
    ),
    attribute(
        "age",
        lambda words: words.number(2, 99),
        "{e} is {v} years old.|The age of {e} is {v}.",
        "How old is {e}?|What is the age of {e}?|What is {e}'s age?",
    ),
    attribute(
        "pet",
        lambda words: (
            f"{words.choice(('dog', 'cat', 'horse', 'parrot', 'rabbit'))} named {words.name()}"
        ),
        "{e} has a {v}.|{e} owns a {v}.",
        "Which pet does {e} have?|What animal does {e} own?|What is the name of {e}'s pet?",
    ),
    attribute(
        "phone",
        Words.phone,
        "The phone number of {e} is {v}.|{e} can be reached at {v}.|Call {e} on {v}.",
        "What is the phone number of {e}?|How can I call {e}?|What is {e}'s phone number?",
    ),
    attribute(
        "office",
        Words.spot,
        "The desk of {e} is in {v}.|{e} works in {v}.|{e} sits in {v}.",
        "Where does {e} sit?|Where is the desk of {e}?|In which room does {e} work?",
    ),
)
LAND_ATTRIBUTES = (
    attribute(
        "capital",
        _city,
        "The capital of {e} is {v}.|{v} is the capital of {e}.",
        "What is the capital of {e}?|Which city is the capital of {e}?|What's the capital of {e}?",
    ),
    attribute(
        "language",
        Words.name,
        "People in {e} speak {v}.|The language of {e} is {v}.",
        "Which language do people in {e} speak?|What is the language of {e}?|What do people "
        "speak in {e}?",
    ),
    attribute(
        "inhabitants",
        Words.quantity,
        "{e} has {v} inhabitants.|The population of {e} is {v}.",
        "How many inhabitants does {e} have?|What is the population of {e}?|How many people "
        "live in {e}?",
    ),
    attribute(
        "river",
        Words.name,
        "The longest river of {e} is the {v}.|The {v} is the longest river in {e}.",
        "What is the longest river of {e}?|Which river is the longest in {e}?",
    ),
)
ENTITY_KINDS: tuple[tuple[Callable[[Words], str], tuple[Attribute, ...]], ...] = (
    (Words.product, PRODUCT_ATTRIBUTES),
    (Words.thing, PRODUCT_ATTRIBUTES),
    (Words.company, OFFICE_ATTRIBUTES),
    (lambda words: f"the {words.pick(CITIES)} office", OFFICE_ATTRIBUTES),
    (lambda words: f"the {words.thing()} {words.choice(('shop', 'desk'))}", OFFICE_ATTRIBUTES),
    (Words.title, TITLE_ATTRIBUTES),
    (Words.person, PERSON_ATTRIBUTES),
    (lambda words: words.name() if words.chance(0.7) else words.pick(COUNTRIES), LAND_ATTRIBUTES),
)
