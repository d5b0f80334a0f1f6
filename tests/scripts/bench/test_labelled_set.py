"""The labelled set is what it says: hard for words on one half, for meanings on the other."""

import re
from collections import Counter

from scripts.bench.labelled_set import PARAPHRASES, QuestionKind, build_labelled_set

# What a question and its passage may share: words that say nothing about the subject.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a an and are as at be before by can do does for from how i if in into is it long make many
        me much must my need no not of on one only or out should so than that the them they this to
        two use used was were what when where which who why will with without you your have has had
        did done been being most more some there their then these those happens happen allowed
        """,
    )
)


def subject_words(text: str) -> set[str]:
    """With their endings cut, so that `days` is `day`."""
    words = re.findall(r"[a-zà-ÿ]+", text.lower())
    return {re.sub(r"(ing|ed|es|s|ly|er)$", "", word) for word in words if word not in STOP_WORDS}


def test_it_has_the_size_that_is_asked_for() -> None:
    labelled = build_labelled_set()
    assert len(labelled.passages) >= 2000
    assert len(set(labelled.passages)) == len(labelled.passages)
    kinds = Counter(question.kind for question in labelled.questions)
    assert min(kinds[kind] for kind in QuestionKind) >= 100
    assert len({question.text for question in labelled.questions}) == len(labelled.questions) >= 200


def test_it_is_the_same_every_time_and_another_for_another_seed() -> None:
    assert build_labelled_set() == build_labelled_set()
    assert build_labelled_set(1).passages != build_labelled_set(2).passages


def test_a_paraphrased_question_shares_hardly_a_word_with_its_passage() -> None:
    labelled = build_labelled_set()
    shared = [
        subject_words(question.text) & subject_words(labelled.passages[question.answer])
        for question in labelled.questions
        if question.kind is QuestionKind.PARAPHRASED
    ]
    assert max(map(len, shared)) <= 1
    assert sum(map(len, shared)) < 0.2 * len(shared)


def test_nearly_all_look_alikes_share_a_word_with_the_question_or_the_passage() -> None:
    num_sharing = num_all = 0
    for block in PARAPHRASES.read_text(encoding="utf-8").strip().split("\n\n"):
        question, passage, *look_alikes = (line[3:] for line in block.splitlines())
        assert len(look_alikes) == 2
        theirs = subject_words(question) | subject_words(passage)
        num_sharing += sum(bool(subject_words(other) & theirs) for other in look_alikes)
        num_all += 2
    assert num_sharing > 0.9 * num_all


def test_what_an_exact_question_names_is_in_its_passage_and_others_look_like_it() -> None:
    labelled = build_labelled_set()
    for question in labelled.questions:
        if question.kind is QuestionKind.EXACT:
            passage = labelled.passages[question.answer].lower()
            named = [word for word in question.text.lower().strip("?").split() if word in passage]
            assert named, question.text
            form = re.sub(r"\d+", "#", passage)[:12]
            alike = [p for p in labelled.passages if re.sub(r"\d+", "#", p.lower())[:12] == form]
            assert alike


def test_the_halves_share_no_question_and_have_both_kinds_alike() -> None:
    tuned, reported = build_labelled_set().halves()
    assert not set(tuned.questions) & set(reported.questions)
    for half in (tuned, reported):
        kinds = Counter(question.kind for question in half.questions)
        assert abs(kinds[QuestionKind.EXACT] - kinds[QuestionKind.PARAPHRASED]) <= 5
