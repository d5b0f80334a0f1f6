"""Whether the pools of a `shoal.yaml` can be placed on the node types of a cluster.

A replica is placed whole on one node (its ranks too, unless `rank_placement` says otherwise), so a
pool needs a node type that is large enough, and all pools together enough nodes. Weights are taken
from the checkpoint's config.json where it is here, else from a size in the model's name ("8B").
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.config import ModelConfig, ShoalConfig
from deployments.cluster_files.instance_types import GPU_MEMORY_GIB
from deployments.local_ray import TASK_WORKER_CPUS
from models.checkpoint import is_native, read_decoder_config
from models.memory_plan import count_weights

GIB = 2**30
INGRESS_CPUS = 0.1
MIN_KV_GIB = 1.0  # of each rank, beside the weights: else there is no room for a conversation
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_QUANTIZED_BYTES = {"int8": 1.0, "fp8": 1.0, "int4": 0.6}  # scales included
_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)[Bb](?![A-Za-z0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """What a cluster can start, and how often."""

    name: str
    cpus: float
    gpus: float
    max_nodes: int
    gpu: str = ""  # a key of GPU_MEMORY_GIB; empty: not said
    is_head: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What must be on one node."""

    owner: str
    cpus: float
    gpus: float
    is_on_head: bool = False


@dataclass(slots=True, kw_only=True)
class _Node:
    node_type: NodeType
    cpus: float
    gpus: float

    def takes(self, piece: Piece) -> bool:
        fits = piece.cpus <= self.cpus + 1e-9 and piece.gpus <= self.gpus + 1e-9
        return fits and (self.node_type.is_head or not piece.is_on_head)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """`problems` keep the cluster from becoming ready, `notes` from growing as it may."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_fit(config: ShoalConfig, node_types: Sequence[NodeType]) -> Fit:
    """Place everything, the largest first, and say what finds no place."""
    fit = Fit()
    for model in config.models:
        fit.problems.extend(_check_gpus(model, node_types))
    least, most = _pieces(config, is_most=False), _pieces(config, is_most=True)
    if missing := _place(least, node_types):
        fit.problems.extend(_no_place(piece, node_types) for piece in missing)
    elif missing := _place(most, node_types):
        owners = ", ".join(sorted({piece.owner for piece in missing}))
        fit.notes.append(f"with every pool at its most, there is no place for all of: {owners}")
    return fit


def weight_gib(model: ModelConfig) -> float | None:
    """Of the whole model; None where nothing tells its size."""
    folder = Path(model.source).expanduser()
    quantized = _QUANTIZED_BYTES.get(model.quantization.partition("_")[0])
    if folder.is_dir() and is_native(folder):
        decoder = read_decoder_config(folder)
        per_number = quantized or _BYTES[decoder.dtype if model.dtype == "auto" else model.dtype]
        return count_weights(decoder, 1).total * per_number / GIB
    found = _SIZE_IN_NAME.search(model.source)
    if found is None:
        return None
    per_number = quantized or _BYTES.get(model.dtype, _BYTES["bfloat16"])
    return float(found[1]) * 1e9 * per_number / GIB


def _check_gpus(model: ModelConfig, node_types: Sequence[NodeType]) -> list[str]:
    weights = weight_gib(model)
    if not model.num_gpus:
        large = weights is not None and weights > 8
        return (
            [f"models.{model.name}: num_gpus is 0, but its weights take {weights:.0f} GiB"]
            if large
            else []
        )
    able = [kind for kind in node_types if _holds(kind, model)]
    known = [kind for kind in able if kind.gpu]
    if weights is None or not known or len(known) < len(able):
        return []
    # Ray places by number alone: every type that can get it must be able to hold it.
    per_gpu = weights / model.tensor_parallel_size + MIN_KV_GIB
    problems = []
    for kind in known:
        budget = GPU_MEMORY_GIB[kind.gpu] * model.engine.gpu_memory_utilization
        if per_gpu > budget:
            problems.append(
                f"models.{model.name}: each of {model.tensor_parallel_size} ranks needs "
                f"{per_gpu:.1f} GiB (weights and {MIN_KV_GIB:g} GiB of KV cache), and a "
                f"{kind.gpu} of {kind.name!r}, on which Ray may place it, has {budget:.1f} GiB "
                "to give"
            )
    return problems


def _holds(kind: NodeType, model: ModelConfig) -> bool:
    piece = _model_piece(model)
    return piece.cpus <= kind.cpus and piece.gpus <= kind.gpus


def _model_piece(model: ModelConfig) -> Piece:
    parts = 1 if model.rank_placement == "strict_pack" else model.tensor_parallel_size
    return Piece(
        owner=f"models.{model.name}", cpus=model.num_cpus / parts, gpus=model.num_gpus / parts
    )


def _pieces(config: ShoalConfig, *, is_most: bool) -> list[Piece]:
    ingress = Piece(owner="http", cpus=INGRESS_CPUS, gpus=0, is_on_head=True)
    http = config.http
    pieces = [ingress] * (http.most_ingress_replicas if is_most else http.num_ingress_replicas)
    for model in config.models:
        parts = 1 if model.rank_placement == "strict_pack" else model.tensor_parallel_size
        # One at least: a model that may sleep is started when it is deployed.
        num_replicas = model.most_replicas if is_most else max(1, model.least_replicas)
        pieces += [_model_piece(model)] * parts * num_replicas
    for one in config.embedders:
        replica = Piece(owner=f"embedders.{one.name}", cpus=one.num_cpus, gpus=one.num_gpus)
        pieces += [replica] * (one.max_replicas if is_most else one.min_replicas)
    if config.embedders:
        retrieval = config.retrieval
        searching = Piece(owner="retrieval", cpus=retrieval.num_cpus, gpus=0)
        pieces += [searching] * (retrieval.max_replicas if is_most else retrieval.min_replicas)
        is_local = config.storage.s3_endpoint is None and config.storage.folder is None
        worker = Piece(owner="task workers", cpus=TASK_WORKER_CPUS, gpus=0, is_on_head=is_local)
        num_workers = retrieval.most_task_workers if is_most else retrieval.num_task_workers
        pieces += [worker] * num_workers
    return pieces


def _place(pieces: Sequence[Piece], node_types: Sequence[NodeType]) -> list[Piece]:
    """The pieces without a place. Best fit, the largest and those of the head first."""
    nodes = [
        _Node(node_type=kind, cpus=kind.cpus, gpus=kind.gpus)
        for kind in node_types
        for _ in range(kind.max_nodes)
    ]
    missing = []
    for piece in sorted(pieces, key=lambda p: (not p.is_on_head, -p.gpus, -p.cpus)):
        able = [node for node in nodes if node.takes(piece)]
        if not able:
            missing.append(piece)
            continue
        # GPUs stay free for those who need them.
        node = min(able, key=lambda n: (n.gpus - piece.gpus, n.cpus - piece.cpus))
        node.cpus -= piece.cpus
        node.gpus -= piece.gpus
    return missing


def _no_place(piece: Piece, node_types: Sequence[NodeType]) -> str:
    wanted = f"{piece.cpus:g} CPUs and {piece.gpus:g} GPUs"
    where = "the head" if piece.is_on_head else "one node"
    kinds = [kind for kind in node_types if kind.is_head or not piece.is_on_head]
    offered = ", ".join(
        f"{k.name} ({k.cpus:g} CPUs, {k.gpus:g} GPUs, × {k.max_nodes})" for k in kinds
    )
    is_large_enough = any(k.cpus >= piece.cpus and k.gpus >= piece.gpus for k in kinds)
    reason = "too few of these are left by the other pools" if is_large_enough else "none has that"
    return f"{piece.owner}: a replica needs {wanted} on {where}; {reason}: {offered}"
