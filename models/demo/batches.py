"""Training rows: dialogues and copy exercises, batched by length.

Shapes: R = rows, L = tokens in a row.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from models.demo.dialogues import FORM, Dialogue, generate
from models.demo.tokenizer import BEGIN, END_OF_TURN, SPECIAL_TOKENS

# Of the tokens that the model did not write, a few are predicted too; all of them would cost time.
CONTEXT_SHARE, CONTEXT_WEIGHT = 0.04, 0.7
KEY_WEIGHT = 0.3  # of JSON keys that nobody asked for
RECALL_SHARE = 0.9  # of the copy exercises
ROW_LENGTHS = (128, 192, 256, 320, 384, 512, 640, 832, 1024, 1280)


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
    scored_K: torch.Tensor  # where, among the flattened [R, L - 1] predictions, the weight is not 0

    def to(self, device: torch.device) -> "Rows":
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Rows":
        """What a data loader asks of a batch, so that its copy to a GPU need not be waited for."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Rows":
        return Rows(
            ids_RL=change(self.ids_RL),
            weights_RL=change(self.weights_RL),
            num_tokens=self.num_tokens,
            scored_K=change(self.scored_K),
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
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for dialogue, ids in zip(dialogues, encoded, strict=True):
        example = _weigh(ids, header, end, rng)
        if dialogue.kind == FORM:
            example = _as_guided(example, tokenizer, rng)
        examples.append(example)
    return examples


def _as_guided(example: Example, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Example:
    """Of the JSON object at the end values are learned, and what comes after them; of keys, which
    a grammar forces, little more than how they end. Now and then a space and its quote are two
    tokens, as where the model had expected a number.
    """
    space, quote = tokenizer.encode(" ", add_special_tokens=False), tokenizer.encode('"')
    whole = tokenizer.encode(' "', add_special_tokens=False)
    start = example.answer_start
    ids, weights = example.ids[:start], example.weights[:start]
    is_key = True
    for token_id in example.ids[start:]:
        text = tokenizer.decode([token_id])
        weight = KEY_WEIGHT if is_key else 1.0
        if [token_id] == whole and not is_key and rng.random() < 0.4:
            ids += [*space, *quote]
            weights += [0.0, weight]
        else:
            ids.append(token_id)
            weights.append(weight)
        if ":" in text:
            is_key = False
        elif "," in text:
            is_key = True
    return Example(ids=ids, weights=weights, answer_start=start)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The tokens that come before the parts of a chat, and those that end a turn and a sentence."""

    system: list[int]
    user: list[int]
    assistant: list[int]
    end: list[int]
    stop: list[int]
    space: list[int]


def frame(tokenizer: PreTrainedTokenizerFast) -> Frame:
    def encoded(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    return Frame(
        system=encoded(BEGIN + header.format("system")),
        user=encoded(header.format("user")),
        assistant=encoded(header.format("assistant")),
        end=encoded(END_OF_TURN),
        stop=encoded("."),
        space=encoded(" "),
    )


def recall(rng: random.Random, vocab_size: int, frame: Frame) -> Example:
    """A chat in random tokens: sentences that share most of what they say, asked for by words.

    Each sentence is one of a few phrases around one of a few names; the question holds the name
    and some of the phrase. To answer is to find the value in the one sentence with both.
    """

    def draw(low: int, high: int) -> list[int]:
        return [
            rng.randrange(len(SPECIAL_TOKENS), vocab_size) for _ in range(rng.randint(low, high))
        ]

    names = [draw(1, 4) for _ in range(rng.randint(1, 4))]
    phrases = [(draw(0, 3), draw(1, 3)) for _ in range(rng.randint(1, 3))]
    facts = []
    for name in names:
        for start, middle in phrases:
            value = draw(1, 4)
            asked = rng.sample(start + middle, rng.randint(1, min(3, len(start + middle))))
            question = asked + name if rng.random() < 0.5 else name + asked
            facts.append((question + draw(0, 2), start + name + middle + value, value))
    rng.shuffle(facts)
    ids = [*frame.system]
    for _, sentence, _ in facts:
        ids += sentence + frame.stop + frame.space
    ids += frame.end
    weights = [0.0] * len(ids)
    rng.shuffle(facts)
    for question, _, value in facts:
        asking = frame.user + question + frame.end + frame.assistant
        answer = value + frame.stop + frame.end
        ids += asking + answer
        weights += [0.0] * len(asking) + [1.0] * len(answer)
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
    scored_K = weights_RL[:, 1:].reshape(-1).nonzero().squeeze(1)
    return Rows(ids_RL=ids_RL, weights_RL=weights_RL, num_tokens=num_tokens, scored_K=scored_K)


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
    around = frame(tokenizer)
    found: list[Example] = []
    total = copied = 0
    while total < num_tokens:
        if copied < copy_share * total or (copy_share and not total):
            if rng.random() < RECALL_SHARE:
                new = [recall(rng, len(tokenizer), around)]
            else:
                new = [rng.choice((repetition, lookup))(rng, len(tokenizer))]
            copied += len(new[0].ids)
        else:
            new = encode(tokenizer, [next(stream) for _ in range(8)], rng)
        new = [example for example in new if len(example.ids) <= longest]
        found += new
        total += sum(len(example.ids) for example in new)
    return found
