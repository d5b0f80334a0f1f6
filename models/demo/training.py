"""Train the demo model: Muon for its matrices, AdamW for the rest, rows that grow with progress."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.demo.batches import ROW_LENGTHS, Rows
from models.demo.fused_llama import (
    Tables,
    Weights,
    cast_weights,
    hidden_states,
    layer_output,
    shape_of,
    tables,
)
from models.demo.row_stream import POOL, RowStream, Stage
from models.demo.tokenizer import BEGIN, END_OF_TURN, MAX_POSITIONS, PAD


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What decides the result; `continues`: the weights come from a trained checkpoint."""

    seed: int = 0
    steps: int = 6000
    minutes: float = 70.0
    peak_lr: float = 3e-3
    embedding_lr: float = 3e-4
    weight_decay: float = 0.05
    warmup_steps: int = 30
    continues: bool = False
    decay_share: float = 0.6
    batch_tokens: int = 4096
    num_workers: int = 0
    has_long_rows: bool = False


CURRICULUM = (
    Stage(until=0.06, longest=320, copy_share=0.2, max_length=0.4),
    Stage(until=0.30, longest=448, copy_share=0.06, max_length=0.6),
    Stage(until=0.79, longest=512, copy_share=0.30, max_length=0.8),
    Stage(until=0.92, longest=640, copy_share=0.12, max_length=1.4),
    Stage(until=1.01, longest=640, copy_share=0.04, max_length=2.2),
)
# With tokens enough, as on a GPU: more of the long rows, which retrieval's prompts are.
LONG_CURRICULUM = (
    Stage(until=0.05, longest=320, copy_share=0.2, max_length=0.4),
    Stage(until=0.18, longest=512, copy_share=0.15, max_length=0.8),
    Stage(until=0.55, longest=768, copy_share=0.15, max_length=1.4),
    Stage(until=0.85, longest=1280, copy_share=0.10, max_length=2.4),
    Stage(until=1.01, longest=1280, copy_share=0.04, max_length=3.0),
)
CONTINUES_AT = 2  # the stage at which a model that can copy already goes on


def model_config(vocab_size: int, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The architecture: six million parameters, as many layers as copying needs and a few more."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids(BEGIN),
        eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TURN),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),
    )


def weighted_loss(weights: Weights, hidden_RLD: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Mean cross-entropy of the next token; only tokens with a weight are scored at all."""
    weights_K = rows.weights_RL[:, 1:].reshape(-1)[rows.scored_K]
    hidden_ND = hidden_RLD[:, :-1].reshape(-1, hidden_RLD.shape[-1])
    logits_KV = F.linear(hidden_ND[rows.scored_K], weights.embedding)
    targets_K = rows.ids_RL[:, 1:].reshape(-1)[rows.scored_K]
    losses_K = F.cross_entropy(logits_KV.float(), targets_K, reduction="none")
    return (losses_K * weights_K).sum() / weights_K.sum()


class Trainer:
    """The state of one training, saved in one file and resumed from it."""

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, config: TrainingConfig
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.step = 0
        self.elapsed_s = 0.0
        self.num_tokens = 0
        curriculum = LONG_CURRICULUM if config.has_long_rows else CURRICULUM
        self._stream = RowStream(
            tokenizer,
            curriculum[CONTINUES_AT:] if config.continues else curriculum,
            seed=config.seed,
            batch_tokens=config.batch_tokens,
        )
        self._batches: Iterator[Rows] | None = None
        self._shape = shape_of(model)
        self._tables: dict[int, Tables] = {}
        torch._dynamo.config.recompile_limit = 2 * len(ROW_LENGTHS)
        on_gpu = model.device.type == "cuda"  # one program for all lengths: it compiles for longer
        self._run_layer = torch.compile(layer_output, dynamic=on_gpu)
        matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                matrices,
                lr=config.peak_lr,
                weight_decay=config.weight_decay,
                momentum=0.95,
                ns_steps=4,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                [model.get_input_embeddings().weight, *vectors],
                lr=config.embedding_lr,
                betas=(0.9, 0.95),
                weight_decay=0.0,
            ),
        )

    @property
    def progress(self) -> float:
        """From 0 to 1: the share of the steps done, or of the minutes where those run out first."""
        return max(self.step / self.config.steps, self.elapsed_s / (60 * self.config.minutes))

    @property
    def is_done(self) -> bool:
        return self.progress >= 1.0

    def train_step(self) -> torch.Tensor:
        """One batch: compute the loss, update the weights, return the loss (a scalar)."""
        started = time.monotonic()
        rows = self._batch()
        self._set_learning_rates()
        loss = self._loss(rows)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.num_tokens += rows.num_tokens
        self.elapsed_s += time.monotonic() - started
        return loss.detach()

    def _loss(self, rows: Rows) -> torch.Tensor:
        length = rows.ids_RL.shape[1]
        if length not in self._tables:
            self._tables[length] = tables(self.model, length, torch.bfloat16)
        weights = cast_weights(self.model, torch.bfloat16)
        hidden_RLD = hidden_states(
            weights, rows.ids_RL, self._tables[length], self._shape, self._run_layer
        )
        return weighted_loss(weights, hidden_RLD, rows)

    def _batch(self) -> Rows:
        if self._batches is None:
            self._stream.num_pools = self.step // POOL
            self._batches = self._stream.batches(self.config.num_workers)
        self._stream.progress.value = self.progress
        return next(self._batches).to(self.model.device)

    def _set_learning_rates(self) -> None:
        """Warm up, hold, and fall in a straight line to zero."""
        warm = min(1.0, (self.step + 1) / self.config.warmup_steps)
        fall = min(1.0, (1.0 - self.progress) / self.config.decay_share)
        rates = (self.config.peak_lr, self.config.embedding_lr)
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * max(fall, 0.01)

    def save(self, path: Path) -> None:
        """Write the state in one atomic replacement."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "num_tokens": self.num_tokens,
            "config": asdict(self.config),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on where `save` left off; the steps and minutes asked for may differ."""
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        self.elapsed_s = state["elapsed_s"]
        self.num_tokens = state["num_tokens"]


def train(
    trainer: Trainer,
    *,
    on_step: Callable[[torch.Tensor], None],
    on_pause: Callable[[], None],
    pause_s: float,
) -> None:
    """Train until done; call `on_pause` every `pause_s` seconds and once at the end."""
    trainer.model.train()
    last_pause = time.monotonic()
    while not trainer.is_done:
        on_step(trainer.train_step())
        if time.monotonic() - last_pause > pause_s:
            on_pause()
            trainer.model.train()
            last_pause = time.monotonic()
    on_pause()
