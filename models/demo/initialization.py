"""Start the weights as a copying machine, so that training need not discover one.

Layer 0 gets heads that look one and two tokens back and note what they see. Layers 1 and 2 get
induction heads: they look for places whose noted tokens equal the current ones and write down the
token found there (Olsson et al., 2022). Everything else starts small and random, with outputs zero.
All of it is trained afterwards like any other weight.
"""

import torch
from transformers import LlamaForCausalLM

EMBEDDING_STD = 0.04
CONSTANT = 3.0  # size of feature 0, the same for all tokens: what position-only heads look at
LOOKBACK_SCORE = 14.0
MATCH_GAIN = 1.8
NOTE_GAIN = 2.0
COPY_GAIN = 12.0


@torch.no_grad()
def initialize_for_copying(model: LlamaForCausalLM) -> None:
    """Overwrite the weights of a fresh model; draws from torch's default generator."""
    config = model.config
    width, head = config.hidden_size, config.head_dim
    embedding = model.get_input_embeddings().weight
    embedding.normal_(0.0, EMBEDDING_STD)
    embedding[:, 0] = CONSTANT * EMBEDDING_STD
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    basis = torch.zeros(width - 1, width)
    basis[:, 1:] = torch.linalg.qr(torch.randn(width - 1, width - 1)).Q
    seen, noted = basis[: 2 * head], basis[2 * head : 6 * head]
    angles = config.rope_parameters["rope_theta"] ** (-torch.arange(0, head, 2) / head)
    _look_back(model, seen, noted, angles)
    for index, copied in ((1, basis[: 4 * head]), (2, basis[4 * head - 1 :])):
        _match_and_copy(model, index, seen, noted, angles, copied)


def _look_back(
    model: LlamaForCausalLM, seen: torch.Tensor, noted: torch.Tensor, angles: torch.Tensor
) -> None:
    """Layer 0, query heads 0 to 3: note features of the token one back and two back."""
    attention = model.model.layers[0].self_attn
    head = 2 * len(angles)
    sharp = torch.tensor([1.0, 1.0, 0.7, 0.5] + [0.0] * (len(angles) - 4))
    gain = (LOOKBACK_SCORE * head**0.5 / sharp.square().sum()).sqrt() / CONSTANT
    for key_head in range(2):
        span = slice(key_head * head, (key_head + 1) * head)
        attention.k_proj.weight[span].zero_()
        attention.k_proj.weight[span, 0] = torch.cat((sharp, torch.zeros_like(sharp))) * gain
        attention.v_proj.weight[span] = seen[span]
        for distance in (1, 2):
            query_head = 2 * key_head + distance - 1
            rows = slice(query_head * head, (query_head + 1) * head)
            turned = torch.cat(
                (sharp * (distance * angles).cos(), -sharp * (distance * angles).sin())
            )
            attention.q_proj.weight[rows].zero_()
            attention.q_proj.weight[rows, 0] = turned * gain
            target = noted[(2 * (distance - 1) + key_head) * head :][:head]
            attention.o_proj.weight[:, rows] = NOTE_GAIN * EMBEDDING_STD * target.T


def _match_and_copy(
    model: LlamaForCausalLM,
    index: int,
    seen: torch.Tensor,
    noted: torch.Tensor,
    angles: torch.Tensor,
    copied: torch.Tensor,
) -> None:
    """Layer `index`: attend where the noted tokens match, and write the token that is there.

    Only slowly turning features can match at a distance. Even query heads match one token, odd ones
    the token before it as well.
    """
    attention = model.model.layers[index].self_attn
    head = 2 * len(angles)
    slow = [pair for pair, angle in enumerate(angles.tolist()) if angle < 0.01]
    slow += [pair + len(angles) for pair in slow]
    half = len(slow) // 2
    for key_head in range(4):
        base = key_head * head
        features = (torch.arange(len(slow)) * 7 + key_head * 13) % len(seen)
        latest, earlier = features[:half], features[half:]
        key = torch.zeros(head, noted.shape[1])
        key[slow[:half]] = noted[: len(seen)][latest]
        key[slow[half:]] = noted[len(seen) :][earlier]
        attention.k_proj.weight[base : base + head] = key * MATCH_GAIN
        attention.v_proj.weight[base : base + head] = copied[base : base + head]
        for query_head in (2 * key_head, 2 * key_head + 1):
            query = torch.zeros_like(key)
            query[slow[:half]] = seen[latest] * 3.0
            query[slow[half:]] = noted[: len(seen)][earlier] * (2.0 if query_head % 2 else 0.5)
            rows = slice(query_head * head, (query_head + 1) * head)
            attention.q_proj.weight[rows] = query * MATCH_GAIN
            attention.o_proj.weight[:, rows] = (
                0.5 * COPY_GAIN * EMBEDDING_STD * copied[base : base + head].T
            )
