"""A small byte-level BPE with Llama-3's special tokens, made for copying.

Words, digits and the spaces before names are separate tokens, so that a value has the same tokens
after a space, a quote or a bracket. Only very common words keep the space in front of them.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BEGIN, END_OF_TURN, PAD = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
SPECIAL_TOKENS = (
    BEGIN,
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    END_OF_TURN,
    "<|eom_id|>",
    "<|python_tag|>",
    PAD,
)
MAX_POSITIONS = 4096
_COMMON_WORDS = (
    "the of is in a to for and what how does at on was with you can it has are be do not i from "
    "who where when which long much many that this by your me my have will must should may one or "
    "as name about under each every next near there please use than"
)
_PATTERN = (
    r" (?:" + "|".join(_COMMON_WORDS.split()) + r")(?!\p{L})"
    r"|\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n\n|\s"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train on rendered chats and return it with the chat template of this folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = Path(__file__).with_name("chat_template.jinja").read_text()
    return fast
