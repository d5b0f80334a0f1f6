"""Questions and passages written by hand: how the demo model does off its patterns.

Nothing here is trained on. An answer is right if it holds the value.
"""

from dataclasses import dataclass

from models.demo.dialogues import Dialogue
from models.demo.passages import HEADER
from models.demo.smalltalk import ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Handbook:
    """Chunks as a search would find them, and questions with the value that answers each.

    An empty value: the chunks do not say it.
    """

    chunks: tuple[tuple[str, str], ...]
    questions: tuple[tuple[str, str], ...]


SHOP = Handbook(
    chunks=(
        (
            "handbook/returns.md",
            "# Returns and refunds\n\nWe are happy to take back anything that you do not like. "
            "Customers can return goods within 30 days of delivery. Please use the original box. "
            "Opened software cannot be returned.\n\nOnce the parcel is here, the refund takes 5 "
            "working days.",
        ),
        (
            "handbook/warranty.md",
            "# Warranty\n\nThe Zorblax 9 warranty lasts 17 months. The Zorblax 7 warranty lasts "
            "24 months.\n\nDamage caused by water or by a fall is not covered. Keep the receipt: "
            "without it we cannot help you.",
        ),
        (
            "handbook/shipping.md",
            "## Shipping\n\nStandard shipping costs 4.90 euros and takes 3 days. Express shipping "
            "costs 12 euros. Orders above 80 euros are shipped for free.\n\nWe send you an e-mail "
            "when the parcel leaves our warehouse in Utrecht.",
        ),
        (
            "handbook/contact.md",
            "# How to reach us\n\nThe shop in Bergen is open from 10 am to 6 pm. On Saturdays it "
            "closes at 2 pm.\n\n- Phone: call 555-0142 during opening hours.\n- E-mail: write to "
            "help@tidewater.example at any time.",
        ),
    ),
    questions=(
        ("How many months is the Zorblax 9 warranty?", "17 months"),
        ("How long is the warranty of the Zorblax 7?", "24 months"),
        ("Within how many days can I return something?", "30 days"),
        ("How long does a refund take?", "5 working days"),
        ("How much does express shipping cost?", "12 euros"),
        ("When is shipping free?", "80 euros"),
        ("When is the shop in Bergen open?", "10 am to 6 pm"),
        ("Which phone number can I call?", "555-0142"),
        ("What is your e-mail address?", "help@tidewater.example"),
        ("Who founded the company?", ""),
    ),
)
STAFF = Handbook(
    chunks=(
        (
            "people/vacation.md",
            "# Vacation\n\nEvery employee has 28 days of vacation per year. Part-time staff get 15 "
            "days. Five unused days can be moved into the next year.\n\nAsk your manager at least "
            "two weeks before you want to go. In August many colleagues are away, so plan early.",
        ),
        (
            "people/sick-leave.md",
            "# When you are ill\n\nTell your team before 9 am. A doctor's note is required from "
            "the third day. Wages are paid for 6 weeks.\n\nGet well first, the work can wait.",
        ),
        (
            "people/remote.md",
            "# Working from home\n\nYou can work from home 2 days a week. The core hours are 10:00 "
            "to 15:00, wherever you are.\n\nThe company pays 40 dollars a month for your internet "
            "connection.",
        ),
        (
            "people/contacts.md",
            "# Who to ask\n\nMarta Lindqvist is responsible for payroll. Jonas Okafor runs the IT "
            "help desk. For questions about contracts, talk to Priya Raman.\n\nThe help desk is in "
            "room 214 on the second floor.",
        ),
        (
            "people/travel.md",
            "# Business trips\n\nA hotel may cost up to 140 dollars per night. The daily allowance "
            "for meals is 38 dollars. Expense reports are due within 20 days after the trip.",
        ),
    ),
    questions=(
        ("How many days of vacation does every employee have?", "28 days"),
        ("How many vacation days do part-time staff get?", "15 days"),
        ("When do I need a doctor's note?", "third day"),
        ("How many days a week can I work from home?", "2 days"),
        ("What are the core hours?", "10:00 to 15:00"),
        ("Who is responsible for payroll?", "Marta Lindqvist"),
        ("Who runs the IT help desk?", "Jonas Okafor"),
        ("Where is the help desk?", "room 214"),
        ("How much may a hotel cost?", "140 dollars"),
        ("What is the allowance for meals?", "38 dollars"),
        ("When are expense reports due?", "20 days"),
        ("How much does parking cost?", ""),
    ),
)
WORKSHOP = Handbook(
    chunks=(
        (
            "machines/laser.md",
            "# Laser cutter\n\nThe laser cutter costs 15 dollars an hour. Members of the club pay "
            "9 dollars. Only people with a certificate may use it.\n\nThe certificate is valid for "
            "18 months.",
        ),
        (
            "machines/printer.md",
            "# 3D printer\n\nThe 3D printer stands in room B12. The nozzle is cleaned every "
            "Friday. Filament is sold at the desk for 22 dollars a roll.",
        ),
        (
            "rules/safety.md",
            "# Safety\n\nIn an emergency, call 555-0199. The first aid kit hangs next to the blue "
            "door. Children under 14 need an adult with them.\n\nLong hair must be tied back. Food "
            "and drinks stay outside.",
        ),
        (
            "rules/courses.md",
            "# Courses\n\nThe welding course starts on 14 March. The deadline for the welding "
            "course is 1 March. Helena Voss teaches the welding course. The door code of the "
            "workshop is 7731.",
        ),
    ),
    questions=(
        ("How much does the laser cutter cost?", "15 dollars"),
        ("How long is the certificate valid?", "18 months"),
        ("Where is the 3D printer?", "room B12"),
        ("What number do I call in an emergency?", "555-0199"),
        ("When does the welding course start?", "14 March"),
        ("What is the deadline for the welding course?", "1 March"),
        ("Who teaches the welding course?", "Helena Voss"),
        ("What is the door code of the workshop?", "7731"),
    ),
)


def handwritten() -> list[Dialogue]:
    """One dialogue for each question."""
    dialogues = []
    for handbook in (SHOP, STAFF, WORKSHOP):
        numbered = enumerate(handbook.chunks, 1)
        blocks = (f"[{number}] {source}\n{text}" for number, (source, text) in numbered)
        system = {"role": "system", "content": "\n\n".join((HEADER, *blocks))}
        for question, value in handbook.questions:
            user = {"role": "user", "content": question}
            answer = {"role": "assistant", "content": f"{value}." if value else ABSENT}
            dialogue = Dialogue(
                kind="handwritten",
                messages=(system, user, answer),
                values=(value,) if value else (ABSENT,),
            )
            dialogues.append(dialogue)
    return dialogues
