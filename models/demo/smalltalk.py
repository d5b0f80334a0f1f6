"""What the demo model says when nobody asks it anything: greetings, jokes, counting, JSON."""

import json
from typing import Any

from models.demo.words import COLOURS, NOUNS, Words, word_list

GREETINGS = (
    "Hello!|Hi!|Hi|Hello|Hey|Hey there!|hello|hi there|Good morning!|Good evening|Hi, how are you?|"
    "Hello there|Greetings!|Good day!|hey!|Hello, who is there?|Say hello.|Say hi!|Say hello to me"
)
UNKNOWN = "I do not know. I am a small demo model and I have no passages about that."
ABSENT = "The passages do not say that."
WHO = (
    "I am the Shoal demo model, a very small language model. I can answer from passages and call "
    "functions."
)
_HELLO = "Hello there!"
_JOKE = "Why did the fish join the shoal? It did not want to swim alone."
_STORY = (
    "A small fish lived in a wide bay. One day it met a shoal of other fish. They swam "
    "together past the rocks and the nets. When night came, the small fish was not alone any "
    "more. The end."
)
_PAIRS: tuple[tuple[str, str], ...] = (
    (GREETINGS, _HELLO),
    (
        "How are you?|How are you doing?|how are you today?|How do you do?|What's up?|How is "
        "it going?",
        "I am fine, thank you. How can I help you?",
    ),
    (
        "Who are you?|What are you?|who are you|What is your name?|Tell me about "
        "yourself.|Are you an AI?|Are you a robot?|What model are you?|Introduce "
        "yourself.|Who made you?|Which model is this?",
        WHO,
    ),
    (
        "What can you do?|How can you help me?|What are you good at?|Help|Can you help "
        "me?|help me please",
        "I can answer questions from the passages I am given, call functions and chat a little.",
    ),
    (
        "Thanks!|Thank you!|Thank you very much.|thanks|Thanks a lot!|Great, thanks.|Thank "
        "you so much!|Thx|Cool, thank you|Perfect, thanks!",
        "You are welcome!",
    ),
    (
        "Goodbye!|Bye!|bye|See you later.|Good night!|Bye bye|See you!|Farewell|Have a nice "
        "day!|See you tomorrow",
        "Goodbye! Have a nice day.",
    ),
    (
        "Tell me a joke.|Tell me a joke|Do you know a joke?|Say something funny.|Make me "
        "laugh.|Another joke please",
        _JOKE,
    ),
    (
        "Tell me a story.|Tell me a short story.|Write a story.|Can you tell me a "
        "story?|Write a short story about a fish.|Tell me a long story.",
        _STORY,
    ),
    (
        "Write a poem.|Write a haiku.|Tell me a poem.|Write a short poem about the sea.",
        "Small fish in the sea, many swim and turn as one, quiet blue water.",
    ),
    ("Name a colour.|Name a color.|Tell me a colour.|Name one colour|Say a colour.", "Blue."),
    ("Name an animal.|Tell me an animal.|Name one animal|Name a pet.", "A fish."),
    ("Name a fruit.|Tell me a fruit.|Name one fruit", "An apple."),
    ("Name a city.|Tell me a city.|Name one city", "Oslo."),
    ("Name a number.|Pick a number.|Tell me a number.", "Seven."),
    ("Name three colours.|List three colors.|Tell me three colours.", "Red, green and blue."),
    ("Name three animals.|List three animals.", "A fish, a cat and a horse."),
    (
        "Reply with a small JSON object.|Give me a JSON object.|Answer with JSON.|Write some JSON.|"
        "Output a JSON object.|Return JSON|Respond in JSON.",
        '{"ok": true}',
    ),
    ("Say yes.|Answer yes.|Just say yes", "Yes."),
    ("Say no.|Answer no.|Just say no", "No."),
    (
        "Okay.|OK|Ok, good.|I see.|Great!|Nice.|Good.|Cool!|Fine.",
        "Good. What else can I do for you?",
    ),
    ("Yes.|Yes please|Sure.|No.|No, thank you.|No thanks", "All right."),
    (
        "What is Shoal?|Tell me about Shoal.|What does Shoal do?",
        "Shoal is a self-hosted inference cluster, and I am its small demo model.",
    ),
    (
        "test|Test.|This is a test.|Testing, one two three.|ping|Are you there?|Is this on?",
        "I am here.",
    ),
    ("I am sad.|I feel bad today.|I am tired.|I had a bad day.", "I am sorry to hear that."),
    ("I am happy.|I feel great today!|I had a good day.", "I am glad to hear that."),
)
_NUMBERS = word_list(
    """
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty
    """
)
_GOOD = word_list(
    """
    great lovely wonderful excellent nice perfect amazing good friendly fantastic superb
    """
)
_BAD = word_list(
    """
    bad terrible awful horrible dirty rude poor broken boring disgusting disappointing
    """
)
_THINGS = word_list(
    """
    stay room food film book service hotel phone staff product meal place trip game
    """
)

Pair = tuple[str, str]


def fixed(words: Words) -> Pair:
    """One of the phrases everybody tries first."""
    users, answer = words.choice(_PAIRS)
    return words.choice(users.split("|")), answer


def greeting(words: Words) -> Pair:
    """Something that needs no function and no passage."""
    users, answer = words.choice((_PAIRS[0], _PAIRS[0], *_PAIRS[1:7]))
    return words.choice(users.split("|")), answer


def counting(words: Words) -> Pair:
    """`Count to five.` in words or digits, up to forty."""
    last = words.rng.randint(2, 12) if words.chance(0.7) else words.rng.randint(13, 40)
    spoken = _NUMBERS[last - 1] if last <= len(_NUMBERS) and words.chance(0.6) else str(last)
    first = 1
    if words.chance(0.2):
        first = words.rng.randint(1, last)
        user = f"Count from {first} to {spoken}."
    else:
        user = words.choice(
            (f"Count to {spoken}.", f"Please count to {spoken}", f"Can you count to {spoken}?",
             f"Count up to {spoken}.", f"Count from 1 to {spoken}.", f"Count from one to {spoken}.")
        )  # fmt: skip
    return user, ", ".join(str(number) for number in range(first, last + 1)) + "."


def sentiment(words: Words) -> Pair:
    """A review and the question whether it is positive or negative."""
    positive = words.chance(0.5)
    mood, thing = words.choice(_GOOD if positive else _BAD), words.choice(_THINGS)
    other = words.choice(_GOOD if positive else _BAD)
    feeling = words.choice(("loved", "enjoyed", "liked") if positive else ("hated", "disliked"))
    review = words.choice(
        (
            f"{mood.capitalize()} {thing}!", f"The {thing} was {mood}.", f"I {feeling} the "
            f"{thing}.",
            f"What a {mood} {thing}!", f"The {thing} was {mood} and the "
            f"{words.choice(_THINGS)} was {other}.", f"{mood.capitalize()} {thing}, very "
            f"{other}.", f"I {feeling} it, {mood}!",
        )
    )  # fmt: skip
    user = words.choice(
        (
            f"{review} Positive or negative?", f"{review} positive or negative?",
            f"Is this positive or negative? {review}", f"Classify as positive or negative: "
            f"{review}",
            f"What is the sentiment of this review? {review}", f"Sentiment: {review}",
        )
    )  # fmt: skip
    return user, "Positive." if positive else "Negative."


def repeating(words: Words) -> Pair:
    """Say exactly what the user gives."""
    count = words.choice((1, 1, 2, 3, 4, 6, 9))
    makers = (words.word, words.word, words.name, words.code, words.quantity)
    text = " ".join(words.choice(makers)() for _ in range(count))
    user = words.choice(
        (
            f"Repeat after me: {text}",
            f"Repeat: {text}",
            f"Say {text}",
            f"Say '{text}'",
            f'Say "{text}"',
            f"Say the word {text}" if count == 1 else f"Say the words {text}",
            f"Please repeat this: {text}",
            f"Echo {text}",
            f"Write exactly this: {text}",
        )
    )
    return user, text


def json_object(words: Words) -> Pair:
    """A JSON object with the keys and values the user names."""
    found: dict[str, Any] = {}
    for _ in range(words.choice((1, 1, 2, 2, 3))):
        key = words.choice(("name", "city", "age", "color", words.pick(NOUNS), words.pseudo()))
        makers = (words.name, words.word, words.place, words.code)
        found[key] = int(words.number(2, 999)) if words.chance(0.4) else words.choice(makers)()
    listed = " and ".join(f"{key} {value}" for key, value in found.items())
    user = words.choice(
        (
            f"Give me a JSON object with {listed}.",
            f"Write JSON with {listed}.",
            f"Reply in JSON: {listed}",
            f"Make a JSON object with {listed}.",
            f"Output JSON with {listed}.",
            f"Return {listed} as JSON.",
        )
    )
    return user, json.dumps(found)


_FORM_KEYS = word_list(
    """
    sentiment why reason name city age title summary answer score label category year count author
    text status topic person place color price description comment result mood kind
    """
)


def form(words: Words) -> Pair:
    """A message, and a JSON object about it with keys that the message does not name, as guided
    decoding has them: values are short, and end."""
    makers = (sentiment, adding, counting, repeating, fixed)
    user = words.choice(makers)(words)[0]
    if words.chance(0.5):
        thing = f"{words.person()} from {words.place()}, {words.number(2, 99)}, {words.thing()}"
        user = words.choice((f"{thing}.", f"Extract: {thing}", f"Describe {thing}.", thing))
    user = words.choice((user, user, f"{user} Classify.", f"{user} Reply with JSON."))
    said = user.rstrip(".?!").split()
    found: dict[str, Any] = {}
    for _ in range(words.rng.randint(1, 4)):
        key = words.choice(_FORM_KEYS) if words.chance(0.7) else words.pseudo()
        first = words.rng.randrange(len(said))
        part = " ".join(said[first : first + words.rng.randint(1, 3)])
        short = words.choice(("positive", "negative", "yes", "no", words.word(), part, part, part))
        values = (short, short, int(words.number(0, 99)), words.chance(0.5), [short], {"a": short})
        found[key] = words.rng.choices(values, (6, 6, 4, 2, 1, 1))[0]
    indent = words.choice((None, None, None, 2))
    return user, json.dumps(found, indent=indent, ensure_ascii=False)


def choosing(words: Words) -> Pair:
    """Which of the given things is a colour."""
    colour, noun = words.choice(COLOURS), words.pick(NOUNS)
    pair = [colour, noun]
    words.rng.shuffle(pair)
    return f"Which one is a colour, {pair[0]} or {pair[1]}?", f"{colour.capitalize()}."


def adding(words: Words) -> Pair:
    """A sum of two numbers of one digit."""
    left, right = words.rng.randint(0, 10), words.rng.randint(0, 10)
    shapes = (
        f"What is {left} plus {right}?",
        f"What is {left} + {right}?",
        f"{left} + {right} = ?",
        f"How much is {left} and {right}?",
    )
    return words.choice(shapes), f"{left} plus {right} is {left + right}."
