"""Everything about the engine that needs a GPU, in one run of a few minutes and one JSON.

    python -m scripts.gpu_check --output gpu_check.json                     # on the GPU
    TRITON_INTERPRET=1 python -m scripts.gpu_check --cpu --output dry.json  # in miniature

Run from the repository's root; Shoal need not be installed, and no checkpoint is needed. Beside
torch, triton and transformers it needs pydantic, msgspec, psutil and llguidance: for a box without
them, `pip install --target gpu_deps pydantic msgspec psutil llguidance` elsewhere, bring the folder
along and set PYTHONPATH to it. The JSON is written after each part; a part that fails says why, and
the next one runs.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import triton

from cluster.config import EngineConfig
from cluster.types import Request, SamplingParams
from models.engine import model_runner
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.engine.step_inputs import SamplingRow, StepInputs
from models.triton.interpreter import IS_INTERPRETED
from scripts.gpu_check_kernels import Scale, check_attention, check_operations, step_inputs
from scripts.gpu_check_replaced import check_fp8_products, check_sampling

GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=7)


LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
MINIATURE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
ON_GPU = Scale(
    device="cuda",
    dtype=torch.bfloat16,
    head_dims=(64, 80, 96, 128, 256),
    contexts=(1, 16, 17, 300, 5000),
    model=LLAMA_8B,
    batches=(1, 32, 256),
    context=1024,
    prompt=2048,
    num_steps=50,
    kv_bytes=None,
    copy_bytes=2**30,
)
IN_MINIATURE = Scale(
    device="cpu",
    dtype=torch.float32,
    head_dims=(16,),
    contexts=(1, 17),
    model=MINIATURE,
    batches=(1, 3),
    context=9,
    prompt=8,
    num_steps=1,
    kv_bytes=2**20,
    copy_bytes=2**20,
)


class Rerunner:
    """Stands for the recorder of graphs where there is no GPU: repeats the work."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work


# -- the engine ------------------------------------------------------------------------------------


def check_equality(scale: Scale) -> dict[str, Any]:
    """Greedy tokens of a small random model in float32 against transformers, with and without
    graphs; prompts are cut into chunks."""
    torch.backends.cuda.matmul.allow_tf32 = False
    shape = MINIATURE
    if scale.device == "cuda":
        shape = shape | {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 512}
        shape |= {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    num_prompts, num_tokens = (12, 48) if scale.device == "cuda" else (2, 3)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **shape, initializer_range=0.15, max_position_embeddings=512, eos_token_id=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    prompts = [[3 + (7 * i + j * j) % 60 for j in range(2 + 9 * i)] for i in range(num_prompts)]
    found: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name, has_graphs in (("graphs", True), ("kernel by kernel", False)):
            limits = EngineConfig(
                max_model_len=256,
                kv_cache_memory_bytes=2**24,
                max_num_seqs=num_prompts,
                max_num_batched_tokens=max(16, num_prompts),
                enable_cuda_graphs=has_graphs,
            )
            runner = ModelRunner(Path(folder), limits, device=scale.device)
            found[name] = generate(Engine(runner, limits), prompts, num_tokens)
    model.to(scale.device)
    expected = [
        model.generate(
            torch.tensor([prompt], device=scale.device),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    equal = {name: outputs == expected for name, outputs in found.items()}
    return {"ok": all(equal.values()), "equal": equal, "tokens": num_prompts * num_tokens}


def generate(engine: Engine, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    outputs: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    for index, prompt in enumerate(prompts):
        engine.add_request(
            Request(request_id=str(index), prompt_token_ids=prompt, sampling_params=params)
        )
    while engine.has_unfinished:
        for delta in engine.step():
            outputs[delta.request_id] += delta.token_ids
    engine.check()
    engine.close()
    return list(outputs.values())


# -- speed -----------------------------------------------------------------------------------------


def make_runner(scale: Scale, folder: Path) -> ModelRunner:
    """The model whose speed is measured, with random weights."""
    config = {
        **scale.model,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
        "eos_token_id": 2,
        "dtype": str(scale.dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config))
    limits = EngineConfig(
        max_model_len=max(scale.context + scale.num_steps + 64, scale.prompt + 64),
        kv_cache_memory_bytes=scale.kv_bytes,
        max_num_seqs=max(scale.batches),
    )
    return ModelRunner(folder, limits, device=scale.device, random_weights=True)


def decode_inputs(
    runner: ModelRunner, num_sequences: int, context: int, params: SamplingParams
) -> StepInputs:
    """The last token of so many sequences, which share what blocks there are."""
    size = runner.block_size
    width = -(-context // size)
    tables = [
        [(index * width + column) % runner.num_blocks for column in range(width)]
        for index in range(num_sequences)
    ]
    inputs = step_inputs(tables, [(i, context - 1, context) for i in range(num_sequences)], size)
    inputs.sampling_rows.extend(
        SamplingRow(
            params=params,
            seed=index,
            logit_index=index,
            position=context,
            prompt_token_ids=(),
            output_token_ids=(),
        )
        for index in range(num_sequences)
    )
    return inputs


def count_weights(scale: Scale) -> int:
    """Of all matrices that a step reads; of the embedding it reads a row for each token."""
    shape = scale.model
    num_heads = 2 * shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]
    attention = shape["hidden_size"] * num_heads * shape["head_dim"]
    feed_forward = 3 * shape["hidden_size"] * shape["intermediate_size"]
    head = shape["vocab_size"] * shape["hidden_size"]
    return shape["num_hidden_layers"] * (attention + feed_forward) + head


def median_s(work: Callable[[], object], count: int) -> float:
    """Every repetition ends with the chosen tokens on the host."""
    times = []
    for _ in range(count + 2):
        start_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - start_s)
    return statistics.median(times[2:])


def check_decoding(scale: Scale, runner: ModelRunner, bytes_per_s: float) -> dict[str, Any]:
    """Steps against the time that reading weights, and keys and values, takes at least."""
    steps = runner._gpu_steps
    assert steps is not None, "kernels are used"
    graphs = steps._graphs
    weights = count_weights(scale) * runner.dtype.itemsize
    kv_bytes = runner.plan.bytes_per_block / runner.block_size
    results: dict[str, Any] = {"weight_bytes": weights}
    for batch in scale.batches:
        floor_s = (weights + batch * scale.context * kv_bytes) / bytes_per_s
        row: dict[str, Any] = {"floor_ms": floor_s * 1e3}
        for name, used in (("graphs", graphs), ("kernel by kernel", None)):
            steps._graphs = used
            for kind, params in (("greedy", GREEDY), ("sampled", SAMPLED)):
                inputs = decode_inputs(runner, batch, scale.context, params)
                step_s = median_s(lambda inputs=inputs: runner.execute(inputs), scale.num_steps)
                row[f"{name}, {kind}"] = {
                    "ms": step_s * 1e3,
                    "tokens_per_s": batch / step_s,
                    "share_of_floor": floor_s / step_s,
                }
        steps._graphs = graphs
        results[f"batch {batch}"] = row
    return {"ok": True, **results}


def prefill_inputs(scale: Scale, runner: ModelRunner) -> StepInputs:
    table = list(range(-(-scale.prompt // runner.block_size)))
    return step_inputs([table], [(0, 0, scale.prompt)], runner.block_size)


def check_prefill(scale: Scale, runner: ModelRunner) -> dict[str, Any]:
    inputs = prefill_inputs(scale, runner)
    inputs.sampling_rows.extend(decode_inputs(runner, 1, 1, GREEDY).sampling_rows)
    step_s = median_s(lambda: runner.execute(inputs), max(1, scale.num_steps // 5))
    flops = 2 * count_weights(scale) * scale.prompt  # of which the head sees one token
    return {
        "ok": True,
        "tokens_per_s": scale.prompt / step_s,
        "matmul_tflops_per_s": flops / step_s / 1e12,
    }


def check_waiting(scale: Scale, runner: ModelRunner) -> dict[str, Any]:
    """No step waits for the device but by the event of its tokens: torch raises where one does."""
    batch = scale.batches[-1]
    kinds = {
        "greedy": decode_inputs(runner, batch, scale.context, GREEDY),
        "sampled": decode_inputs(runner, batch, scale.context, SAMPLED),
        "prompt": prefill_inputs(scale, runner),
    }
    results = {}
    for name, inputs in kinds.items():
        runner.execute(inputs)
        try:
            if scale.device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            runner.execute(inputs)
            results[name] = "does not wait"
        except RuntimeError as error:
            results[name] = str(error)
        finally:
            if scale.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return {"ok": set(results.values()) == {"does not wait"}, "steps": results}


# -- all of it -------------------------------------------------------------------------------------


def measure_bandwidth(scale: Scale) -> float:
    """Bytes read and written per second by a large copy: what a kernel can hope for."""
    source = torch.empty(scale.copy_bytes, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if scale.device == "cuda":
            torch.cuda.synchronize()

    return 2 * scale.copy_bytes / median_s(copy, 10)


def environment(scale: Scale) -> dict[str, Any]:
    device = "cpu, interpreted"
    if scale.device == "cuda":
        device = torch.cuda.get_device_name()
    versions = {module.__name__: module.__version__ for module in (torch, triton, transformers)}
    return {"device": device, "python": sys.version.split()[0], **versions}


class Report:
    """Parts by their names, in a file that is true after each of them."""

    def __init__(self, path: Path, scale: Scale) -> None:
        self._path = path
        self.parts: dict[str, Any] = {"environment": {"ok": True, **environment(scale)}}

    def add(self, name: str, part: Callable[[], dict[str, Any]]) -> None:
        start_s = time.perf_counter()
        try:
            result = part()
        except Exception:  # the next part may still tell something
            result = {"ok": False, "error": traceback.format_exc()}
        result["seconds"] = time.perf_counter() - start_s
        self.parts[name] = result
        self._path.write_text(json.dumps(self.parts, indent=1))
        print(
            f"{name}: {'ok' if result['ok'] else 'FAILED'} ({result['seconds']:.1f} s)", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="in miniature, by Triton's interpreter")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    arguments = parser.parse_args()
    scale = IN_MINIATURE if arguments.cpu else ON_GPU
    if arguments.cpu != IS_INTERPRETED:
        parser.error("--cpu and TRITON_INTERPRET=1 belong together")
    if arguments.cpu:
        model_runner.runs_triton = lambda device: True
        model_runner.make_recorder = Rerunner
    report = Report(arguments.output, scale)
    report.add("operations", lambda: check_operations(scale))
    report.add("attention", lambda: check_attention(scale))
    report.add("sampling", lambda: check_sampling(scale))
    report.add("fp8 products", lambda: check_fp8_products(scale))
    report.add("equality", lambda: check_equality(scale))
    gc.collect()
    bytes_per_s = measure_bandwidth(scale)
    report.add("bandwidth", lambda: {"ok": True, "gb_per_s": bytes_per_s / 1e9})
    with tempfile.TemporaryDirectory() as folder:
        try:
            runner = make_runner(scale, Path(folder))
        except (ValueError, RuntimeError) as error:
            sys.exit(f"the model whose speed is measured cannot be made: {error}")
    report.add("decoding", lambda: check_decoding(scale, runner, bytes_per_s))
    report.add("prefill", lambda: check_prefill(scale, runner))
    report.add("waiting", lambda: check_waiting(scale, runner))
    peak = torch.cuda.max_memory_allocated() if scale.device == "cuda" else 0
    report.add("memory", lambda: {"ok": True, "peak_bytes": peak, "plan": runner.plan.describe()})
    if not all(part["ok"] for part in report.parts.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
