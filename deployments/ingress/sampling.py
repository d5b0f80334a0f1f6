"""From request fields to `SamplingParams`: defaults, and limits that depend on the model."""

from cluster.errors import BadRequestError, FieldProblem, ValidationError
from cluster.openai_schema.generation import GenerationFields
from cluster.types import BeamParams, SamplingParams
from deployments.ingress.served_model import ServedModel

# Below this, logits divided by the temperature leave the range of floats; vLLM does the same.
MIN_TEMPERATURE = 0.01


def output_limit(
    requested: int | None, *, num_prompt_tokens: int, model: ServedModel, prompt_field: str
) -> int:
    """How many tokens may be generated after this prompt.

    A request's own limit must fit into the context; the configured default is cut to what is left.

    Raises:
        BadRequestError: the prompt, or the prompt with `requested` tokens, is too long.
    """
    limit = model.max_model_len
    left = limit - num_prompt_tokens
    if left < 1:
        raise BadRequestError(
            f"The prompt has {num_prompt_tokens} tokens; the model's context is {limit} tokens and "
            "one of them must be left for the answer.",
            param=prompt_field,
            openai_code="context_length_exceeded",
        )
    if requested is None:
        return min(left, model.config.defaults.max_tokens or left)
    if requested > left:
        raise BadRequestError(
            f"The prompt has {num_prompt_tokens} tokens and max_tokens is {requested}, together "
            f"{num_prompt_tokens + requested}; the model's context is {limit} tokens.",
            param="max_tokens",
            openai_code="context_length_exceeded",
        )
    return requested


def sampling_params(
    request: GenerationFields,
    model: ServedModel,
    *,
    max_tokens: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """Everything about choosing tokens. Stop strings are not in it, but for those of beams: they
    are text, not tokens.

    Raises:
        ValidationError: fields that contradict each other or do not fit the model.
    """
    beam = _beam_params(request)
    temperature, top_p = _randomness(request, model)
    problems = _vocabulary_problems(request, model)
    if request.num_sequences > 1 and temperature == 0 and beam is None:
        name = "n" if request.num_choices > 1 else "best_of"
        message = (
            f"must be 1 with temperature 0 (all choices are equal); given {request.num_sequences}"
        )
        problems.append(FieldProblem(loc=(name,), message=message))
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        message = f"must be at most the limit of {max_tokens} tokens; given {min_tokens}"
        problems.append(FieldProblem(loc=("min_tokens",), message=message))
    if problems:
        raise ValidationError(problems)
    if logprobs is None and ranks_samples(request):
        logprobs = 0  # the best are those with the best logprobs
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        n=request.num_sequences if beam is None else request.num_choices,
        temperature=max(temperature, MIN_TEMPERATURE) if temperature else 0.0,
        top_p=top_p,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        logit_bias=request.logit_bias or None,
        seed=None if request.seed == -1 else request.seed,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=None if request.guide is None else request.guide.spec,
        beam=beam,
    )


def ranks_samples(request: GenerationFields) -> bool:
    """Whether more samples are drawn than are returned."""
    return not request.use_beam_search and request.num_sequences > request.num_choices


def _beam_params(request: GenerationFields) -> BeamParams | None:
    if not request.use_beam_search:
        return None
    return BeamParams(
        width=request.num_sequences,
        length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
        early_stopping=bool(request.early_stopping),
        stop_strings=request.stop or (),
    )


def _randomness(request: GenerationFields, model: ServedModel) -> tuple[float, float]:
    """Temperature and top_p. Beams take neither from the configured defaults: nothing is drawn."""
    if request.use_beam_search:
        return 0.0, 1.0
    defaults = model.config.defaults
    return (
        defaults.temperature if request.temperature is None else request.temperature,
        defaults.top_p if request.top_p is None else request.top_p,
    )


def _vocabulary_problems(request: GenerationFields, model: ServedModel) -> list[FieldProblem]:
    problems: list[FieldProblem] = []
    for name, token_ids in (
        ("logit_bias", request.logit_bias or ()),
        ("stop_token_ids", request.stop_token_ids or ()),
    ):
        largest = max(token_ids, default=0)
        if largest >= model.vocab_size:
            message = f"token ids must be below {model.vocab_size}; given {largest}"
            problems.append(FieldProblem(loc=(name,), message=message))
    return problems
