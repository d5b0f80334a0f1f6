"""The fields that chat and plain completions share: how to sample, when to stop, how to answer."""

from typing import Annotated, Any

from pydantic import Field

from cluster.errors import FieldProblem
from cluster.openai_schema.guides import GuideFields
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import INT64_MAX, Checked, integer, real, refusal

MAX_STOP_STRINGS = 4
MAX_STOP_STRING_CHARS = 1024
MAX_CHOICES = 128
MIN_BEAMS = 4  # beams of a request that does not say how many
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 4096


def _stop_strings(value: object) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    allowed = f"must be a non-empty string or an array of at most {MAX_STOP_STRINGS} of them"
    if not isinstance(strings, (list, tuple)) or len(strings) > MAX_STOP_STRINGS:
        raise refusal(allowed, value)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise refusal(allowed, value)
        if len(string) > MAX_STOP_STRING_CHARS:
            raise refusal(f"must be strings of at most {MAX_STOP_STRING_CHARS} characters", string)
    return tuple(strings)


_STOP_SCHEMA: dict[str, object] = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARS},
        {
            "type": "array",
            "maxItems": MAX_STOP_STRINGS,
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_STRING_CHARS},
        },
    ]
}


def _logit_bias(value: object) -> dict[int, float]:
    allowed = "must be an object from token ids (as strings) to numbers in [-100, 100]"
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIASES:
        raise refusal(f"{allowed}, at most {MAX_LOGIT_BIASES} of them", value, kind="dict_type")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 9):
            raise refusal(allowed, key)
        is_number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
        if not is_number or not -100 <= bias <= 100:
            raise refusal(allowed, bias, kind="out_of_range")
        biases[int(key)] = float(bias)
    return biases


_LOGIT_BIAS_SCHEMA: dict[str, object] = {
    "type": "object",
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "maxProperties": MAX_LOGIT_BIASES,
}

Count = Annotated[int, integer(low=1)]
Penalty = Annotated[float, real(low=-2, high=2)]


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationFields(GuideFields):
    """null means "not given" everywhere, as OpenAI's clients use it."""

    model: str | None = None  # None: the configured default
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, integer(low=1, high=MAX_CHOICES)] | None = None
    best_of: Annotated[int, integer(low=1, high=MAX_CHOICES)] | None = None

    temperature: Annotated[float, real(low=0, high=2)] | None = None
    top_p: Annotated[float, real(low=0, high=1, is_low_open=True)] | None = None
    top_k: Annotated[int, integer(low=-1)] | None = None  # -1 and 0: off
    min_p: Annotated[float, real(low=0, high=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, real(low=0, high=2, is_low_open=True)] | None = None
    logit_bias: Annotated[dict[int, float], Checked(_logit_bias, _LOGIT_BIAS_SCHEMA)] | None = None
    seed: Annotated[int, integer(low=-INT64_MAX - 1)] | None = None  # -1: none

    stop: Annotated[tuple[str, ...], Checked(_stop_strings, _STOP_SCHEMA)] | None = None
    stop_token_ids: (
        Annotated[
            list[Annotated[int, integer(low=0)]],
            Field(max_length=MAX_STOP_TOKEN_IDS),
        ]
        | None
    ) = None
    min_tokens: Annotated[int, integer(low=0)] | None = None
    ignore_eos: bool | None = None

    use_beam_search: bool | None = None
    length_penalty: Annotated[float, real(low=-10, high=10)] | None = None
    early_stopping: bool | None = None

    # Accepted and without effect, as documented: they describe the caller or the billing.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_sequences(self) -> int:
        """How many are generated: samples, of which the best are returned, or beams."""
        if self.best_of is not None:
            return self.best_of
        return max(self.num_choices, MIN_BEAMS) if self.use_beam_search else self.num_choices

    @property
    def wants_usage_chunk(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def problems(self) -> list[FieldProblem]:
        """Contradictions between fields that are each right by themselves."""
        found: list[FieldProblem] = []
        if self.stream_options is not None and not self.stream:
            found.append(_problem("stream_options", "is only allowed with stream: true"))
        found += self.guide_problems()
        if self.guide is not None:
            found += _guided_problems(self)
        return found + (_beam_problems(self) if self.use_beam_search else _sample_problems(self))


def _guided_problems(request: GenerationFields) -> list[FieldProblem]:
    """A grammar says where an output ends; these fields say that it must not."""
    found: list[FieldProblem] = []
    if request.ignore_eos:
        found.append(_problem("ignore_eos", "cannot be used with guided decoding"))
    if request.min_tokens:
        message = f"must be 0 with guided decoding; given {request.min_tokens}"
        found.append(_problem("min_tokens", message))
    return found


def _beam_problems(request: GenerationFields) -> list[FieldProblem]:
    """Beam search draws nothing: fields about drawing must be absent or neutral."""
    found = _best_of_problems(request)
    if request.best_of == 1:
        found.append(_problem("best_of", "must be at least 2 with use_beam_search; given 1"))
    drawing = (
        ("temperature", request.temperature, bool(request.temperature), "0"),
        ("top_p", request.top_p, request.top_p not in (None, 1), "1"),
        ("top_k", request.top_k, (request.top_k or 0) > 0, "-1 or 0"),
        ("min_p", request.min_p, bool(request.min_p), "0"),
    )
    found += [
        _problem(name, f"must be {neutral} or absent with use_beam_search; given {value:g}")
        for name, value, is_wrong, neutral in drawing
        if is_wrong and value is not None
    ]
    return found


def _sample_problems(request: GenerationFields) -> list[FieldProblem]:
    found = _best_of_problems(request)
    if request.length_penalty not in (None, 1):
        message = f"must be 1 or absent without use_beam_search; given {request.length_penalty:g}"
        found.append(_problem("length_penalty", message))
    if request.early_stopping:
        found.append(_problem("early_stopping", "needs use_beam_search; given true"))
    if request.stream and request.num_sequences > request.num_choices:
        message = (
            f"must equal n ({request.num_choices}) in a stream, because the best samples are known "
            f"when all have ended; given {request.best_of}"
        )
        found.append(_problem("best_of", message))
    return found


def _best_of_problems(request: GenerationFields) -> list[FieldProblem]:
    if request.best_of is None or request.best_of >= request.num_choices:
        return []
    message = f"must be at least n ({request.num_choices}); given {request.best_of}"
    return [_problem("best_of", message)]


def _problem(name: str, message: str) -> FieldProblem:
    return FieldProblem(loc=(name,), message=message)
