"""Judge the demo model on held-out dialogues: words, names, numbers and functions it never saw."""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.demo import dialogues
from models.demo.batches import encode, pad_rows, render
from models.demo.dialogues import Dialogue
from models.demo.tokenizer import END_OF_TURN
from models.demo.words import Words

HELD_OUT_SEED = 900_000_001
MAX_NEW_TOKENS = 160
BATCH_SIZE = 10
_SUITES: dict[str, Callable[[Words], Dialogue]] = {
    "context, short": lambda words: dialogues.context(words, length=0.6, max_questions=1),
    "context, long": lambda words: dialogues.context(words, length=2.0, max_questions=1),
    "context in chat": lambda words: dialogues.context_in_chat(words, max_questions=1),
    "context, many turns": lambda words: dialogues.context(words, length=1.0),
    "tool call": lambda words: dialogues.tool_call(words, max_calls=1),
    "tool call, later turn": dialogues.tool_call,
    "tool result": dialogues.tool_result,
    "tool not needed": dialogues.tool_unneeded,
    "small talk": dialogues.small_talk,
    "unknown": dialogues.unknown,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many of `total` answers were right word for word, held the value, and stopped."""

    total: int
    exact: int
    with_value: int
    stopped: int


def held_out_dialogues(per_suite: int, *, seed: int = HELD_OUT_SEED) -> dict[str, list[Dialogue]]:
    """`per_suite` dialogues of every suite; unanswerable context questions are a suite of "
    "their own."""
    found: dict[str, list[Dialogue]] = defaultdict(list)
    for number, (name, make) in enumerate(_SUITES.items()):
        words = Words(random.Random(seed + number), held_out=True)
        while len(found[name]) < per_suite:
            dialogue = make(words)
            is_absent = dialogue.kind == "context_absent"
            key = "context, not in it" if is_absent else name
            if len(found[key]) < per_suite:
                found[key].append(dialogue)
    return dict(found)


@torch.inference_mode()
def count_exact(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tests: list[Dialogue]
) -> int:
    """How many last answers greedy decoding gives exactly, found in one pass without decoding.

    Greedy decoding repeats a given answer if and only if every token of it is the likeliest one.
    """
    model.eval()
    exact = 0
    for example in encode(tokenizer, tests, random.Random(0)):
        ids = pad_rows([example], pad=tokenizer.pad_token_id).ids_RL.to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            guess = model(input_ids=ids, use_cache=False).logits[0].argmax(-1)
        start = example.answer_start
        exact += bool((guess[start - 1 : -1] == ids[0, start:]).all())
    return exact


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> list[str]:
    """Greedy answers to rendered prompts; those that stopped end with the end-of-turn token."""
    inputs = tokenizer(
        prompts,
        add_special_tokens=False,
        return_tensors="pt",
        padding=True,
        padding_side="left",
        return_token_type_ids=False,
    ).to(model.device)
    output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :])
    return [text.removesuffix(text.partition(END_OF_TURN)[2]) for text in texts]


def evaluate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tests: dict[str, list[Dialogue]],
    *,
    on_answer: Callable[[str, Dialogue, str], None],
) -> dict[str, Score]:
    """Decode every test greedily and score it."""
    model.eval()
    scores = {}
    for name, suite in tests.items():
        exact = with_value = stopped = 0
        for first in range(0, len(suite), BATCH_SIZE):
            batch = suite[first : first + BATCH_SIZE]
            prompts = [render(tokenizer, dialogue, prompt=True) for dialogue in batch]
            raws = answers(model, tokenizer, prompts)
            for dialogue, prompt, raw in zip(batch, prompts, raws, strict=True):
                wanted = render(tokenizer, dialogue)[len(prompt) :].removesuffix(END_OF_TURN)
                text = raw.removesuffix(END_OF_TURN)
                exact += text == wanted
                with_value += all(value in text for value in dialogue.values or (wanted,))
                stopped += raw.endswith(END_OF_TURN)
                on_answer(name, dialogue, text)
        scores[name] = Score(total=len(suite), exact=exact, with_value=with_value, stopped=stopped)
    return scores
