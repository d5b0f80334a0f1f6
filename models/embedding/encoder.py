"""The transformers model inside an embedding checkpoint: loaded, checked, made fast, and run.

Shapes: B = texts in the batch, L = their padded length, W = width of a token's vector.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn

from cluster.config import EmbedderConfig
from models.checkpoint import CheckpointError
from models.embedding.json_file import JSONFile
from models.layers import Linear, can_pack

_NUM_NAMES_SHOWN = 5
_MAX_MESSAGE_CHARS = 300
_UNUSED_WEIGHTS = ("pooler.",)  # heads that a checkpoint may lack: nothing here reads them


class Encoder:
    """Token ids to the last layer's vectors."""

    def __init__(self, folder: Path, config: EmbedderConfig) -> None:
        """
        Raises:
            CheckpointError: the checkpoint cannot be used; names the file.
            ValueError: the configuration asks for a device that is not there.
        """
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.device = _device(config.device)
        model_config = _read_config(folder)
        self.dtype = _dtype(config.dtype, self.device, model_config)
        self._model = _load(folder, model_config, self.dtype)
        self._model.to(self.device).eval()
        if can_pack(self.dtype, self.device):
            _pack_linears(self._model)
        self.width: int = model_config.hidden_size
        self.vocab_size: int = model_config.vocab_size
        self.max_positions = _max_positions(self._model, model_config)
        self.pad_token_id: int = model_config.pad_token_id or 0  # masked, whatever it is
        self.architecture = type(self._model).__name__

    @torch.inference_mode()
    def __call__(self, ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """[B, L, W]; what stands beyond a text's length means nothing."""
        mask_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]
        output = self._model(input_ids=ids_BL, attention_mask=mask_BL.long())
        hidden_BLW: torch.Tensor = output.last_hidden_state
        return hidden_BLW


class _PackedLinear(nn.Module):
    """A linear layer whose weight has oneDNN's own layout: 15 to 25 % less time (MiniLM, AMX)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        linear = Linear(0, 0, bias=False, dtype=layer.weight.dtype, device="cpu")
        linear.weight_OI = layer.weight.detach()
        linear.bias_O = None if layer.bias is None else layer.bias.detach()
        linear.pack()
        self._linear = linear

    @property
    def weight(self) -> torch.Tensor:
        """Some models look at its dtype."""
        return self._linear.weight_OI

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x)


def _pack_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, _PackedLinear(child))
        else:
            _pack_linears(child)


def _read_config(folder: Path) -> Any:
    raw = JSONFile.read(folder / "config.json")
    if "AutoModel" in raw.mapping("auto_map"):
        raise raw.error("auto_map: the checkpoint brings its own code, which is not run")
    if raw.values.get("quantization_config") is not None:
        raise raw.error("quantization_config is not supported")
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises what its many configurations raise
        raise raw.error(one_line(error)) from error


def _load(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """The model with every weight that is computed with, or an error."""
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: no weights; expected model.safetensors or its parts")
    config.use_cache = False
    if hasattr(config, "num_decoder_layers"):  # of T5 and its like, the encoder is what embeds
        auto_class = transformers.AutoModelForTextEncoding
    else:
        auto_class = transformers.AutoModel
    try:
        model, loaded = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise CheckpointError(f"{_damaged_file(folder)}: damaged: {error}") from error
    except Exception as error:  # as above, and RuntimeError for weights of another shape
        raise CheckpointError(f"{folder}: {one_line(error)}") from error
    missing = sorted(
        name for name in loaded["missing_keys"] if not name.startswith(_UNUSED_WEIGHTS)
    )
    if missing:
        shown = ", ".join(missing[:_NUM_NAMES_SHOWN])
        rest = len(missing) - _NUM_NAMES_SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        raise CheckpointError(f"{folder}: its weights lack {shown}{more}")
    return model


def _damaged_file(folder: Path) -> Path:
    """Which of the weights' files cannot be opened."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return path
    return folder


def _max_positions(model: nn.Module, config: Any) -> int | None:
    """How many tokens a text may have; None: positions are relative, and without an end."""
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is None or limit <= 0:
        return None
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding's.
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            return limit - module.padding_idx - 1
    return limit


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds no GPU")
    return name


def _dtype(name: str, device: str, config: Any) -> torch.dtype:
    """ "auto": half precision where the hardware computes in it, float32 elsewhere.

    On a CPU with AMX bfloat16 takes a third of float32's time, and the cosines of its vectors to
    float32's are above 0.9999 (MiniLM).
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device == "cuda":
        # A model trained in bfloat16 may overflow in float16.
        is_half = config.dtype is torch.float16 or not torch.cuda.is_bf16_supported()
        return torch.float16 if is_half else torch.bfloat16
    computes_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if computes_bf16 else torch.float32


def one_line(error: Exception) -> str:
    """What transformers says, without its line breaks and without end."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_MAX_MESSAGE_CHARS]}" if text else type(error).__name__
