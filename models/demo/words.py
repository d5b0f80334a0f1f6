"""The words, names, numbers and codes that synthetic dialogues are filled with.

Every word belongs to exactly one split, decided by a hash of its lower-case spelling: the model is
trained on one split and judged on the other, so an exact answer can only come from copying.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

HELD_OUT_SHARE = 32  # of 256 hash values: one word in eight is never seen in training


def word_list(text: str) -> tuple[str, ...]:
    """The words of `text`, which are parted by spaces or line ends."""
    return tuple(text.split())


FIRST_NAMES = word_list(
    """
    Ada Alice Amir Anna Arthur Astrid Bella Ben Bjorn Carla Carlos Chen Clara Daniel David
    Diana Elena Elif Emil Emma Erik Eva Fatima Felix Fiona Frank George Grace Greta Hana
    Hassan Helen Henry Hugo Ida Igor Ines Ingrid Isaac Ivan Jack Jane Jin John Jonas Julia
    Karim Karl Kate Kenji Lars Laura Leila Leo Lina Lucas Lucy Luis Maja Marco Maria Marta Max
    Maya Mei Mia Mohamed Nadia Nina Noah Nora Olav Olga Omar Oscar Paul Pedro Peter Priya
    Rafael Raj Rosa Ruth Sam Sana Sara Simon Sofia Sven Tara Theo Tom Uma Vera Victor Wei Yara
    Yuki Zoe Bob Jill Mark Steve Linda
    """
)
LAST_NAMES = word_list(
    """
    Abbott Adler Ahmed Baker Berg Bianchi Brown Carter Chan Clark Costa Cruz Dahl Davis Diaz
    Duval Evans Fischer Ford Foster Garcia Green Gupta Haas Hall Hansen Harris Hill Hughes Ito
    Jansen Jones Kaya Keller Khan Kim King Klein Larsen Lee Lopez Martin Meyer Miller Moore
    Morgan Nagy Nguyen Novak Olsen Park Patel Perez Petrov Quinn Reyes Rossi Sato Schmidt Shaw
    Silva Singh Smith Stone Suzuki Tanaka Taylor Turner Vogel Wagner Walker Wang Weber White
    Wilson Wood Wright Yang Young
    """
)
CITIES = word_list(
    """
    Oslo Paris London Berlin Madrid Rome Vienna Prague Lisbon Dublin Athens Warsaw Helsinki
    Stockholm Copenhagen Brussels Zurich Geneva Munich Hamburg Milan Naples Turin Barcelona
    Seville Porto Lyon Nice Bergen Chicago Boston Seattle Denver Austin Dallas Houston Miami
    Atlanta Phoenix Portland Detroit Toronto Montreal Vancouver Tokyo Osaka Kyoto Seoul
    Beijing Shanghai Delhi Mumbai Sydney Melbourne Auckland Cairo Lagos Nairobi Lima Bogota
    Santiago Havana Istanbul Ankara Dubai Riga Tallinn Vilnius Krakow Budapest Sofia Belgrade
    Zagreb Leeds York Bristol Cardiff Glasgow
    """
)
COUNTRIES = word_list(
    """
    Norway Sweden Denmark Finland Iceland France Germany Spain Italy Portugal Poland Austria
    Greece Turkey Egypt Kenya Ghana India China Japan Korea Vietnam Brazil Chile Peru Mexico
    Canada Cuba
    """
)
COLOURS = word_list(
    """
    red blue green yellow orange purple black white grey brown pink silver gold teal navy
    crimson beige violet olive turquoise
    """
)
NOUNS = word_list(
    """
    account alarm anchor apple archive arm badge bag barrel basket battery bed bell bench bike
    bird blanket boat book bottle box bridge brush bucket bus button cabin cable cake camera
    candle car card carpet castle chain chair chart cheese clock cloud coat coffee coin
    compass computer cookie cup curtain desk dish door drawer drill drum engine fan farm fence
    filter flag flower folder forest fork forum fridge garage garden gate glass glove guitar
    hammer harbour hat heater horse hose jacket jar kettle key keyboard kitchen knife lab
    ladder lamp laptop lens letter library light lock locker machine mail map market mask
    meadow microphone mill mirror monitor motor mug museum needle notebook oven package paint
    panel paper pen pencil phone piano pillow pipe plant plate pocket pump printer projector
    radio rail ramp report river robot roof room rope ruler saddle sail saw scale scanner
    school screen sensor server shelf ship shirt shoe shovel sign sofa spoon station stove
    street table tablet tank tape tent ticket tool torch tower towel toy tractor train tray
    truck tunnel umbrella valve van vase violin wagon wall watch wheel window wire
    """
)
ADJECTIVES = word_list(
    """
    old new small large quiet busy bright dark wooden golden silent rapid gentle hidden royal
    northern southern eastern western upper lower spare main central annual weekly daily
    monthly modern rustic heavy light solid simple clever smart grand tiny broad narrow fresh
    frozen sunny misty stormy public private digital mobile ancient open round square steep
    calm shiny soft sharp
    """
)
VERBS = word_list(
    """
    adjust approve archive arrange assign attach book build buy calculate call cancel charge
    check clean close collect configure confirm connect copy create deliver deploy download
    edit enable export fetch file fill find fix forward generate get grade import install
    invite join launch list load lock log mark measure merge mount move open order pack park
    pause pick plan play polish post print publish query read record refund register remove
    rename rent repair replace report request reserve reset restart return run save scan
    schedule search sell send set share ship show sign sort start stop store submit sync tag
    test track transfer translate turn update upload validate wash
    """
)
TOPICS = word_list(
    """
    returns shipping billing security training travel payroll safety onboarding parking
    catering insurance privacy support holidays maintenance recycling visitors research
    marketing sales purchasing hiring recruiting legal finance design testing logistics
    quality energy housing transport nutrition reception delivery warranty repairs refunds
    storage admissions accounting
    """
)
MONTHS = word_list(
    """
    January February March April May June July August September October November December
    """
)
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
CURRENCIES = word_list(
    """
    USD EUR GBP NOK SEK DKK JPY CHF CAD AUD INR CNY PLN BRL
    """
)
UNITS = word_list(
    """
    kg grams pounds litres metres miles hours days weeks months years minutes tons pieces
    """
)
FOODS = word_list(
    """
    bread soup pasta rice salad pizza curry stew cheese apples pears cherries lemons honey
    yoghurt oats beans lentils carrots onions tomatoes potatoes mushrooms noodles pancakes
    waffles
    """
)

_ONSETS = word_list(
    """
    b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sc sh sk sl sn sp
    st t th tr v w x y z zh
    """
)
_VOWELS = word_list(
    """
    a e i o u a e i o u ai au ea ee ia io oa oo ou y
    """
)
_CODAS = word_list(
    """
    b ck d f g k l ll m n nd ng nk nt p r rd rn rt s sh st t th v x z
    """
)


def is_held_out(word: str) -> bool:
    """Whether `word` (case ignored) is reserved for judging and never appears in training."""
    return hashlib.blake2s(word.lower().encode()).digest()[0] < HELD_OUT_SHARE


class Words:
    """Draws words of one split only.

    `choice` is for the fixed phrases both splits share; everything else yields content that the
    other split never contains.
    """

    def __init__(self, rng: random.Random, *, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out

    def choice(self, options: Sequence[T]) -> T:
        return self.rng.choice(options)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def allows(self, word: str) -> bool:
        return is_held_out(word) == self.held_out

    def pick(self, options: Sequence[str]) -> str:
        """A word of this split from `options`, or a pseudo-word where the split has none."""
        for _ in range(60):
            word = self.rng.choice(options)
            if self.allows(word):
                return word
        return self.pseudo()

    def pseudo(self) -> str:
        """A pronounceable lower-case word that (almost surely) no dictionary has."""
        while True:
            parts = []
            for _ in range(self.rng.choice((1, 2, 2, 2, 3))):
                parts.append(self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS))
            word = "".join(parts) + (self.rng.choice(_CODAS) if self.rng.random() < 0.75 else "")
            if len(word) > 3 and self.allows(word):
                return word

    def name(self) -> str:
        """A capitalised pseudo-word."""
        return self.pseudo().capitalize()

    def number(self, low: int, high: int) -> str:
        """A whole number; the digits as a string are of this split where the range allows it."""
        for _ in range(60):
            number = str(self.rng.randint(low, high))
            if self.allows(number):
                return number
        return number

    def decimal(self) -> str:
        while True:
            number = f"{self.rng.randint(0, 99)}.{self.rng.randint(1, 9)}"
            if self.allows(number):
                return number

    def quantity(self) -> str:
        """A count of varied magnitude, sometimes with a thousands separator."""
        high = self.rng.choice((9, 60, 99, 400, 999, 9999))
        number = self.number(2 if high < 100 else 10, high)
        if len(number) == 4 and self.rng.random() < 0.4:
            return f"{number[0]},{number[1:]}"
        return number

    def noun(self) -> str:
        return self.pick(NOUNS) if self.rng.random() < 0.8 else self.pseudo()

    def adjective(self) -> str:
        return self.pick(ADJECTIVES)

    def topic(self) -> str:
        return self.pick(TOPICS)

    def word(self) -> str:
        """Any lower-case word, real or not."""
        if self.rng.random() < 0.45:
            return self.pseudo()
        return self.pick(self.rng.choice((NOUNS, ADJECTIVES, COLOURS, FOODS, TOPICS)))

    def person(self) -> str:
        first = self.pick(FIRST_NAMES) if self.rng.random() < 0.65 else self.name()
        if self.rng.random() < 0.25:
            return first
        return f"{first} {self.pick(LAST_NAMES) if self.rng.random() < 0.5 else self.name()}"

    def place(self) -> str:
        roll = self.rng.random()
        if roll < 0.5:
            return self.pick(CITIES)
        if roll < 0.6:
            return self.choice(("New", "Port", "San", "North", "Lake")) + " " + self.name()
        return self.name()

    def country(self) -> str:
        return self.pick(COUNTRIES) if self.rng.random() < 0.6 else self.name()

    def colour(self) -> str:
        colour = self.pick(COLOURS) if self.rng.random() < 0.8 else self.pseudo()
        return self.choice(("dark ", "light ", "pale ")) + colour if self.chance(0.15) else colour

    def product(self) -> str:
        """A product's name: `Zorblax 9`, `Oven Flim`, `Klee Pro`."""
        name = self.name()
        roll = self.rng.random()
        if roll < 0.4:
            return f"{name} {self.number(2, 99 if self.chance(0.5) else 900)}"
        if roll < 0.5:
            return f"{name} {self.choice(('Pro', 'Mini', 'Plus', 'Max', 'Lite'))}"
        if roll < 0.7:
            return f"{name} {self.noun()}"
        return f"{name} {self.name()}" if roll < 0.8 else name

    def company(self) -> str:
        ending = self.choice(("", "", " Ltd", " Labs", " Inc", " Systems", " Group", " Foods"))
        return self.name() + ending

    def thing(self) -> str:
        """A thing with an article-less name: `blue lamp`, `spare oven`, `meeting room Frell`."""
        roll = self.rng.random()
        if roll < 0.45:
            return f"{self.adjective()} {self.noun()}"
        if roll < 0.65:
            return f"{self.noun()} {self.noun()}"
        return self.noun() if roll < 0.85 else f"{self.name()} {self.noun()}"

    def title(self) -> str:
        """A project, event or policy: `Project Frell`, `summer festival`, `returns policy`."""
        roll = self.rng.random()
        if roll < 0.35:
            return f"{self.choice(('project', 'Project', 'operation'))} {self.name()}"
        kinds = ("policy", "course", "workshop", "festival", "team", "meeting", "exam", "survey")
        if roll < 0.7:
            return f"{self.pick(TOPICS)} {self.choice(kinds)}"
        return f"{self.name()} {self.choice(kinds)}"

    def code(self) -> str:
        """A code or password: `QX-4471`, `b7f2k`, `Frell-92`."""
        letters = "".join(self.rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
        roll = self.rng.random()
        if roll < 0.4:
            code = f"{letters}-{self.rng.randint(10, 9999)}"
        elif roll < 0.55:
            code = "".join(self.rng.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(6))
        elif roll < 0.75:
            code = f"{self.name()}-{self.rng.randint(2, 99)}"
        else:
            code = f"{letters[0]}{self.rng.randint(1, 999)}"
        return code if self.allows(code) else self.code()

    def phone(self) -> str:
        digits = self.rng.randint(100, 999), self.rng.randint(1000, 9999)
        shapes = (
            f"555-{digits[1]}",
            f"{digits[0]}-{digits[1]}",
            f"+{self.rng.randint(1, 99)} {digits[0]} {digits[1]}",
        )
        phone = self.rng.choice(shapes)
        return phone if self.allows(phone) else self.phone()

    def email(self) -> str:
        local = self.pick(FIRST_NAMES).lower() if self.chance(0.4) else self.pseudo()
        return f"{local}@{self.pseudo()}.{self.choice(('com', 'org', 'net', 'example', 'io'))}"

    def address(self) -> str:
        kind = self.choice(("Street", "Road", "Lane", "Avenue", "Square"))
        return f"{self.number(2, 199)} {self.name()} {kind}"

    def date(self) -> str:
        day, month = self.rng.randint(1, 28), self.choice(MONTHS)
        shapes = (
            f"{day} {month}",
            f"{month} {day}",
            f"{day} {month} {self.rng.randint(1950, 2049)}",
            f"{self.rng.randint(2001, 2049)}-{self.rng.randint(1, 12):02}-{day:02}",
        )
        date = self.rng.choice(shapes)
        return date if self.allows(date) else self.date()

    def time(self) -> str:
        hour = self.rng.randint(1, 12)
        shapes = (
            f"{self.rng.randint(0, 23):02}:{self.rng.choice((0, 15, 30, 45, 10, 20, 5)):02}",
            f"{hour} {self.choice(('am', 'pm'))}",
            f"{hour}:{self.rng.choice((15, 30, 45, 10, 50))} {self.choice(('am', 'pm'))}",
        )
        time = self.rng.choice(shapes)
        return time if self.allows(time) else self.time()

    def price(self) -> str:
        whole = self.quantity()
        shapes = (
            f"${whole}",
            f"${whole}.{self.rng.choice((99, 50, 25, 95))}",
            f"{whole} {self.choice(('euros', 'dollars', 'pounds', 'kroner'))}",
            f"{whole} {self.choice(CURRENCIES)}",
        )
        return self.rng.choice(shapes)

    def percent(self) -> str:
        number = self.number(2, 99) if self.chance(0.7) else self.decimal()
        return number + self.choice(("%", "%", " percent"))

    def amount(self) -> str:
        """A number with a unit: `27 months`, `3.5 kg`."""
        number = self.decimal() if self.chance(0.2) else self.quantity()
        return f"{number} {self.choice(UNITS)}"

    def year(self) -> str:
        return self.number(1850, 2049)

    def hours(self) -> str:
        first, second = self.time(), self.time()
        return self.choice((f"from {first} to {second}", f"between {first} and {second}"))

    def spot(self) -> str:
        """A room, shelf or floor: `room 214`, `shelf C7`, `the second floor`."""
        kind = self.choice(("room", "shelf", "drawer", "locker", "bay", "hall", "cabinet"))
        label = self.choice((self.number(2, 499), self.code(), self.name()))
        return f"{kind} {label}"
