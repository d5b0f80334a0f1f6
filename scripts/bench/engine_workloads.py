"""The engine benchmark's loads by name: lengths, what prompts share, how tokens are chosen."""

from dataclasses import dataclass, replace
from itertools import cycle, islice

import msgspec

from cluster.types import Request, SamplingParams
from scripts.bench.engine_load import random_prompts

#: A prefix that every repetition has in common, so that the cache is warm when it counts.
_PREFIX_SEED = 100_000

_GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
#: In turn, what requests of the mixed load ask for; seeds make repetitions alike.
_MIXED = (
    _GREEDY,
    SamplingParams(temperature=0.7, top_p=0.9, seed=1, ignore_eos=True),
    SamplingParams(temperature=1.0, top_k=40, seed=2, ignore_eos=True),
    SamplingParams(temperature=1.0, min_p=0.05, logprobs=5, seed=3, ignore_eos=True),
    SamplingParams(
        temperature=0.8,
        presence_penalty=0.5,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        seed=4,
        ignore_eos=True,
    ),
    SamplingParams(temperature=1.0, logit_bias={7: 4.0, 11: -100.0}, seed=5, ignore_eos=True),
)


def prompt_seed(concurrency: int, repetition: int) -> int:
    """So that no prompt is in anybody's cache from the runs at another concurrency."""
    return 100 * concurrency + repetition


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests that come together. Lengths in tokens; prompts are random ids."""

    name: str
    prompt_len: int
    output_len: int
    shared_len: int = 0  # the first tokens of every prompt, the same for all
    long_len: int = 0  # a prompt that comes while the others are answered; 0: none
    is_mixed: bool = False
    is_single: bool = False  # one request whatever the concurrency

    @property
    def max_model_len(self) -> int:
        return max(self.prompt_len, self.long_len) + self.output_len

    def describe(self) -> str:
        """One line for a person."""
        shared = f", {self.shared_len:,} of the prompt shared" if self.shared_len else ""
        late = f", beside a prompt of {self.long_len:,}" if self.long_len else ""
        return f"{self.name}: {self.prompt_len:,}/{self.output_len:,} tokens{shared}{late}"

    def num_tokens(self, concurrency: int) -> int:
        """Prompts and outputs of all requests: what the KV cache must hold."""
        return concurrency * (self.prompt_len + self.output_len) + self.long_len

    def requests(self, concurrency: int, vocab_size: int, seed: int) -> list[Request]:
        """Other seeds: other prompts, but for what is shared."""
        tail_len = self.prompt_len - self.shared_len
        tails = random_prompts(concurrency, tail_len, vocab_size, seed)
        prefix = random_prompts(1, self.shared_len, vocab_size, _PREFIX_SEED)[0]
        kinds = cycle(_MIXED if self.is_mixed else (_GREEDY,))
        return [
            Request(
                request_id=str(number),
                prompt_token_ids=prefix + tail,
                sampling_params=msgspec.structs.replace(params, max_tokens=self.output_len),
            )
            for number, (tail, params) in enumerate(
                zip(tails, islice(kinds, concurrency), strict=True)
            )
        ]

    def late_request(self, vocab_size: int, seed: int) -> Request | None:
        """The long prompt."""
        if not self.long_len:
            return None
        return Request(
            request_id="long",
            prompt_token_ids=random_prompts(1, self.long_len, vocab_size, 50_000 + seed)[0],
            sampling_params=msgspec.structs.replace(_GREEDY, max_tokens=self.output_len),
        )

    def shortened(self) -> "Workload":
        """The same in small, to see that it runs. A long prompt still takes some steps."""
        made = replace(
            self,
            prompt_len=min(2048, max(16, self.prompt_len // 8)),
            output_len=max(8, self.output_len // 8),
            shared_len=self.shared_len // 8,
        )
        return made.beside(min(self.long_len, 2560)) if self.long_len else made

    def beside(self, long_len: int) -> "Workload":
        """The same with another long prompt, and outputs that last until it is read."""
        return replace(self, long_len=long_len, output_len=long_len // 4)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="short", prompt_len=128, output_len=64),
        Workload(name="long", prompt_len=1024, output_len=128),
        Workload(
            name="shared",
            prompt_len=576,
            output_len=64,
            shared_len=512,
        ),
        Workload(
            name="mixed",
            prompt_len=128,
            output_len=64,
            is_mixed=True,
        ),
        Workload(
            name="admission",
            prompt_len=128,
            output_len=2048,
            long_len=8192,
        ),
        Workload(
            name="context",
            prompt_len=131_008,
            output_len=32,
            is_single=True,
        ),
    )
}
