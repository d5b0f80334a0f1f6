"""`shoal plan`: what a model needs on GPUs that need not be here, as a table.

`models.memory_plan`, which computes it without torch, is imported by name and only when the command
runs, so that everything else in `cluster` stays without `models`.
"""

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from rich.table import Table

from cluster.cli_error import CommandError
from cluster.cli_report import show
from cluster.model_source import DEMO_SOURCE, resolve_model_source

GIB = 2**30


def plan(
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="FOLDER_OR_ID", help="Only its config.json is read."),
    ],
    gpu: Annotated[
        str, typer.Option("--gpu", "-g", metavar="NAME:NUMBER", help="Like h100:8 or l4.")
    ],
    *,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a sequence; default 8192.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Default: the checkpoint's own.")] = "auto",
    quantization: Annotated[
        str, typer.Option(help="int8, int8_dynamic, int4, fp8 …; default: as it is stored.")
    ] = "auto",
    adapters: Annotated[int, typer.Option(min=0, help="LoRA adapters loaded at once.")] = 0,
    lora_rank: Annotated[int, typer.Option(min=1, help="The highest rank of one.")] = 16,
) -> None:
    """Say what a model needs on given GPUs: weights, KV cache, sequences, and speed at most.

    Speeds are rooflines: no engine is faster, and real ones reach a part of them.
    """
    planner = importlib.import_module("models.memory_plan")
    try:
        made = planner.make_plan(
            find_config(model),
            gpu,
            dtype=dtype,
            quantization=quantization,
            context_tokens=context,
            max_loaded_adapters=adapters,
            max_lora_rank=lora_rank,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
    show(report(made))


def find_config(model: str) -> Path:
    """The folder of a model's config.json, which is all that is fetched of a hub id.

    Raises:
        CommandError: there is none.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model == DEMO_SOURCE:
        return resolve_model_source(model)
    try:
        return Path(hf_hub_download(model, "config.json")).parent
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CommandError(
            f"model {model!r}: no such folder here, and the model hub did not give it: {reason}"
        ) from error


def report(made: Any) -> list[Any]:
    """A `models.memory_plan.Plan` for a person."""
    config, gpu = made.config, made.gpu
    table = Table(
        "TP",
        "replicas",
        "weights/GPU",
        "adapters/GPU",
        "KV/GPU",
        "KV tokens",
        f"sequences of {made.context_tokens:,}",
        "exchanged per step",
        "tok/s, one",
        "tok/s, all",
        "prompt tok/s",
        box=None,
    )
    problems = []
    for ranks in made.ranks:
        if ranks.problem is not None:
            problems.append(f"TP {ranks.size}: {ranks.problem}")
            continue
        table.add_row(
            str(ranks.size),
            str(ranks.num_replicas),
            f"{ranks.weight_bytes / GIB:.1f} GiB",
            f"{ranks.adapter_bytes / GIB:.2f} GiB",
            f"{ranks.kv_bytes / GIB:.1f} GiB",
            f"{ranks.capacity_tokens:,}",
            f"{ranks.num_sequences:,}",
            f"{ranks.exchanged_bytes_per_step / 1e6:,.1f} MB in {ranks.exchanges_per_step}",
            f"{ranks.decode_tokens_per_s:,.0f}",
            f"{ranks.batch_tokens_per_s:,.0f}",
            f"{ranks.prompt_tokens_per_s:,.0f}",
        )
    kinds = config.dtype
    if config.quantization is not None:
        kinds = f"{config.quantization.name} and {kinds}"
    active = ""
    if made.num_active_parameters < made.num_parameters:
        active = f" ({made.num_active_parameters / 1e6:,.0f} for each token)"
    head = (
        f"{config.architecture}, {made.num_parameters / 1e6:,.0f} million parameters{active} in "
        f"{kinds}, on {made.num_gpus} × {gpu.title} ({gpu.memory_bytes / GIB:.1f} GiB, "
        f"{gpu.bytes_per_s / 1e12:g} TB/s, {gpu.flops_per_s / 1e12:g} TFLOP/s; {gpu.source})"
    )
    return [head, table, *problems, "speeds are upper bounds, for one replica"]
