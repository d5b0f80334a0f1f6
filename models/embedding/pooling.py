"""From the vectors of a text's tokens to one vector: pooling and the layers after it.

Shapes: B = texts in the batch, L = their padded length, W = width of a token's vector, D = width
of an embedding. Texts are padded on the right. Everything here is float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models.checkpoint import CheckpointError
from models.embedding.layout import (
    Activation,
    DenseLayout,
    EmbeddingLayout,
    NormalizeLayout,
    Pooling,
)

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    Activation.IDENTITY: nn.Identity,
    Activation.TANH: nn.Tanh,
    Activation.RELU: nn.ReLU,
    Activation.GELU: nn.GELU,
    Activation.SILU: nn.SiLU,
    Activation.SIGMOID: nn.Sigmoid,
}


def pool(
    hidden_BLW: torch.Tensor, lengths_B: torch.Tensor, poolings: Sequence[Pooling]
) -> torch.Tensor:
    """[B, W × poolings] in float32. `lengths_B`: tokens of each text, at least one."""
    mask_BL = torch.arange(hidden_BLW.shape[1], device=hidden_BLW.device) < lengths_B[:, None]
    pooled = [_pool_one(hidden_BLW, lengths_B, mask_BL, pooling) for pooling in poolings]
    return torch.cat(pooled, dim=-1)


def _pool_one(
    hidden_BLW: torch.Tensor, lengths_B: torch.Tensor, mask_BL: torch.Tensor, pooling: Pooling
) -> torch.Tensor:
    if pooling is Pooling.CLS:
        return hidden_BLW[:, 0].float()
    if pooling is Pooling.LAST_TOKEN:
        rows_B = torch.arange(len(hidden_BLW), device=hidden_BLW.device)
        return hidden_BLW[rows_B, lengths_B - 1].float()
    if pooling is Pooling.MAX:
        return hidden_BLW.masked_fill(~mask_BL[:, :, None], float("-inf")).amax(dim=1).float()
    weights_BL = mask_BL.float()
    if pooling is Pooling.WEIGHTED_MEAN:
        weights_BL = weights_BL * torch.arange(1, mask_BL.shape[1] + 1, device=mask_BL.device)
    total_B1 = weights_BL.sum(dim=1, keepdim=True)
    if pooling is Pooling.MEAN_SQRT_LENGTH:
        total_B1 = total_B1.sqrt()
    return torch.einsum("blw,bl->bw", hidden_BLW.float(), weights_BL) / total_B1


class Head:
    """The layers after the pooling, and unit length at the end, whether the layout says so or not.

    Unit vectors are what everything that searches relies on.
    """

    def __init__(self, layout: EmbeddingLayout, *, device: str) -> None:
        """
        Raises:
            CheckpointError: a dense layer's weights are missing, damaged or of another shape.
        """
        self._layers = [_layer(entry, device) for entry in layout.head]

    @torch.inference_mode()
    def __call__(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        x_BD = pooled_BD
        for layer in self._layers:
            x_BD = F.normalize(x_BD, dim=-1) if layer is None else layer(x_BD)
        return F.normalize(x_BD, dim=-1)


def _layer(entry: DenseLayout | NormalizeLayout, device: str) -> nn.Module | None:
    """None: normalization."""
    if isinstance(entry, NormalizeLayout):
        return None
    path = entry.folder / "model.safetensors"
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not safetensors: {error}") from error
    wanted: dict[str, tuple[int, ...]] = {"linear.weight": (entry.num_outputs, entry.num_inputs)}
    if entry.has_bias:
        wanted["linear.bias"] = (entry.num_outputs,)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != wanted:
        raise CheckpointError(f"{path}: has {shapes}, but config.json asks for {wanted}")
    linear = nn.Linear(entry.num_inputs, entry.num_outputs, bias=entry.has_bias)
    linear.weight.data = tensors["linear.weight"].float()
    if entry.has_bias:
        linear.bias.data = tensors["linear.bias"].float()
    return nn.Sequential(linear, _ACTIVATIONS[entry.activation]()).to(device).eval()
