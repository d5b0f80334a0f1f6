"""From a model's configuration to its engine: the real runner on one rank or several, or the
synthetic one."""

from pathlib import Path
from typing import Protocol

from cluster.config import EngineConfig, ModelConfig
from models.checkpoint import is_native, read_decoder_config
from models.engine.adapter_slots import AdapterHost, AdapterSlots, FindAdapter
from models.engine.devices import find_device
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.engine.runner import Runner
from models.engine.synthetic_runner import SyntheticRunner
from models.grammar.compiler import GrammarCompiler
from models.parallel.rank_link import ChildRanks, RankStarter
from models.parallel.runner import TPRunner
from models.parallel.sharding import Shards
from models.tokenizer import Tokenizer


class RunnerWithAdapters(Runner, AdapterHost, Protocol):
    """A runner with slots for adapters, as many as the configuration says."""


def build_engine(
    config: ModelConfig,
    checkpoint_dir: Path,
    *,
    ranks: RankStarter | None = None,
    find_adapter: FindAdapter | None = None,
) -> Engine:
    """Load a checkpoint and size its KV cache. `find_adapter`: where the configuration has
    adapters.

    `ranks` starts the other ranks of a tensor-parallel model; None: as processes of this machine.

    Raises:
        ValueError: in one readable message, the file and what is wrong with it, or what does not
            fit and both numbers.
    """
    tokenizer = Tokenizer.from_folder(checkpoint_dir)
    runner: RunnerWithAdapters
    if config.engine.synthetic_step_ms is None:
        runner = build_runner(
            checkpoint_dir,
            config.engine,
            dtype=config.dtype,
            device=config.device,
            quantization=config.quantization,
            tensor_parallel_size=config.tensor_parallel_size,
            ranks=ranks,
        )
    else:
        runner = _build_synthetic_runner(config.engine, checkpoint_dir)
    return Engine(
        runner,
        config.engine,
        token_bytes=tokenizer.token_bytes,
        grammar_compiler=_build_grammar_compiler(runner, checkpoint_dir),
        adapters=AdapterSlots(runner, find_adapter),
    )


def build_runner(
    checkpoint_dir: Path,
    engine_config: EngineConfig,
    *,
    dtype: str,
    device: str,
    tensor_parallel_size: int,
    quantization: str = "auto",
    ranks: RankStarter | None = None,
) -> RunnerWithAdapters:
    """Load a checkpoint on one rank or several; the other arguments as for `build_engine`.

    Raises:
        ValueError: as `ModelRunner`.
        RankError: as `TPRunner`.
    """
    if tensor_parallel_size == 1:
        return ModelRunner(
            checkpoint_dir, engine_config, dtype=dtype, device=device, quantization=quantization
        )
    # What needs no process to be refused is refused before any is started.
    if not is_native(checkpoint_dir):
        raise ValueError(
            f"{checkpoint_dir}: this architecture is computed by transformers' modules, which "
            f"ranks do not share: tensor_parallel_size is {tensor_parallel_size}; supported: 1"
        )
    Shards(read_decoder_config(checkpoint_dir), size=tensor_parallel_size)
    starter: RankStarter = ranks or ChildRanks()
    find_device(device, (starter.num_local_devices or tensor_parallel_size) - 1)
    return TPRunner(
        checkpoint_dir,
        engine_config,
        ranks=starter.start(tensor_parallel_size),
        host=starter.host,
        dtype=dtype,
        device=device,
        quantization=quantization,
    )


def _build_grammar_compiler(runner: Runner, checkpoint_dir: Path) -> GrammarCompiler | None:
    """None for a model that never ends a sequence: a grammar would have no way out."""
    if not runner.eos_token_ids:
        return None
    return GrammarCompiler(
        checkpoint_dir / "tokenizer.json",
        vocab_size=runner.vocab_size,
        eos_token_ids=runner.eos_token_ids,
    )


def _build_synthetic_runner(
    engine_config: EngineConfig, checkpoint_dir: Path
) -> RunnerWithAdapters:
    assert engine_config.synthetic_step_ms is not None, "it is asked for"
    decoder = read_decoder_config(checkpoint_dir)
    return SyntheticRunner(
        decoder,
        step_ms=engine_config.synthetic_step_ms,
        max_model_len=engine_config.max_model_len or decoder.max_position_embeddings,
        block_size=engine_config.block_size,
        num_adapter_slots=engine_config.max_loaded_adapters,
        max_lora_rank=engine_config.max_lora_rank,
    )
