"""Any causal language model of transformers as a decoder: its own modules, our paged attention.

Slower than `models.decoder`, and right for families that have no definition there: attention is
the only thing that knows of steps, and transformers lets a function of ours compute it
(`AttentionInterface`). What a model does beside that (masks of its own, scaled or capped logits) is
found out by computing a few tokens both ways when it is loaded.

Shapes: T = tokens in the step, H = query heads, K = key/value heads, D = head width, M = model
width, R = rows whose logits are wanted, V = vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from models.adapters.bank import AdapterStep
from models.attention.backend import StepAttention
from models.checkpoint import (
    SUPPORTED_DTYPES,
    CheckpointError,
    DecoderShape,
    DTypeName,
    read_eos_token_ids,
)

NUM_PROBE_TOKENS = 12
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
_MAX_KEYS_SHOWN = 5
# What some families want of their attention beside the usual; ours has none of it.
_UNKNOWN_TO_US = ("softcap", "s_aux", "position_bias", "sinks")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What the layers of a model attend with, seen as they did."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layer_windows: tuple[int | None, ...]


class TransformersDecoder:
    """Has the `forward` and `logits` of `models.decoder.Decoder`."""

    def __init__(
        self,
        checkpoint_dir: Path,
        *,
        dtype: torch.dtype,
        device: str,
        max_model_len: int | None = None,
    ) -> None:
        """Load the checkpoint and compare its answers with transformers' own.

        Args:
            max_model_len: no text will be longer; None: as long as the checkpoint allows.

        Raises:
            CheckpointError: it cannot be loaded whole, or computes something that a function for
                attention cannot give it.
        """
        self.config = _read_config(checkpoint_dir)
        self._model = _load(checkpoint_dir, self.config, dtype).to(device)
        _fix_frequencies(self._model, max_model_len)
        self._step: StepAttention | None = None
        self._name = f"shoal_{id(self)}"
        AttentionInterface.register(self._name, self._attend)
        seen = self._check(checkpoint_dir)
        self.shape = _decoder_shape(checkpoint_dir, self.config, seen)

    def forward(
        self,
        token_ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        attention: StepAttention,
        adapters: AdapterStep | None = None,
    ) -> torch.Tensor:
        """The hidden states [T, M] after the final norm; writes the step's keys and values."""
        assert adapters is None, "a model without slots for adapters runs none"
        self._step = attention
        try:
            output = self._model.base_model(
                input_ids=token_ids_T[None], position_ids=positions_T[None], use_cache=False
            )
        finally:
            self._step = None
        hidden_TM: torch.Tensor = output.last_hidden_state[0]
        return hidden_TM

    def logits(self, hidden_RM: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] of some rows of what `forward` returned, in the model's dtype."""
        logits_RV: torch.Tensor = self._model.get_output_embeddings()(hidden_RM)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits_RV if cap is None else (logits_RV / cap).tanh() * cap

    def _attend(
        self,
        module: Any,
        q_1HTD: torch.Tensor,
        k_1KTD: torch.Tensor,
        v_1KTD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """What a layer calls; see `AttentionInterface`."""
        assert self._step is not None, "only `forward` runs the model"
        assert attention_mask is None, "every token's context is the step's business"
        for name in _UNKNOWN_TO_US:
            if kwargs.get(name) is not None:
                raise ValueError(f"its attention has {name}")
        head_dim = q_1HTD.shape[-1]
        q_THD = q_1HTD[0].transpose(0, 1)
        if scaling is not None and scaling != head_dim**-0.5:
            q_THD = q_THD * (scaling * head_dim**0.5)
        out_THD = self._step.attend(
            q_THD.contiguous(),
            k_1KTD[0].transpose(0, 1).contiguous(),
            v_1KTD[0].transpose(0, 1).contiguous(),
            layer_index=module.layer_idx,
        )
        return out_THD[None], None

    def _check(self, checkpoint_dir: Path) -> AttentionShape:
        """Compute some tokens by transformers' own attention, and by ours written out."""
        generator = torch.Generator().manual_seed(0)
        vocab_size = self._model.get_input_embeddings().num_embeddings
        ids_T = torch.randint(0, vocab_size, (NUM_PROBE_TOKENS,), generator=generator)
        ids_T = ids_T.to(self._model.device)
        positions_T = torch.arange(NUM_PROBE_TOKENS, device=self._model.device)
        with torch.inference_mode():
            expected_TV = self._model(input_ids=ids_T[None], use_cache=False).logits[0]
            self._model.set_attn_implementation(self._name)
            probe = _Probe(_layer_windows(self.config))
            try:
                logits_TV = self.logits(self.forward(ids_T, positions_T, probe))
            except (TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
                raise self._refusal(checkpoint_dir, str(error)) from error
        difference = (logits_TV.float() - expected_TV.float()).abs().max().item()
        scale = expected_TV.float().abs().max().clamp(min=1.0).item()
        if not difference <= _TOLERANCE[expected_TV.dtype] * scale:
            problem = f"its logits differ by {difference:.3g} from those that transformers computes"
            raise self._refusal(checkpoint_dir, problem)
        try:
            return probe.shape()
        except ValueError as problem:
            raise self._refusal(checkpoint_dir, str(problem)) from problem

    def _refusal(self, checkpoint_dir: Path, problem: str) -> CheckpointError:
        architecture = (self.config.architectures or ["?"])[0]
        return CheckpointError(
            f"{checkpoint_dir}: architecture {architecture} does more than this engine can compute "
            f"for it: {problem}"
        )


class _Probe:
    """A `StepAttention` for one short sequence that keeps nothing: attention written out."""

    def __init__(self, layer_windows: tuple[int | None, ...]) -> None:
        self._layer_windows = layer_windows
        self._seen: dict[int, tuple[int, int, int]] = {}

    def attend(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, *, layer_index: int
    ) -> torch.Tensor:
        if v_TKD.shape != k_TKD.shape:
            raise ValueError("keys and values have different widths")
        num_heads, head_dim = q_THD.shape[1:]
        num_kv_heads = k_TKD.shape[1]
        self._seen[layer_index] = (num_heads, num_kv_heads, head_dim)
        group_size = num_heads // num_kv_heads
        k_THD, v_THD = (x.repeat_interleave(group_size, dim=1).float() for x in (k_TKD, v_TKD))
        scores_HTT = torch.einsum("thd,shd->hts", q_THD.float(), k_THD) * head_dim**-0.5
        positions_T = torch.arange(len(q_THD), device=q_THD.device)
        distance_TT = positions_T[:, None] - positions_T
        unseen_TT = distance_TT < 0
        if (window := self._layer_windows[layer_index]) is not None:
            unseen_TT |= distance_TT >= window
        weights_HTT = scores_HTT.masked_fill(unseen_TT, float("-inf")).softmax(-1)
        return torch.einsum("hts,shd->thd", weights_HTT, v_THD).to(q_THD.dtype)

    def shape(self) -> AttentionShape:
        """
        Raises:
            ValueError: not every layer attends through us, or they differ from each other.
        """
        if sorted(self._seen) != list(range(len(self._layer_windows))):
            raise ValueError(f"of {len(self._layer_windows)} layers, {len(self._seen)} attend")
        if len(set(self._seen.values())) != 1:
            raise ValueError(f"layers attend with different heads: {self._seen}")
        num_heads, num_kv_heads, head_dim = self._seen[0]
        return AttentionShape(
            num_layers=len(self._seen),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            layer_windows=self._layer_windows,
        )


def _decoder_shape(
    checkpoint_dir: Path, config: PretrainedConfig, seen: AttentionShape
) -> DecoderShape:
    return DecoderShape(
        architecture=config.architectures[0],
        vocab_size=config.vocab_size,
        num_layers=seen.num_layers,
        num_heads=seen.num_heads,
        num_kv_heads=seen.num_kv_heads,
        head_dim=seen.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        layer_windows=seen.layer_windows,
        dtype=read_dtype(checkpoint_dir),
        eos_token_ids=read_eos_token_ids(checkpoint_dir),
    )


def read_dtype(checkpoint_dir: Path) -> DTypeName:
    """The dtype that the checkpoint's config.json names.

    Raises:
        CheckpointError: see `TransformersDecoder`.
    """
    dtype = str(_read_config(checkpoint_dir).dtype or torch.float32).removeprefix("torch.")
    if dtype not in SUPPORTED_DTYPES:
        raise CheckpointError(f"{checkpoint_dir}: dtype {dtype} is not supported")
    return cast("DTypeName", dtype)


def _read_config(checkpoint_dir: Path) -> PretrainedConfig:
    try:
        config = AutoConfig.from_pretrained(checkpoint_dir, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(f"{checkpoint_dir}: {str(error).splitlines()[0]}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(f"{checkpoint_dir}: quantized weights of this family are not read")
    return config


def _load(checkpoint_dir: Path, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            checkpoint_dir,
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{checkpoint_dir}: {str(error).splitlines()[0]}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(map(str, report[kind]))
        if names:
            shown = ", ".join(names[:_MAX_KEYS_SHOWN])
            raise CheckpointError(f"{checkpoint_dir}: {kind.replace('_', ' ')}: {shown}")
    loaded: PreTrainedModel = model.eval()
    return loaded


def _fix_frequencies(model: PreTrainedModel, max_model_len: int | None) -> None:
    """Phi-3's "longrope" has two sets of frequencies, and transformers takes the one or the other
    by the longest text in the batch. Ours are in a batch with any, and their keys stay in the
    cache: the set is that of the longest text that there may be, for all of them."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "longrope":
            last = (max_model_len or model.config.max_position_embeddings) - 1
            last_11 = torch.tensor([[last]], device=model.device)
            module(torch.empty(0, device=model.device), last_11)  # which chooses
            module.rope_type = "fixed"  # by which transformers knows whether to choose


def _layer_windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    """The sliding windows, as transformers' own masks would apply them."""
    num_layers: int = config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return (None,) * num_layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * num_layers
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
