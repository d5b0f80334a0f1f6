"""Sentences that say nothing a question asks for, and the questions nothing answers."""

from models.demo.words import TOPICS, Words

_HEADINGS = (
    "Returns", "Warranty", "Opening hours", "Contact", "Vacation", "Shipping", "Prices", "Travel",
    "Working hours", "Parking", "Security", "Sick leave", "Remote work", "Overview", "Refunds",
    "Company handbook", "Frequently asked questions", "Our offices", "Expenses", "General rules",
    "Delivery", "Support", "Safety", "Payment", "Training", "Visitors", "Benefits", "Our team",
)  # fmt: skip
_PROSE = tuple(
    line.strip()
    for line in """
    We want every customer to be satisfied.
    Please keep your receipt.
    Talk to your manager if something is unclear.
    The warranty does not cover damage by water.
    The warranty does not cover normal wear.
    Returned items must be in the original box.
    Items on sale cannot be returned.
    Our shop sells many products.
    Opening hours can change on public holidays.
    Prices can change at any time.
    All prices include tax.
    Vacation is planned together with the team.
    Please tell your team before you go on vacation.
    Working from home needs a good internet connection.
    Never share your password with anyone.
    Lock your screen when you leave your desk.
    Travel by train is preferred.
    Keep all receipts of your trip.
    Flights are booked by the travel desk.
    Parking spaces are limited.
    Visitors sign in at the reception.
    Wear your badge at all times.
    We ship to most countries.
    You get an e-mail when your parcel leaves the warehouse.
    Large items are delivered by truck.
    We do not ship batteries by air.
    Repairs are done in our own workshop.
    Your safety is important to us.
    Fire doors must stay closed.
    Smoking is not allowed in the building.
    Our team is happy to help.
    You can also use the contact form.
    Calls may be recorded.
    This section explains the rules for employees.
    This page is for new employees.
    The following rules are valid for all offices.
    Exceptions are possible in special cases.
    Ask your manager for details.
    More details are in the next chapter.
    Questions are welcome.
    We review this handbook every year.
    Training helps everyone to do good work.
    Pay is reviewed once a year.
    Contact the shop before you send something back.
    The customer pays for the return unless the item is broken.
    Some products have other rules.
    Subscriptions renew by themselves.
    Gift cards cannot be exchanged for money.
    Discounts cannot be combined.
    The canteen offers vegetarian food every day.
    Expenses without a receipt are not paid.
    Backups are tested often.
    We take data protection seriously.
    Complaints help us to get better.
    Every order gets a number.
    Invoices are sent by e-mail.
    We accept cash and cards.
    If you are sick, tell your manager in the morning.
    Overtime must be agreed with your manager.
    The printer needs your badge.
    """.strip().splitlines()
)


def filler(words: Words) -> str:
    """One sentence of handbook prose."""
    if words.chance(0.55):
        return words.choice(_PROSE)
    noun, other = words.noun(), words.noun()
    sentence = words.choice(
        (
            f"Please read this page before you use the {noun}.",
            f"This page was last changed in {words.date()}.",
            f"Many people ask about the {noun}.",
            f"The {noun} is next to the {other}.",
            f"We keep the {noun} clean and {words.adjective()}.",
            f"It was a {words.adjective()} day in {words.place()}.",
            f"Ask a colleague if the {noun} is missing.",
            f"All of this is checked every {words.choice(('week', 'month', 'year'))}.",
            "Thank you for reading.",
            "See the next page for more.",
            "If you have a question, ask the front desk.",
            "These rules apply to everyone.",
            f"The {words.adjective()} {noun} was popular with visitors.",
            f"Nobody remembers who bought the first {noun}.",
            f"{words.person()} wrote this page.",
            f"Some {noun}s are {words.adjective()} and some are {words.adjective()}.",
            f"There is also a {noun} and a {other}.",
            f"In summer the {noun} is often {words.adjective()}.",
            f"{words.name()} and {words.name()} are old friends.",
            f"Do not leave the {noun} near the {other}.",
        )
    )
    return sentence[0].upper() + sentence[1:]


def source(words: Words) -> str:
    """The name of the object a passage comes from."""
    folder = words.choice(("handbook", "docs", "notes", "wiki", "manual", "faq", words.pseudo()))
    name = words.pick(TOPICS) if words.chance(0.6) else words.pseudo()
    ending = words.choice((".md", ".md", ".txt", ".pdf", ".html"))
    joint = f"{words.pseudo()}-{name}" if words.chance(0.2) else name
    return f"{joint}{ending}" if words.chance(0.25) else f"{folder}/{joint}{ending}"


def heading(words: Words) -> str:
    """A markdown heading."""
    level = words.choice(("#", "##", "###"))
    if words.chance(0.5):
        return f"{level} {words.choice(_HEADINGS)}"
    text = words.choice((words.topic().capitalize(), words.thing().capitalize(), words.name()))
    return f"{level} {text}"


def open_question(words: Words) -> str:
    """A question only knowledge of the world, or a passage, could answer."""
    return words.choice(
        (
            f"What is the capital of {words.country()}?",
            f"Who is {words.person()}?",
            f"Where is {words.place()}?",
            f"How much does the {words.product()} cost?",
            f"How long is the {words.product()} warranty?",
            f"What is the {words.noun()} of the {words.product()}?",
            f"Who invented the {words.noun()}?",
            f"When was {words.company()} founded?",
            f"What is the phone number of {words.company()}?",
            f"Why is the {words.noun()} {words.adjective()}?",
            f"How do I repair a {words.noun()}?",
            f"Who won the game in {words.year()}?",
            f"What do you know about {words.company()}?",
            f"Tell me about {words.place()}.",
            f"What is the meaning of {words.pseudo()}?",
            f"Explain {words.pick(TOPICS)} to me.",
            f"How many people live in {words.place()}?",
            f"What is the weather in {words.place()}?",
            f"How is the weather in {words.place()} today?",
            f"What is the code for the {words.title()}?",
            f"Who is responsible for the {words.title()}?",
            f"When does the {words.title()} start?",
            f"How many days do I have to return the {words.noun()}?",
            f"What is the password for the {words.thing()}?",
            f"How far is it from {words.place()} to {words.place()}?",
            "What is the answer?",
            "What time is it?",
            "Who is the president?",
            "What happened yesterday?",
            "Explain how computers work.",
            "What is the meaning of life?",
            "How does a neural network work?",
            "Write a program in Python.",
        )
    )
