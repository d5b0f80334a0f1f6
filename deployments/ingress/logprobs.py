"""Token logprobs in the two forms of the API: the chat form and the older completions form.

`bytes` are the true bytes of a token. Where the older form needs a text for part of a character
it has OpenAI's `bytes:\\xe2\\x82`, so that different tokens stay different.
"""

from collections.abc import Sequence

from cluster.openai_schema.chat import TokenLogprob, TopLogprob
from cluster.openai_schema.completions import LegacyLogprobs
from cluster.types import TokenLogprobs
from deployments.ingress.choice import TokenEntry
from models.detokenizer import Detokenizer
from models.tokenizer import Tokenizer

# JSON has no -Infinity (a token that a mask excludes); vLLM's floor.
LOWEST_LOGPROB = -9999.0


def chat_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenEntry], num_top: int
) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            token=_text(tokenizer, entry.token_id),
            logprob=_finite(entry.logprobs.logprob),
            bytes=list(tokenizer.token_bytes(entry.token_id)),
            top_logprobs=[
                TopLogprob(
                    token=_text(tokenizer, token_id),
                    logprob=_finite(logprob),
                    bytes=list(tokenizer.token_bytes(token_id)),
                )
                for token_id, logprob in _top(entry.logprobs, num_top)
            ],
        )
        for entry in entries
    ]


def legacy_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenEntry], num_top: int, *, first_offset: int = 0
) -> LegacyLogprobs:
    """`first_offset`: where the choice's generated text begins, after an echoed prompt."""
    return LegacyLogprobs(
        tokens=[_legacy_text(tokenizer, entry.token_id) for entry in entries],
        token_logprobs=[_finite(entry.logprobs.logprob) for entry in entries],
        top_logprobs=[
            _legacy_top(tokenizer, entry.token_id, entry.logprobs, num_top) for entry in entries
        ],
        text_offset=[first_offset + entry.text_offset for entry in entries],
    )


def legacy_prompt_logprobs(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs],
    num_top: int,
) -> LegacyLogprobs:
    """For an echoed prompt. `logprobs` has no item for the first token: nothing predicts it."""
    assert len(logprobs) == len(token_ids) - 1, "one item for each prompt token but the first"
    detokenizer = Detokenizer(tokenizer)
    offsets, offset = [], 0
    for token_id in token_ids:
        offsets.append(offset)
        offset += len(detokenizer.push((token_id,)))
    return LegacyLogprobs(
        tokens=[_legacy_text(tokenizer, token_id) for token_id in token_ids],
        token_logprobs=[None, *(_finite(item.logprob) for item in logprobs)],
        top_logprobs=[
            None,
            *(
                _legacy_top(tokenizer, token_id, item, num_top)
                for token_id, item in zip(token_ids[1:], logprobs, strict=True)
            ),
        ],
        text_offset=offsets,
    )


def joined(first: LegacyLogprobs | None, second: LegacyLogprobs) -> LegacyLogprobs:
    """The lists of both, one after the other."""
    if first is None:
        return second
    return LegacyLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )


def _top(logprobs: TokenLogprobs, num_top: int) -> list[tuple[int, float]]:
    """The most likely tokens, best first, whether or not the chosen one is among them."""
    pairs = zip(logprobs.top_token_ids, logprobs.top_logprobs, strict=True)
    return list(pairs)[:num_top]


def _legacy_top(
    tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs, num_top: int
) -> dict[str, float]:
    """The most likely tokens and the chosen one, which makes up to `num_top` + 1."""
    top = {_legacy_text(tokenizer, i): _finite(value) for i, value in _top(logprobs, num_top)}
    top.setdefault(_legacy_text(tokenizer, token_id), _finite(logprobs.logprob))
    return top


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.token_bytes(token_id).decode(errors="replace")


def _legacy_text(tokenizer: Tokenizer, token_id: int) -> str:
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
