"""The engine without a server: prompts in, texts out, in this process.

from models.llm import LLM
with LLM("path/to/checkpoint") as llm:
    for output in llm.generate(["The capital of France is"], SamplingParams(max_tokens=8)):
        print(output.continuations[0].text)
"""

import itertools
from collections.abc import Mapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.config import EngineConfig
from cluster.errors import NotFoundError
from cluster.types import FinishReason, Request, SamplingParams, TokenDelta, TokenLogprobs
from models.engine.adapter_slots import AdapterSlots
from models.engine.build import build_runner
from models.engine.engine import Engine
from models.tokenizer import Tokenizer


@dataclass(slots=True, kw_only=True)
class Continuation:
    """One of the n continuations of a prompt. `text` leaves out special tokens."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None


@dataclass(slots=True, kw_only=True)
class PromptOutput:
    """What became of one prompt; `continuations` has n items."""

    prompt_token_ids: list[int]
    continuations: list[Continuation]
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] | None = None


class LLM:
    """A checkpoint, loaded. Prompts are texts or lists of token ids.

    With several ranks (`tensor_parallel_size`), the others are processes of this machine until
    `close`, the end of a `with`, or that of this process.

    Raises:
        ValueError: the checkpoint cannot be loaded, the limits do not fit, or the model cannot be
            shared out among so many ranks.
    """

    def __init__(
        self,
        checkpoint_dir: str | Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        quantization: str = "auto",
        tensor_parallel_size: int = 1,
        engine_config: EngineConfig | None = None,
        adapters: Mapping[str, str | Path] | None = None,
    ) -> None:
        """`adapters`: folders of LoRA adapters by the names that `generate` may use. They are read
        when they are; without a limit in the configuration all of them stay loaded."""
        config = engine_config or EngineConfig()
        folders = {name: Path(path) for name, path in (adapters or {}).items()}
        if folders and not config.max_loaded_adapters:
            config = config.model_copy(update={"max_loaded_adapters": len(folders)})
        folder = Path(checkpoint_dir)
        self.tokenizer = Tokenizer.from_folder(folder)
        runner = build_runner(
            folder,
            config,
            dtype=dtype,
            device=device,
            quantization=quantization,
            tensor_parallel_size=tensor_parallel_size,
        )
        self.engine = Engine(runner, config, adapters=AdapterSlots(runner, folders.__getitem__))
        self._adapter_names = folders.keys()
        self._request_numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine's threads and processes. Nothing can be generated afterwards."""
        self.engine.close()

    def generate(
        self,
        prompts: AbstractSequence[str | AbstractSequence[int]],
        params: SamplingParams | AbstractSequence[SamplingParams],
        *,
        adapters: str | AbstractSequence[str] = "",
    ) -> list[PromptOutput]:
        """Complete every prompt, all in one batch; `params` and `adapters` are one for all, or one
        for each. The adapter "" is the model itself.

        Raises:
            ServingError: a prompt can never be served, or an adapter cannot be used; nothing is
                returned then.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(each)} sampling params for {len(prompts)} prompts")
        names = [adapters] * len(prompts) if isinstance(adapters, str) else list(adapters)
        if len(names) != len(prompts):
            raise ValueError(f"{len(names)} adapters for {len(prompts)} prompts")
        requests = [self._request(p, s, a) for p, s, a in zip(prompts, each, names, strict=True)]
        for request in requests:
            self.engine.check_request(request)
        outputs = {request.request_id: _empty_output(request) for request in requests}
        self._complete(requests, outputs)
        for output in outputs.values():
            for continuation in output.continuations:
                continuation.text = self.tokenizer.decode(
                    continuation.token_ids, skip_special_tokens=True
                )
        return list(outputs.values())

    def _complete(self, requests: list[Request], outputs: dict[str, PromptOutput]) -> None:
        try:
            for request in requests:
                self.engine.add_request(request)
            while self.engine.has_unfinished:
                self._step(outputs)
        finally:  # where one fails, nothing of the others is left behind
            for request in requests:
                self.engine.abort_request(request.request_id)

    def _step(self, outputs: dict[str, PromptOutput]) -> None:
        step = self.engine.step()
        for delta in step:
            _record(outputs[delta.request_id], delta)
        if step.failures:
            raise next(iter(step.failures.values()))
        if self.engine.is_stalled:
            self.engine.wait_for_adapters()

    def _request(
        self, prompt: str | AbstractSequence[int], sampling_params: SamplingParams, adapter: str
    ) -> Request:
        if adapter and adapter not in self._adapter_names:
            known = ", ".join(self._adapter_names) or "none"
            raise NotFoundError(f"there is no adapter {adapter!r}; there is: {known}")
        token_ids = (
            self.tokenizer.encode(prompt, add_special_tokens=True)
            if isinstance(prompt, str)
            else list(prompt)
        )
        return Request(
            request_id=f"offline-{next(self._request_numbers)}",
            prompt_token_ids=token_ids,
            sampling_params=sampling_params,
            adapter=adapter,
        )


def _empty_output(request: Request) -> PromptOutput:
    return PromptOutput(
        prompt_token_ids=request.prompt_token_ids,
        continuations=[Continuation() for _ in range(request.sampling_params.n)],
    )


def _record(output: PromptOutput, delta: TokenDelta) -> None:
    continuation = output.continuations[delta.index]
    continuation.token_ids.extend(delta.token_ids)
    continuation.finish_reason = delta.finish_reason
    if delta.logprobs is not None:
        continuation.logprobs = (continuation.logprobs or []) + delta.logprobs
    if delta.prompt_logprobs is not None:
        output.prompt_logprobs = delta.prompt_logprobs
    output.num_cached_tokens = max(output.num_cached_tokens, delta.num_cached_tokens)
