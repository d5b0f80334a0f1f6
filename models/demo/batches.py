"""Training rows: dialogues and copy exercises, batched by length.

Shapes: R = rows, L = tokens in a row.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from models.demo.dialogues import Dialogue, generate
from models.demo.tokenizer import BEGIN, END_OF_TURN, SPECIAL_TOKENS
from models.demo.words import Words

# Of the tokens that the model did not write, a few are predicted too; all of them would cost time.
CONTEXT_SHARE, CONTEXT_WEIGHT = 0.04, 0.7
ROW_LENGTHS = (128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Token ids, the loss weight of each, and where the last answer starts."""

    ids: list[int]
    weights: list[float]
    answer_start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Examples of similar length, one in a row, padded on the right with weight 0.

    Attention is causal and nothing of weight above 0 comes after the padding, so no mask is needed.
    """

    ids_RL: torch.Tensor
    weights_RL: torch.Tensor
    num_tokens: int

    def to(self, device: torch.device) -> "Rows":
        return Rows(
            ids_RL=self.ids_RL.to(device),
            weights_RL=self.weights_RL.to(device),
            num_tokens=self.num_tokens,
        )


def render(tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue, *, prompt: bool = False) -> str:
    """The dialogue as text, or only what comes before its last answer if `prompt`."""
    messages = dialogue.messages[:-1] if prompt else dialogue.messages
    text = tokenizer.apply_chat_template(
        list(messages),
        tools=list(dialogue.tools) or None,
        add_generation_prompt=prompt,
        tokenize=False,
    )
    return str(text)


def encode(
    tokenizer: PreTrainedTokenizerFast, dialogues: list[Dialogue], rng: random.Random
) -> list[Example]:
    """Tokenize, and give the assistant's tokens (its end of turn too) their full weight."""
    texts = [render(tokenizer, dialogue) for dialogue in dialogues]
    header = tokenizer.encode(
        "<|start_header_id|>assistant<|end_header_id|>\n\n", add_special_tokens=False
    )
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    examples = []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        examples.append(_weigh(ids, header, end, rng))
    return examples


def _weigh(ids: list[int], header: list[int], end: int, rng: random.Random) -> Example:
    weights = [CONTEXT_WEIGHT if rng.random() < CONTEXT_SHARE else 0.0 for _ in ids]
    start = position = 0
    while position < len(ids):
        if ids[position] == header[0] and ids[position : position + len(header)] == header:
            start = position + len(header)
            position = ids.index(end, start)
            weights[start : position + 1] = [1.0] * (position + 1 - start)
        position += 1
    return Example(ids=ids, weights=weights, answer_start=start)


def repetition(rng: random.Random, vocab_size: int) -> Example:
    """Random tokens, then the same ones again, once or twice."""
    count = rng.randint(4, 60)
    part = [rng.randrange(len(SPECIAL_TOKENS), vocab_size) for _ in range(count)]
    times = rng.choice((1, 1, 2))
    ids = [0, *part, *part * times]
    weights = [0.0] * (count + 2) + [1.0] * (count * times - 1)
    return Example(ids=ids, weights=weights, answer_start=len(ids))


def lookup(rng: random.Random, vocab_size: int) -> Example:
    """Random keys with random values, then the keys again in another order."""

    def draw(low: int, high: int) -> list[int]:
        return [
            rng.randrange(len(SPECIAL_TOKENS), vocab_size) for _ in range(rng.randint(low, high))
        ]

    separator, stop = draw(1, 2), draw(1, 1)
    pairs = [(draw(1, 4), draw(1, 5)) for _ in range(rng.randint(2, 9))]
    ids, weights = [0], [0.0]
    for key, value in pairs:
        ids += key + separator + value + stop
    weights += [0.0] * (len(ids) - 1)
    rng.shuffle(pairs)
    for key, value in pairs:
        ids += key + separator + value + stop
        weights += [0.0] * len(key) + [1.0] * (len(separator) + len(value) + 1)
    return Example(ids=ids, weights=weights, answer_start=len(ids))


def pad_rows(examples: list[Example], *, pad: int, length: int = 0) -> Rows:
    """One row for each example, of `length` tokens or as long as the longest."""
    longest = max(len(example.ids) for example in examples)
    shape = (len(examples), max(length, longest))
    ids_RL, weights_RL = torch.full(shape, pad), torch.zeros(shape)
    for row, example in enumerate(examples):
        ids_RL[row, : len(example.ids)] = torch.tensor(example.ids)
        weights_RL[row, : len(example.ids)] = torch.tensor(example.weights)
    num_tokens = sum(len(example.ids) for example in examples)
    return Rows(ids_RL=ids_RL, weights_RL=weights_RL, num_tokens=num_tokens)


def batches(
    examples: list[Example], *, num_tokens: int, pad: int
) -> tuple[list[Rows], list[Example]]:
    """Full batches of about `num_tokens` tokens, padding included, and the examples left over.

    Rows have one of a few lengths: the forward pass is compiled for each of them.
    """
    found, left = [], []
    shorter = 0
    for length in ROW_LENGTHS:
        group = [example for example in examples if shorter < len(example.ids) <= length]
        num_rows = num_tokens // length
        for first in range(0, len(group), num_rows):
            part = group[first : first + num_rows]
            if len(part) == num_rows:
                found.append(pad_rows(part, pad=pad, length=length))
            else:
                left += part
        shorter = length
    return found, left


def training_examples(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    *,
    copy_share: float,
    max_length: float,
    num_tokens: int,
    longest: int,
) -> list[Example]:
    """About `num_tokens` of examples that fit a row, `copy_share` of them copy exercises."""
    assert tokenizer.convert_tokens_to_ids(BEGIN) == 0
    stream: Iterator[Dialogue] = generate(seed, held_out=False, max_length=max_length)
    rng = random.Random(seed)
    words = Words(rng, held_out=False)
    found: list[Example] = []
    total = copied = 0
    while total < num_tokens:
        if copied < copy_share * total or (copy_share and not total):
            new = [words.choice((repetition, lookup))(rng, len(tokenizer))]
            copied += len(new[0].ids)
        else:
            new = encode(tokenizer, [next(stream) for _ in range(8)], rng)
        new = [example for example in new if len(example.ids) <= longest]
        found += new
        total += sum(len(example.ids) for example in new)
    return found
