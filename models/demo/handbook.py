"""What a company's handbook says and what people ask it: rules without an entity, and families of
look-alikes (return windows of shoes and of books, hours of the Oslo store and of the Lima store)."""

# ruff: noqa: E501  -- one line for all the patterns of a fact reads better than six

from collections.abc import Callable

from models.demo.attributes import Attribute, attribute
from models.demo.words import CITIES, NOUNS, Words


def _days(words: Words) -> str:
    return (
        f"{words.number(2, 99)} {words.choice(('days', 'days', 'days', 'working days', 'weeks'))}"
    )


def _span(words: Words) -> str:
    return f"{words.number(2, 99)} {words.choice(('days', 'weeks', 'months', 'years', 'hours'))}"


def _months(words: Words) -> str:
    return f"{words.number(2, 99)} {words.choice(('months', 'months', 'years'))}"


def _hours(words: Words) -> str:
    return f"{words.number(2, 96)} {words.choice(('hours', 'hours', 'minutes', 'days'))}"


def _count(words: Words) -> str:
    return words.number(2, 99)


def _day(words: Words) -> str:
    return words.choice(
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    )


GENERAL = (
    attribute("return window", _days, "You can return any item within {v} of delivery.|Goods may be returned within {v}.|Returns are accepted for {v} after purchase.|Customers have {v} to return a product.|Unused items can be sent back within {v}.", "How long do I have to return an item?|How many days do I have to return something?|Within how many days can I return a product?|What is the return window?|How long are returns accepted?|By when do I have to send an item back?|How many days do customers have to return goods?"),
    attribute("refund", _days, "Refunds are paid within {v}.|A refund takes {v} to reach your account.|We refund the money within {v}.|You will get your money back within {v}.", "How long does a refund take?|When do I get my money back?|How many days until I get a refund?|How fast are refunds paid?|When will I get my refund?"),
    attribute("return fee", Words.price, "A return costs {v}.|The fee for a return is {v}.|We charge {v} for each return.|Returning a parcel costs {v}.", "How much does a return cost?|What is the return fee?|What does it cost to return a parcel?|How much do you charge for returns?"),
    attribute("general warranty", _months, "All products come with a {v} warranty.|The warranty on all our products is {v}.|Our warranty covers defects for {v}.|The warranty period is {v}.", "How long is the warranty?|What is the warranty period?|How many months is the warranty?|How long are products under warranty?|For how long are defects covered?"),
    attribute("free shipping", Words.price, "Shipping is free for orders above {v}.|Orders over {v} ship free of charge.|From {v} on, delivery is free.|Free shipping starts at {v}.", "When is shipping free?|From what amount is delivery free?|What is the minimum order for free shipping?|How much do I have to spend to get free shipping?"),
    attribute("shipping fee", Words.price, "Standard shipping costs {v}.|The shipping fee is {v}.|We charge {v} for delivery.|Delivery costs {v} per order.", "How much is shipping?|What does delivery cost?|What is the shipping fee?|How much does shipping cost?|What do you charge for delivery?"),
    attribute("delivery time", _days, "Orders arrive within {v}.|Delivery takes {v}.|Standard delivery takes {v}.|Parcels are delivered within {v}.", "How long does delivery take?|When will my order arrive?|How many days does delivery take?|How fast is delivery?|How long until my parcel is delivered?"),
    attribute("cancel", _hours, "Orders can be cancelled within {v}.|You may cancel an order for {v} after placing it.|An order can be changed or cancelled within {v}.", "How long can I cancel an order?|Until when can I cancel my order?|Within what time can orders be cancelled?|When is it too late to cancel?"),
    attribute("invoice due", _days, "Invoices are due within {v}.|Please pay invoices within {v}.|Payment is due {v} after the invoice date.|The payment term is {v}.", "When are invoices due?|How long do I have to pay an invoice?|What is the payment term?|When do I have to pay?|When is payment due?"),
    attribute("late fee", Words.price, "The fee for late payment is {v}.|A late payment costs {v}.|We charge a late fee of {v}.", "What is the late fee?|How much does a late payment cost?|What happens if I pay late?|How high is the fee for late payment?"),
    attribute("gift card", _months, "Gift cards are valid for {v}.|A gift card expires after {v}.|You can use a gift card for {v}.", "How long are gift cards valid?|When does a gift card expire?|For how long can I use a gift card?|When do gift cards expire?"),
    attribute("student discount", Words.percent, "Students get a discount of {v}.|We give students {v} off.|The student discount is {v}.", "What is the student discount?|How much discount do students get?|Is there a discount for students?|How much off do students get?"),
    attribute("vacation", lambda words: f"{words.number(2, 60)} {words.choice(('days', 'vacation days', 'days of vacation', 'days of paid leave'))}", "Every employee gets {v} a year.|All staff have {v} per year.|Employees receive {v} each year.|You are entitled to {v} per year.", "How many vacation days do I get?|How many days of vacation do employees have?|How much vacation do I have per year?|How many days of paid leave do we get?|How many holidays do I get a year?"),
    attribute("carry over", lambda words: f"{words.number(2, 30)} days", "Up to {v} of vacation can be carried over to the next year.|You may carry over {v} of unused vacation.|At most {v} of leave are carried into the new year.", "How many vacation days can I carry over?|How much unused vacation can be carried over?|Can I carry over vacation?|How many days of leave can I take into the new year?"),
    attribute("vacation request", _days, "Vacation must be requested {v} in advance.|Ask for vacation at least {v} before it starts.|Requests for leave are sent in {v} ahead.", "How far in advance must I request vacation?|When do I have to ask for vacation?|How early do I need to request leave?|How long before must vacation be requested?"),
    attribute("sick note", lambda words: f"{words.choice(('day', 'day', 'hour'))} {words.number(2, 30)}", "A doctor's note is needed from {v} of an illness.|From {v} of sick leave on, send a doctor's note.|Sick employees hand in a note from {v} on.", "When do I need a doctor's note?|From when on is a sick note needed?|From which day do I need a note from the doctor?"),
    attribute("sick pay", _span, "Sick pay is paid for {v}.|We pay your salary for {v} of illness.|If you are sick, your salary is paid for {v}.", "How long is sick pay paid?|For how long do I get paid when I am sick?|How long do I get my salary if I am ill?"),
    attribute("remote days", lambda words: f"{words.number(2, 30)} days", "You may work from home {v} a month.|Employees can work remotely for {v} per month.|Remote work is allowed on {v} a month.|Home office is possible {v} a month.", "How many days can I work from home?|How often may I work remotely?|How many remote days are allowed?|How many days of home office do I get?"),
    attribute("core hours", Words.hours, "Core hours are {v}.|Everyone should be reachable {v}.|The core working time is {v}.", "What are the core hours?|When should I be reachable?|When is the core working time?|What are the core working hours?"),
    attribute("week hours", lambda words: f"{words.number(20, 60)} hours", "The working week has {v}.|A full working week is {v}.|Full-time staff work {v} a week.", "How many hours is the working week?|How long is a working week?|How many hours do I work per week?|How many hours a week do full-time staff work?"),
    attribute("lunch", lambda words: f"{words.number(10, 120)} minutes", "The lunch break is {v}.|Lunch lasts {v}.|You have a break of {v} at noon.", "How long is the lunch break?|How long does lunch last?|How many minutes is the lunch break?|How long is my break?"),
    attribute("probation", _months, "The probation period lasts {v}.|Probation is {v} for all new hires.|New employees are on probation for {v}.", "How long is the probation period?|How long does probation last?|How many months is probation?|For how long am I on probation?"),
    attribute("notice", _span, "The notice period is {v}.|You can leave the company with {v} notice.|A contract can be ended with notice of {v}.", "What is the notice period?|How long is the notice period?|How much notice do I have to give?|How long before leaving must I give notice?"),
    attribute("parental leave", _span, "Parental leave is {v}.|New parents get {v} of leave.|Parents can take {v} of paid leave after a birth.", "How long is parental leave?|How much leave do new parents get?|How much time off do parents get?|How long can parents stay at home after a birth?"),
    attribute("payday", Words.date, "Salaries are paid on {v}.|Payday is {v}.|The next salary arrives on {v}.", "When is payday?|When are salaries paid?|When do I get my salary?|On which date do we get paid?"),
    attribute("bonus", Words.percent, "The yearly bonus is {v} of the salary.|Employees get a bonus of {v}.|A bonus of {v} is paid at the end of the year.", "How high is the bonus?|How much bonus do employees get?|What is the yearly bonus?|How large is the bonus?"),
    attribute("expense report", _days, "Expense reports must be sent in within {v}.|Hand in your expenses within {v} of the trip.|Travel expenses are claimed within {v}.", "When must expense reports be sent in?|How long do I have to claim expenses?|How many days do I have to hand in my expenses?|By when must I claim travel expenses?"),
    attribute("meal allowance", Words.price, "The meal allowance is {v} per day.|On business trips you may spend {v} a day on meals.|We pay {v} a day for meals on a trip.", "What is the meal allowance?|How much can I spend on meals?|How much do I get for food on a business trip?|What is the daily allowance for meals?"),
    attribute("hotel limit", Words.price, "Hotels may cost up to {v} a night.|The limit for a hotel is {v} per night.|We pay at most {v} for a hotel night.", "How much may a hotel cost?|What is the limit for hotels?|How much can I spend on a hotel?|What is the maximum hotel price per night?"),
    attribute("mileage", lambda words: f"{words.decimal()} {words.choice(('euros', 'dollars', 'pounds'))}", "We pay {v} per mile driven with your own car.|The mileage rate is {v}.|For each kilometre in a private car you get {v}.", "What is the mileage rate?|How much do I get per mile?|How much is paid for driving my own car?|How much do we pay per kilometre?"),
    attribute("approval limit", Words.price, "Purchases above {v} need the approval of a manager.|A manager must approve every purchase over {v}.|From {v} on, a second signature is needed.", "Which purchases need approval?|From what amount does a manager have to approve?|When do I need approval for a purchase?|Above which amount is approval needed?"),
    attribute("password length", lambda words: f"{words.number(6, 60)} characters", "Passwords must have at least {v}.|A password needs {v} or more.|The minimum length of a password is {v}.", "How long must a password be?|What is the minimum password length?|How many characters does a password need?"),
    attribute("password change", _span, "Passwords must be changed every {v}.|Change your password every {v}.|A password expires after {v}.", "How often must I change my password?|When does a password expire?|How often do passwords have to be changed?|When do I have to change my password?"),
    attribute("wifi", Words.name, "The guest network is called {v}.|Visitors use the wifi {v}.|The name of the wifi for guests is {v}.", "What is the name of the guest wifi?|Which wifi do visitors use?|What is the guest network called?|How is the guest network called?"),
    attribute("wifi password", Words.code, "The wifi password is {v}.|Connect to the wifi with the password {v}.|The password for the guest network is {v}.", "What is the wifi password?|How do I connect to the wifi?|What is the password of the guest network?|Which password does the wifi have?"),
    attribute("help desk", Words.phone, "The help desk can be reached at {v}.|Call the help desk at {v}.|If your computer breaks, call {v}.", "What is the number of the help desk?|How do I reach the help desk?|Who do I call if my computer breaks?|What is the phone number of the help desk?"),
    attribute("emergency", Words.phone, "In an emergency call {v}.|The emergency number is {v}.|In case of fire or accident, dial {v}.", "What is the emergency number?|Who do I call in an emergency?|Which number do I dial in case of fire?|What number should I call in an emergency?"),
    attribute("meeting point", Words.spot, "The meeting point in case of fire is {v}.|If there is a fire, everyone meets at {v}.|After a fire alarm go to {v}.", "Where is the meeting point?|Where do I go in case of fire?|Where do we meet if there is a fire?|Where should I go after a fire alarm?"),
    attribute("first aid", Words.spot, "The first aid kit is in {v}.|You find the first aid kit in {v}.|First aid kits are kept in {v}.", "Where is the first aid kit?|Where can I find the first aid kit?|Where are first aid kits kept?"),
    attribute("parking", Words.spot, "Visitors park in {v}.|Parking for visitors is in {v}.|Guests can leave their car in {v}.", "Where can visitors park?|Where do guests park?|Where is parking for visitors?|Where can I leave my car?"),
    attribute("parking fee", Words.price, "Parking costs {v} a day.|The parking fee is {v}.|A parking space costs {v} per month.", "How much is parking?|What does parking cost?|What is the parking fee?|How much does a parking space cost?"),
    attribute("badge", Words.price, "A lost badge costs {v}.|We charge {v} for a new badge.|A new badge costs {v}.", "What does a lost badge cost?|How much is a new badge?|What do I pay if I lose my badge?"),
    attribute("badge place", Words.spot, "You get your badge in {v}.|Badges are handed out in {v}.|Pick up your badge in {v}.", "Where do I get my badge?|Where are badges handed out?|Where can I pick up my badge?"),
    attribute("training budget", Words.price, "Each employee has a training budget of {v} a year.|The yearly training budget is {v}.|You can spend {v} a year on courses.", "What is the training budget?|How much can I spend on courses?|How large is my training budget?|How much money is there for training?"),
    attribute("response time", _hours, "Support answers within {v}.|We reply to every message within {v}.|You get an answer from support within {v}.", "How fast does support answer?|When do I get an answer?|How long does support take to reply?|What is the response time of support?"),
    attribute("backup", _span, "Backups are kept for {v}.|We keep backups for {v}.|A backup is deleted after {v}.", "How long are backups kept?|When are backups deleted?|For how long do you keep backups?"),
    attribute("backup time", Words.time, "The nightly backup starts at {v}.|Backups run at {v} every day.|Every day at {v} a backup is made.", "When does the backup start?|At what time do backups run?|When is the backup made?|What time is the nightly backup?"),
    attribute("data retention", _months, "Customer data is deleted after {v}.|We keep customer data for {v}.|Personal data is stored for {v}.", "How long is customer data kept?|When is customer data deleted?|For how long do you store personal data?|How long do we keep customer data?"),
    attribute("team meeting", lambda words: f"{_day(words)} at {words.time()}", "The team meeting is on {v}.|We meet every {v}.|All teams meet on {v}.", "When is the team meeting?|When do we meet?|When do the teams meet?|What time is the team meeting?"),
    attribute("trash", _day, "The waste is collected on {v}.|Waste is picked up every {v}.|Bins are emptied each {v}.", "When is the waste collected?|On which day is the waste picked up?|When are the bins emptied?"),
    attribute("ceo", Words.person, "The managing director is {v}.|{v} is our managing director.|Our company is led by {v}.", "Who is the managing director?|Who leads the company?|Who is the head of the company?|Who runs the company?"),
    attribute("founder", Words.person, "The company was founded by {v}.|{v} founded the company.|Our founder is {v}.", "Who founded the company?|Who is the founder of the company?|Who started the company?"),
    attribute("founding year", Words.year, "The company was founded in {v}.|Our company exists since {v}.|We started the business in {v}.", "When was the company founded?|Since when does the company exist?|In which year was the company founded?|When did you start the business?"),
    attribute("staff", Words.quantity, "{v} people work here.|The company has {v} employees.|We are {v} people.", "How many people work here?|How many employees does the company have?|How large is the company?|How many employees are there?"),
    attribute("complaint", Words.email, "Send complaints to {v}.|Complaints go to {v}.|If you are not satisfied, write to {v}.", "Where do I send complaints?|How can I complain?|Where do complaints go?|To which address do I send a complaint?"),
    attribute("application", Words.email, "Send your application to {v}.|Apply for a job by writing to {v}.|Applications are sent to {v}.", "Where do I send my application?|How do I apply for a job?|To which address do I send an application?"),
    attribute("repair", _days, "A repair takes {v}.|Repairs are done within {v}.|Broken devices are repaired within {v}.", "How long does a repair take?|How many days does a repair take?|When will my device be repaired?|How long do repairs take?"),
    attribute("dress", Words.colour, "Staff in the shop wear {v}.|The work clothes are {v}.|In the shop everyone wears {v} shirts.", "What colour are the work clothes?|What does staff in the shop wear?|What should I wear in the shop?"),
    attribute("printer", Words.spot, "The printer is in {v}.|You find the printer in {v}.|Printers are in {v}.", "Where is the printer?|Where can I print?|Where do I find a printer?"),
    attribute("minimum age", lambda words: f"{words.number(10, 40)} years", "The minimum age is {v}.|You must be at least {v} old to order.|Customers must be {v} or older.", "What is the minimum age?|How old do I have to be to order?|How old must customers be?"),
)  # fmt: skip


def _city_place(words: Words) -> str:
    place = words.pick(CITIES) if words.chance(0.7) else words.name()
    return f"{place} {words.choice(('office', 'store', 'shop', 'branch', 'warehouse', 'site'))}"


def _shop_part(words: Words) -> str:
    kinds: tuple[str, ...] = (
        "showroom",
        "canteen",
        "reception",
        "library",
        "service desk",
        "workshop",
        "call centre",
    )
    kind = words.choice((*kinds, "gym", "help desk", "repair shop", "mail room", "head office"))
    return kind if words.chance(0.6) else f"{words.choice((words.topic, words.name))()} {kind}"


def _goods(words: Words) -> str:
    fixed: tuple[str, ...] = (
        "shoes",
        "books",
        "electronics",
        "clothes",
        "sale items",
        "gift cards",
        "furniture",
    )
    fixed += ("spare parts", "toys", "laptops", "batteries", "accessories", "software")
    if words.chance(0.45):
        return words.choice(fixed)
    return f"{words.pick(NOUNS) if words.chance(0.7) else words.pseudo()}s"


def _group(words: Words) -> str:
    fixed: tuple[str, ...] = (
        "full-time employees",
        "part-time employees",
        "interns",
        "managers",
        "contractors",
    )
    fixed += ("new employees", "apprentices", "drivers", "engineers", "sales staff", "students")
    fixed += ("night shift workers", "senior employees", "working students")
    if words.chance(0.6):
        return words.choice(fixed)
    return f"{words.choice((words.topic, words.pseudo))()} {words.choice(('staff', 'managers'))}"


def _delivery(words: Words) -> str:
    fixed: tuple[str, ...] = (
        "standard shipping",
        "express shipping",
        "overnight delivery",
        "international shipping",
    )
    fixed += ("same-day delivery", "air freight", "pick-up", "economy shipping")
    if words.chance(0.55):
        return words.choice(fixed)
    return f"shipping to {words.country() if words.chance(0.7) else words.place()}"


def _plan(words: Words) -> str:
    fixed: tuple[str, ...] = (
        "Basic",
        "Pro",
        "Premium",
        "Starter",
        "Business",
        "Enterprise",
        "Family",
        "Free",
    )
    name = words.choice(fixed) if words.chance(0.5) else words.name()
    return f"{name} {words.choice(('plan', 'plan', 'tariff', 'subscription', 'package'))}"


def _department(words: Words) -> str:
    fixed: tuple[str, ...] = (
        "IT",
        "HR",
        "finance",
        "sales",
        "legal",
        "marketing",
        "support",
        "payroll",
    )
    name = words.choice(fixed) if words.chance(0.45) else words.topic()
    return f"{name} {words.choice(('department', 'team', 'desk'))}"


def _opening_days(words: Words) -> str:
    part = (
        words.choice(("", "", "until 6 pm", "in summer", "in winter")) if words.chance(0.2) else ""
    )
    day = words.choice(
        ("weekdays", "Saturdays", "Sundays", "public holidays", "Mondays", "Fridays", "Tuesdays")
    )
    return f"{day} {part}".strip()


_PLACE = (
    attribute("hours", Words.hours, "The {e} is open {v}.|Opening hours of the {e}: {v}.|The opening hours of the {e} are {v}.|You can visit the {e} {v}.", "When is the {e} open?|What are the opening hours of the {e}?|When can I visit the {e}?|At what time does the {e} open?|When does the {e} close?|Until when is the {e} open?"),
    attribute("closed", _day, "The {e} is closed on {v}.|On {v} the {e} is closed.|The {e} does not open on {v}.", "On which day is the {e} closed?|When is the {e} closed?|Which day is the {e} not open?"),
    attribute("phone", Words.phone, "The phone number of the {e} is {v}.|You reach the {e} at {v}.|Call the {e} at {v}.|Phone of the {e}: {v}.", "What is the phone number of the {e}?|How do I reach the {e}?|How can I call the {e}?|Which number does the {e} have?"),
    attribute("email", Words.email, "The e-mail address of the {e} is {v}.|Write to the {e} at {v}.|The {e} answers mail sent to {v}.", "What is the e-mail address of the {e}?|How can I write to the {e}?|What is the email of the {e}?|Where do I send mail for the {e}?"),
    attribute("manager", Words.person, "The {e} is led by {v}.|{v} manages the {e}.|The manager of the {e} is {v}.|{v} is in charge of the {e}.", "Who manages the {e}?|Who is the manager of the {e}?|Who is in charge of the {e}?|Who leads the {e}?"),
    attribute("address", Words.address, "The {e} is at {v}.|The address of the {e} is {v}.|You find the {e} at {v}.", "Where is the {e}?|What is the address of the {e}?|Where do I find the {e}?"),
    attribute("floor", Words.spot, "The {e} is located in {v}.|The {e} has moved to {v}.|Go to {v} for the {e}.", "Where is the {e} located?|In which room is the {e}?|Where do I have to go for the {e}?"),
    attribute("seats", lambda words: f"{words.quantity()} {words.choice(('seats', 'people', 'visitors', 'desks'))}", "The {e} has room for {v}.|Up to {v} fit into the {e}.", "How many people fit into the {e}?|How large is the {e}?|How much room does the {e} have?"),
)  # fmt: skip
_GOODS = (
    attribute("return window", _days, "You can return {e} within {v}.|{e} can be returned within {v}.|The return window for {e} is {v}.|For {e}, returns are accepted within {v}.", "How long can I return {e}?|What is the return window for {e}?|How many days do I have to return {e}?|Within how many days can {e} be returned?|How long do I have to send back {e}?"),
    attribute("warranty", _months, "The warranty on {e} is {v}.|{e} have a warranty of {v}.|We give a warranty of {v} on {e}.|{e} are covered for {v}.", "How long is the warranty on {e}?|What is the warranty on {e}?|How many months of warranty do {e} have?|How long are {e} covered?"),
    attribute("discount", Words.percent, "The discount on {e} is {v}.|Employees get {v} off {e}.|{e} are reduced by {v}.", "How much discount is there on {e}?|What is the discount on {e}?|How much are {e} reduced?|How much off do employees get on {e}?"),
    attribute("delivery", _days, "{e} are delivered within {v}.|Delivery of {e} takes {v}.|It takes {v} to deliver {e}.", "How long does delivery of {e} take?|When are {e} delivered?|How fast are {e} delivered?"),
    attribute("storage", Words.spot, "{e} are stored in {v}.|You will find {e} in {v}.|We keep {e} in {v}.", "Where are {e} stored?|Where do I find {e}?|Where do we keep {e}?"),
    attribute("limit", _count, "Each customer may buy {v} {e}.|The limit for {e} is {v} per order.|You can order at most {v} {e}.", "How many {e} can I order?|What is the limit for {e}?|How many {e} may a customer buy?"),
    attribute("fee", Words.price, "The restocking fee for {e} is {v}.|We charge {v} for returned {e}.|Returning {e} costs {v}.", "What is the restocking fee for {e}?|How much does returning {e} cost?|What do you charge for returned {e}?"),
)  # fmt: skip
_GROUP = (
    attribute("vacation", lambda words: f"{words.number(2, 60)} days", "{e} get {v} of vacation a year.|{e} have {v} of vacation per year.|Each year {e} receive {v} of vacation.|The vacation of {e} is {v}.", "How many vacation days do {e} get?|How much vacation do {e} have?|How many days of vacation do {e} have?|How long is the vacation of {e}?"),
    attribute("notice", _span, "The notice period for {e} is {v}.|{e} have a notice period of {v}.|{e} must give {v} notice.", "What is the notice period for {e}?|How much notice do {e} have to give?|How long is the notice period of {e}?"),
    attribute("hours", lambda words: f"{words.number(5, 60)} hours", "{e} work {v} a week.|The working week of {e} has {v}.|{e} have a week of {v}.", "How many hours do {e} work?|How long is the working week of {e}?|How many hours a week do {e} work?"),
    attribute("pay", Words.price, "{e} earn {v} an hour.|The hourly pay of {e} is {v}.|We pay {e} {v} an hour.", "How much do {e} earn?|What is the hourly pay of {e}?|How much are {e} paid?"),
    attribute("probation", _months, "Probation for {e} lasts {v}.|{e} are on probation for {v}.|The probation period of {e} is {v}.", "How long is probation for {e}?|How long are {e} on probation?|What is the probation period of {e}?"),
    attribute("remote", lambda words: f"{words.number(2, 30)} days", "{e} may work from home {v} a month.|{e} can work remotely on {v} a month.|Remote work for {e} is limited to {v} a month.", "How often can {e} work from home?|How many days may {e} work remotely?|How many remote days do {e} have?"),
    attribute("contact", Words.person, "The contact for {e} is {v}.|{v} takes care of {e}.|{e} turn to {v} with questions.", "Who is the contact for {e}?|Who takes care of {e}?|Who do {e} turn to?"),
    attribute("badge", Words.colour, "{e} wear a {v} badge.|The badge of {e} is {v}.|{v} badges are for {e}.", "What colour is the badge of {e}?|Which badge do {e} wear?|Which colour do {e} wear?"),
)  # fmt: skip
_DELIVERY = (
    attribute("price", Words.price, "{e} costs {v}.|The price of {e} is {v}.|For {e} we charge {v}.|The fee for {e} is {v}.", "How much is {e}?|What does {e} cost?|How much does {e} cost?|What is the price of {e}?|What is the fee for {e}?"),
    attribute("time", _days, "{e} takes {v}.|With {e} your parcel arrives in {v}.|Allow {v} for {e}.", "How long does {e} take?|How many days does {e} take?|How fast is {e}?|When does my parcel arrive with {e}?"),
    attribute("free from", Words.price, "{e} is free above {v}.|For orders over {v}, {e} is free.|From {v} on, {e} costs nothing.", "When is {e} free?|From which amount is {e} free?|How much must I order to get {e} for free?"),
    attribute("carrier", Words.company, "{e} is done by {v}.|Our partner for {e} is {v}.|We use {v} for {e}.", "Who does {e}?|Which company do you use for {e}?|Who is the partner for {e}?|Which carrier is used for {e}?"),
    attribute("cut-off", Words.time, "Order before {v} for {e}.|The cut-off time for {e} is {v}.|Orders for {e} close at {v}.", "What is the cut-off time for {e}?|Until when can I order for {e}?|By what time do I have to order for {e}?"),
    attribute("weight", lambda words: f"{words.number(2, 99)} {words.choice(('kg', 'pounds'))}", "{e} is limited to {v}.|The maximum weight for {e} is {v}.|Parcels up to {v} can go by {e}.", "What is the maximum weight for {e}?|How heavy may a parcel be for {e}?|What is the weight limit for {e}?"),
)  # fmt: skip
_PLAN = (
    attribute("price", lambda words: f"{words.price()} {words.choice(('a month', 'per month', 'a year'))}", "The {e} costs {v}.|The price of the {e} is {v}.|You pay {v} for the {e}.", "How much is the {e}?|What does the {e} cost?|What is the price of the {e}?|How much do I pay for the {e}?"),
    attribute("users", lambda words: f"{words.quantity()} {words.choice(('users', 'seats', 'members'))}", "The {e} includes {v}.|With the {e} you can add {v}.|The {e} is made for {v}.", "How many users does the {e} include?|How many users can I add in the {e}?|How many people can use the {e}?"),
    attribute("storage", lambda words: f"{words.quantity()} {words.choice(('GB', 'TB', 'MB'))}", "The {e} has {v} of storage.|In the {e} you get {v} of space.|Storage in the {e} is {v}.", "How much storage does the {e} have?|How much space do I get in the {e}?|What is the storage of the {e}?"),
    attribute("trial", lambda words: f"{words.number(2, 99)} days", "You can try the {e} for {v}.|The trial of the {e} lasts {v}.|The {e} has a trial of {v}.", "How long is the trial of the {e}?|How long can I try the {e}?|How many days is the {e} trial?"),
    attribute("cancel", _span, "The {e} can be cancelled with {v} notice.|To cancel the {e}, tell us {v} before.|The {e} runs for at least {v}.", "How do I cancel the {e}?|When can I cancel the {e}?|How can the {e} be cancelled?"),
    attribute("support", _hours, "Support for the {e} answers within {v}.|The {e} has a response time of {v}.|With the {e} you get an answer in {v}.", "How fast is support for the {e}?|What is the response time of the {e}?|How long does support take with the {e}?"),
)  # fmt: skip
_DEPARTMENT = (
    attribute("head", Words.person, "The {e} is led by {v}.|{v} leads the {e}.|The head of the {e} is {v}.|{v} is the head of the {e}.", "Who leads the {e}?|Who is the head of the {e}?|Who runs the {e}?|Who is the boss of the {e}?"),
    attribute("email", Words.email, "You can reach the {e} at {v}.|Write to the {e} at {v}.|The {e} has the address {v}.|E-mail of the {e}: {v}.", "What is the e-mail of the {e}?|How can I reach the {e}?|How do I contact the {e}?|Where can I write to the {e}?"),
    attribute("extension", lambda words: f"extension {words.number(10, 9999)}", "The {e} has {v}.|Dial {v} for the {e}.|To talk to the {e}, dial {v}.", "What is the extension of the {e}?|Which extension does the {e} have?|What do I dial for the {e}?"),
    attribute("size", lambda words: f"{words.quantity()} {words.choice(('people', 'members', 'employees'))}", "The {e} has {v}.|{v} work in the {e}.|There are {v} in the {e}.", "How many people work in the {e}?|How large is the {e}?|How many members does the {e} have?"),
    attribute("room", Words.spot, "The {e} sits in {v}.|The office of the {e} is {v}.|You find the {e} in {v}.", "Where is the {e}?|Where does the {e} sit?|Where do I find the {e}?|Which room is the {e} in?"),
    attribute("meeting", _day, "The {e} meets on {v}.|Every {v} the {e} has its meeting.|The meeting of the {e} is on {v}.", "When does the {e} meet?|On which day does the {e} meet?|When is the meeting of the {e}?"),
    attribute("budget", Words.price, "The {e} has a budget of {v}.|The budget of the {e} is {v}.|{v} are planned for the {e}.", "What is the budget of the {e}?|How large is the budget of the {e}?|How much money does the {e} have?"),
)  # fmt: skip
_DAYS = (
    attribute("open", Words.hours, "On {e} we are open {v}.|We are open {v} on {e}.|The shop is open {v} on {e}.|Opening hours on {e}: {v}.", "When are you open on {e}?|What are the opening hours on {e}?|When does the shop open on {e}?|When do you close on {e}?|At what time do you open on {e}?"),
    attribute("support", Words.hours, "On {e} support is reachable {v}.|You reach support {v} on {e}.|The hotline works {v} on {e}.", "When is support reachable on {e}?|When can I call support on {e}?|When does the hotline work on {e}?"),
    attribute("surcharge", Words.percent, "Work on {e} is paid with a surcharge of {v}.|The extra pay for {e} is {v}.|On {e} you get {v} more pay.", "What is the surcharge for {e}?|How much more pay do I get on {e}?|What is the extra pay for {e}?"),
)  # fmt: skip

FAMILIES: tuple[tuple[Callable[[Words], str], tuple[Attribute, ...]], ...] = (
    (_city_place, _PLACE),
    (_shop_part, _PLACE),
    (_goods, _GOODS),
    (_group, _GROUP),
    (_delivery, _DELIVERY),
    (_plan, _PLAN),
    (_department, _DEPARTMENT),
    (_opening_days, _DAYS),
)
