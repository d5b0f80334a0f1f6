"""What crosses a process or a thread: frozen, torch-free values shared by every part of Shoal.

All of them are msgspec structs, so that they travel over the token channel as msgpack arrays.
Field order is the wire format: append new fields at the end, with a default.
"""

from enum import StrEnum

import msgspec

# Priorities: a lower number is served first and preempted last.
PRIORITY_ONLINE = 0
PRIORITY_BATCH = 100

#: What a replica's `ValidationError` names when it refuses a grammar; the ingress puts the client's
#: own field in its place.
GRAMMAR_FIELD = "grammar"


class FinishReason(StrEnum):
    """Why a sequence ended, as the engine sees it."""

    STOP = "stop"  # an end-of-sequence or stop token
    LENGTH = "length"  # max_tokens or the context limit
    ABORT = "abort"  # the client left, or the server gave up on it
    ERROR = "error"  # the model gave no finite logits; the delta has no token


class GrammarKind(StrEnum):
    """What a `GrammarSpec`'s text is."""

    JSON_SCHEMA = "json_schema"  # a JSON Schema
    JSON_OBJECT = "json_object"  # no text of meaning: any JSON object
    REGEX = "regex"  # a regular expression for the whole output
    CHOICE = "choice"  # a JSON list of strings
    EBNF = "grammar"  # a client's GBNF or Lark grammar
    LARK = "lark"  # ours, of llguidance's dialect; may name special tokens (tool calling)


class GrammarSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the whole output must match. Equal specs share one compiled grammar."""

    kind: GrammarKind
    text: str


class BeamParams(msgspec.Struct, frozen=True, kw_only=True):
    """Beam search as transformers does it: see `models.engine.beam_search`."""

    width: int  # beams kept at each step
    length_penalty: float = 1.0  # score = sum of logprobs / generated tokens ** length_penalty
    # True: stop once `width` hypotheses have ended; False: when the best running beam, at its
    # present length, cannot beat the worst of them.
    early_stopping: bool = False
    stop_strings: tuple[str, ...] = ()  # end a hypothesis, as an end-of-sequence token does


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens and when to stop. Values are checked where they enter the system.

    Order of operations: logit_bias, penalties, temperature, min_p, top_k, top_p. Penalties follow
    `logit -= frequency_penalty * count + presence_penalty * [count > 0]` over output tokens;
    repetition_penalty divides positive and multiplies negative logits of prompt and output tokens.
    """

    max_tokens: int | None = None  # None: up to the context limit
    min_tokens: int = 0  # no end-of-sequence or stop token before this many
    n: int = 1  # sequences forked from one prompt
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None  # None: drawn when the request enters the engine
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; k: the chosen token and the k most likely
    prompt_logprobs: int | None = None  # the same for prompt tokens; switches prefix reuse off
    grammar: GrammarSpec | None = None
    beam: BeamParams | None = None  # None: sampling; else n is how many hypotheses are returned


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One generation as the engine receives it."""

    request_id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    priority: int = PRIORITY_ONLINE
    cache_salt: str = ""  # prefix blocks are shared only between equal salts
    adapter: str = ""  # the LoRA adapter's name; "": the base model itself
    # Goes on where another replica stopped: the output so far of each sequence, by its index, that
    # has not ended. None: begins. With one seed the rest is the same as if nothing had happened.
    resumed: dict[int, list[int]] | None = None
    tenant: str = ""  # engines are shared fairly between tenants
    http_request_id: str = ""  # for log lines; "": none came over HTTP

    @property
    def indices(self) -> frozenset[int]:
        """Of the sequences that are to come."""
        if self.resumed is not None:
            return frozenset(self.resumed)
        return frozenset(range(self.sampling_params.n))


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural logarithms of the raw distribution (before any sampling parameter) at one position.

    `top_token_ids` are the k most likely tokens, best first, whether or not the chosen one is
    among them.
    """

    logprob: float
    top_token_ids: list[int]
    top_logprobs: list[float]
    rank: int = 0  # of the chosen token: 1 is the most likely; 0: not known (beam search)


class TokenDelta(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one sequence since its previous delta, maybe with its end."""

    request_id: str
    index: int  # which of the request's n sequences
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the stop token that ended it, when one did
    logprobs: list[TokenLogprobs] | None = None  # one per token when asked for
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    # For each prompt token but the first; only in a request's first delta, when asked for.
    prompt_logprobs: list[TokenLogprobs] | None = None


class BucketRef(msgspec.Struct, frozen=True, order=True):
    """A tenant's bucket."""

    tenant: str
    name: str


class Chunk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A passage of an object, as it is embedded and stored.

    `start` and `end` count characters in the text that the object was parsed to.
    """

    text: str
    start: int
    end: int
    heading: str = ""  # the headings above it, outermost first, joined by " > "
    page: int | None = None  # from 1, where the format has pages
    loader_metadata: dict[str, str] | None = None  # what a loader knows of its source


class FoundChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A search result."""

    bucket: str
    filename: str  # the object's key
    etag: str
    embedding_model: str
    chunk: Chunk
    position: int  # among the chunks of its object, from 0
    distance: float  # cosine, 0 to 2: of the query's and the chunk's vector
    score: float  # what the results are sorted by, largest first
