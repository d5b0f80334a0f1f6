"""Positions as Llama 3.1 scales them, to the end of its context, against transformers."""

from pathlib import Path

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.checkpoint import read_decoder_config
from models.layers import Rope, inverse_frequencies
from tests.models.conftest import MakeCheckpoint
from tests.models.step_driver import StepDriver, random_tokens

LLAMA_70B = Path(__file__).parent.parent / "data" / "llama_3_1_70b"
LLAMA_3_1 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONTEXT_LEN = 131072


def test_every_position_of_llama_3_1s_context_equals_transformers() -> None:
    config = read_decoder_config(LLAMA_70B)
    theirs = LlamaRotaryEmbedding(transformers.AutoConfig.from_pretrained(LLAMA_70B))
    assert torch.equal(inverse_frequencies(config.rope, config.head_dim), theirs.inv_freq)
    half, num_positions = config.head_dim // 2, config.max_position_embeddings
    assert num_positions == CONTEXT_LEN
    rope = Rope(
        config.rope,
        head_dim=config.head_dim,
        num_positions=num_positions,
        dtype=torch.float32,
        device="cpu",
    )
    for positions_P in torch.arange(num_positions).split(16384):
        cos_1PD, sin_1PD = theirs(torch.empty(1), positions_P[None])
        cos_P1D, signed_P1D = rope.at(positions_P)
        torch.testing.assert_close(cos_P1D[:, 0], cos_1PD[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(signed_P1D[:, 0, half:], sin_1PD[0, :, half:], atol=1e-6, rtol=0)
        torch.testing.assert_close(
            signed_P1D[:, 0, :half], -sin_1PD[0, :, :half], atol=1e-6, rtol=0
        )


def test_a_model_at_the_end_of_llama_3_1s_context_equals_transformers(
    make_checkpoint: MakeCheckpoint,
) -> None:
    """A text whose first half is at the beginning of the context and the rest at its end."""
    folder = make_checkpoint(rope_parameters=LLAMA_3_1, max_position_embeddings=CONTEXT_LEN)
    tokens = random_tokens(60)
    positions = [*range(30), *range(CONTEXT_LEN - 30, CONTEXT_LEN)]
    driver = StepDriver(folder, block_size=16)
    sequence = driver.add(tokens)
    sequence.positions = positions
    driver.finish(sequence, 20, 1, 25, 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        output = model(torch.tensor([tokens]), position_ids=torch.tensor([positions]))
    expected = output.logits[0].log_softmax(-1)
    torch.testing.assert_close(torch.stack(sequence.logprobs), expected, atol=1e-4, rtol=0)
