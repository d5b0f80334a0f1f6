"""From a model's configuration to its engine: the real runner, or the synthetic one."""

from pathlib import Path

from cluster.config import ModelConfig
from models.checkpoint import read_decoder_config
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.engine.runner import Runner
from models.engine.synthetic_runner import SyntheticRunner
from models.grammar.compiler import GrammarCompiler
from models.tokenizer import Tokenizer


def build_engine(config: ModelConfig, checkpoint_dir: Path) -> Engine:
    """Load a checkpoint and size its KV cache.

    Raises:
        ValueError: in one readable message, the file and what is wrong with it, or what does not
            fit and both numbers.
    """
    tokenizer = Tokenizer.from_folder(checkpoint_dir)
    runner = _build_runner(config, checkpoint_dir)
    return Engine(
        runner,
        config.engine,
        token_bytes=tokenizer.token_bytes,
        grammar_compiler=_build_grammar_compiler(runner, checkpoint_dir),
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


def _build_runner(config: ModelConfig, checkpoint_dir: Path) -> Runner:
    engine = config.engine
    if engine.synthetic_step_ms is None:
        return ModelRunner(checkpoint_dir, engine, dtype=config.dtype, device=config.device)
    decoder = read_decoder_config(checkpoint_dir)
    return SyntheticRunner(
        step_ms=engine.synthetic_step_ms,
        vocab_size=decoder.vocab_size,
        max_model_len=engine.max_model_len or decoder.max_position_embeddings,
        block_size=engine.block_size,
    )
