"""Questions whose right chunk is known: 2,000 chunks, half paraphrased questions, half exact terms.

The paraphrases are written by hand (`tests/data/retrieval/paraphrases.txt`): a question shares
hardly a word with its passage, but does with two look-alikes. The exact terms are drawn from
families of passages that differ in little but a code, a name or a number. Once the
lexical search's misses on the tuning half were looked at, to mend questions whose own passage did
not answer them; nothing else was chosen by what a search finds.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

PARAPHRASES = Path(__file__).parents[2] / "tests" / "data" / "retrieval" / "paraphrases.txt"
SEED = 20
FAMILY_SIZE = 130
QUESTIONS_PER_FAMILY = 9


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST_NAMES = _words(
    "Anna Jürgen Matteo Ingrid Samuel Zoë Björn Chiara Thomas Leïla Henrik Marta Oskar Yvonne Piotr"
)
_LAST_NAMES = _words(
    "Keller Weißmüller Brandt Okafor Lindqvist Peña Schäfer Novak Hauser Jørgensen Meier Maier "
    "Mayer Rossi Dubois"
)
_NAME_STARTS = _words(
    "Kron Übel Stein Grün Wald Bärn Hohen Linden Schön Eich Rauch Nieder Vogel Alt Moos"
)
_NAME_ENDS = _words("berg see kopf bach tal stein furt au egg hof")
_DRUG_STARTS = _words("Vel Tra Nor Cor Lu Sim Pan Zel Ara Mi Fen Dol Bru Ser Ki")
_DRUG_ENDS = _words("razin tovar melin pexol daril cetam zumab lopan vastin")
_KEYS_A = _words("max min default initial idle retry cache batch queue session worker upload")
_KEYS_B = _words("timeout size count delay window limit depth interval conns age bytes slots")
_PLACES = _words("Basel Turin Lyon Graz Bergen Porto Gdansk Malmo Ghent Brno")
_COLOURS = _words("red blue green grey black white yellow orange")


class QuestionKind(StrEnum):
    """How a question is related to its passage."""

    PARAPHRASED = "paraphrased"
    EXACT = "exact terms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, and the place of the chunk that answers it."""

    text: str
    kind: QuestionKind
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSet:
    """Passages in a shuffled order, and what is asked about some of them."""

    passages: tuple[str, ...]
    questions: tuple[Question, ...]

    def halves(self) -> tuple["LabelledSet", "LabelledSet"]:
        """Two sets of questions over the same passages, both kinds in each: one to choose
        parameters by, one to report on.
        """
        return (
            LabelledSet(passages=self.passages, questions=self.questions[0::2]),
            LabelledSet(passages=self.passages, questions=self.questions[1::2]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    passage: str
    question: str | None
    kind: QuestionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """Passages of a few forms, and for each form its question. `{term}` is what is asked for."""

    terms: Sequence[str]
    passages: Sequence[str]
    questions: Sequence[str]


def build_labelled_set(seed: int = SEED) -> LabelledSet:
    """The same for the same seed."""
    rng = random.Random(seed)
    drafts = [*_paraphrased(PARAPHRASES.read_text(encoding="utf-8"))]
    for family in _families(rng):
        drafts += _exact(family, rng)
    rng.shuffle(drafts)
    questions = [
        Question(text=draft.question, kind=draft.kind, answer=place)
        for place, draft in enumerate(drafts)
        if draft.question is not None
    ]
    by_kind = [[q for q in questions if q.kind is kind] for kind in QuestionKind]
    return LabelledSet(
        passages=tuple(draft.passage for draft in drafts),
        questions=tuple(question for kind in by_kind for question in kind),
    )


def _paraphrased(text: str) -> Iterator[_Draft]:
    for block in text.strip().split("\n\n"):
        question, passage, *look_alikes = (line[3:] for line in block.splitlines())
        yield _Draft(passage=passage, question=question, kind=QuestionKind.PARAPHRASED)
        for look_alike in look_alikes:
            yield _Draft(passage=look_alike, question=None, kind=QuestionKind.PARAPHRASED)


def _exact(family: _Family, rng: random.Random) -> Iterator[_Draft]:
    asked = set(rng.sample(range(len(family.terms)), QUESTIONS_PER_FAMILY))
    for place, term in enumerate(family.terms):
        values = {
            "term": term,
            "other": rng.choice([other for other in family.terms if other != term]),
            "a": str(rng.randrange(2, 99)),
            "b": str(rng.randrange(100, 999)),
            "place": rng.choice(_PLACES),
            "colour": rng.choice(_COLOURS),
        }
        form = rng.randrange(len(family.passages))
        question = None
        if place in asked:
            question = family.questions[form].format(**values)
            question = question.lower() if rng.random() < 0.25 else question
        yield _Draft(
            passage=family.passages[form].format(**values),
            question=question,
            kind=QuestionKind.EXACT,
        )


def _distinct(draw: Iterator[str]) -> list[str]:
    terms: dict[str, None] = {}
    while len(terms) < FAMILY_SIZE:
        terms[next(draw)] = None
    return list(terms)


def _drawn(rng: random.Random, form: str) -> list[str]:
    """Terms of a form: `#` is a digit, `@` a capital letter."""

    def draw() -> Iterator[str]:
        while True:
            yield "".join(
                str(rng.randrange(10)) if sign == "#" else rng.choice("QXKVBE") if sign == "@"
                else sign
                for sign in form
            )  # fmt: skip

    return _distinct(draw())


def _joined(rng: random.Random, starts: Sequence[str], sep: str, ends: Sequence[str]) -> list[str]:
    def draw() -> Iterator[str]:
        while True:
            yield f"{rng.choice(starts)}{sep}{rng.choice(ends)}"

    return _distinct(draw())


def _families(rng: random.Random) -> list[_Family]:
    return [*_technical_families(rng), *_office_families(rng), *_named_families(rng)]


def _technical_families(rng: random.Random) -> list[_Family]:
    return [
        _Family(
            terms=_drawn(rng, "@@-##"),
            passages=[
                "Pump {term}: the cover bolts are tightened crosswise to {a} newton metres. The "
                "gasket is {colour} and must be renewed after {b} hours of operation.",
                "The cover bolts of the {term} take a torque of {a} newton metres. Do not use "
                "the gasket of the {other}; the right one is {colour}, part {b}.",
            ],
            questions=[
                "What is the tightening torque of the {term}?",
                "Which gasket does the {term} pump need?",
            ],
        ),
        _Family(
            terms=_drawn(rng, "E####"),
            passages=[
                "Fault {term} is displayed when the sensor at station {a} reports no signal. "
                "Check the {colour} cable and reset the controller with code {b}.",
                "{term}: drive {a} was stopped by its overload switch. Let it cool for ten "
                "minutes, press the {colour} button and enter {b}.",
            ],
            questions=["What does error {term} mean?", "How do I clear {term} on the display?"],
        ),
        _Family(
            terms=_drawn(rng, "#-###-00##"),
            passages=[
                "Article {term}, hexagon screw, {colour} zinc, box of {b}. Stored in {place}, "
                "aisle {a}; minimum stock two boxes.",
                "Article {term}, sealing ring, {colour} rubber, bag of {b}. Stored in {place}, "
                "aisle {a}; replaces {other}.",
            ],
            questions=["In which aisle is {term} stored?", "part number {term}"],
        ),
        _Family(
            terms=_joined(rng, _KEYS_A, "_", _KEYS_B),
            passages=[
                "{term} (integer, default {a}): a limit of the connection pool in the {colour} "
                "zone. Values above {b} are rejected at start.",
                "{term} (integer, default {b}): changed at run time by a signal; see also "
                "{other}. The {colour} profile sets it to {a}.",
            ],
            questions=["What is the default of {term}?", "Can {term} be changed at run time?"],
        ),
    ]


def _office_families(rng: random.Random) -> list[_Family]:
    return [
        _Family(
            terms=_drawn(rng, "INV-2024-0####"),
            passages=[
                "Invoice {term} to the branch in {place}: {b} euros for {a} hours of "
                "maintenance, payable within thirty days, order colour {colour}.",
                "Invoice {term} ({place}), {a} licences, {b} euros. A reminder was sent; the "
                "customer refers to {other}.",
            ],
            questions=["What was billed with {term}?", "Has {term} been paid?"],
        ),
        _Family(
            terms=_joined(rng, _FIRST_NAMES, " ", _LAST_NAMES),
            passages=[
                "{term} works in the sales office in {place}, extension {b}, and looks after "
                "customers of the {colour} group. Deputy: {other}.",
                "{term}, {place}, room {b}, is responsible for purchasing and can be reached in "
                "the morning; team {colour}, {a} years with the company.",
            ],
            questions=["What is the extension of {term}?", "Where does {term} work?"],
        ),
        _Family(
            terms=_drawn(rng, "B#.###"),
            passages=[
                "Room {term} has {a} seats, a projector and a {colour} carpet. The key is at the "
                "desk in {place}; alarm code {b}.",
                "Laboratory {term}: {a} workplaces, extraction hood, {colour} door. Access only "
                "with instruction {b}, in case of doubt use {other}.",
            ],
            questions=[
                "How many seats are in {term}?",
                "What do I need to enter laboratory {term}?",
            ],
        ),
        _Family(
            terms=_drawn(rng, "K@ ###"),
            passages=[
                "Flight {term} leaves for {place} at gate {a} and takes {b} minutes. Boarding "
                "group {colour} is called first.",
                "Flight {term} from {place} arrives in hall {a}; baggage is on the {colour} belt. "
                "On Sundays {other} is operated instead.",
            ],
            questions=[
                "From which gate does {term} leave?",
                "On which belt is the baggage of {term}?",
            ],
        ),
    ]


def _named_families(rng: random.Random) -> list[_Family]:
    return [
        _Family(
            terms=_joined(rng, _NAME_STARTS, "", _NAME_ENDS),
            passages=[
                "The hut {term} at {b} metres has {a} beds and is open from June. The path "
                "from the valley is marked {colour}.",
                "{term} (hut, {a} beds) is closed in winter; the key hangs at the mountain rescue "
                "in {place}. Continue in {b} minutes to {other}.",
            ],
            questions=["When is the hut {term} open?", "Where is the key of {term}?"],
        ),
        _Family(
            terms=_joined(rng, _DRUG_STARTS, "", _DRUG_ENDS),
            passages=[
                "{term} is given as a {colour} tablet of {a} milligrams, twice daily. It must "
                "not be combined with {other}. Store below twenty-five degrees.",
                "{term}, {b} millilitres: shake before use. Not for children under {a} months; "
                "the {colour} cap shows that the bottle is sealed.",
            ],
            questions=["What must not be combined with {term}?", "Is {term} suitable for infants?"],
        ),
        _Family(
            terms=_drawn(rng, "NGC #3##"),
            passages=[
                "{term} is a spiral galaxy of magnitude {a}, {b} million light years away. In a "
                "small telescope it looks {colour}.",
                "{term}, discovered in 17{a}, is an elliptical galaxy near {other} and shines in "
                "{colour} light; catalogue page {b}.",
            ],
            questions=["How far away is {term}?", "What kind of galaxy is {term}?"],
        ),
        _Family(
            terms=_drawn(rng, "3.1#.##"),
            passages=[
                "Release {term}: the importer reads {a} more formats, the {colour} theme has been "
                "removed, and {b} defects are mended.",
                "Release {term} is withdrawn because of a leak in the scheduler; go back to "
                "{other} or apply patch {b} with option {colour}.",
            ],
            questions=["What is new in release {term}?", "Why was {term} withdrawn?"],
        ),
        _Family(
            terms=_drawn(rng, "§ 1##@"),
            passages=[
                "{term}: The permit is issued for {a} months; a fee of {b} euros is due. The "
                "{colour} form has to be used.",
                "{term}: Whoever violates the duty to report is fined up to {b} euros; in minor "
                "cases {other} applies. Limitation after {a} months.",
            ],
            questions=["Which fee is due under {term}?", "What is the fine under {term}?"],
        ),
    ]
