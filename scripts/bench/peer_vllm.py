"""vLLM in a process, and perhaps an environment, of its own: a load a line in, seconds a line out.

Run by `scripts.bench.engine_peers` with the interpreter that has vLLM; imports nothing of Shoal.
The first line in is what `vllm.LLM` gets; each one after it {"prompts": …, "params": …}, to which
the answer is {"elapsed_s": …, "num_tokens": …}.
"""

import json
import os
import sys
import time
from collections.abc import Iterator

from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    # What vLLM prints goes to stderr: stdout is for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lines: Iterator[str] = iter(sys.stdin)
    llm = LLM(**json.loads(next(lines)))
    print(json.dumps({"is_ready": True}), file=answers, flush=True)
    for line in lines:
        load = json.loads(line)
        prompts = [{"prompt_token_ids": ids} for ids in load["prompts"]]
        params = [SamplingParams(**kinds) for kinds in load["params"]]
        start_s = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        elapsed_s = time.perf_counter() - start_s
        num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(
            json.dumps({"elapsed_s": elapsed_s, "num_tokens": num_tokens}),
            file=answers,
            flush=True,
        )


if __name__ == "__main__":
    main()
