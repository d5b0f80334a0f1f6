"""The training forward pass computes what transformers computes with the same weights."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.demo.fused_llama import cast_weights, hidden_states, shape_of, tables


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            tie_word_embeddings=True,
        )
    )


def test_hidden_states_and_gradients_are_those_of_transformers() -> None:
    model = small_model()
    ids_RL = torch.randint(0, 50, (2, 150))  # more than one block of queries
    wanted_RLD = model.model(input_ids=ids_RL, use_cache=False).last_hidden_state
    wanted_RLD.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    weights = cast_weights(model, torch.float32)
    found_RLD = hidden_states(weights, ids_RL, tables(model, 150, torch.float32), shape_of(model))
    found_RLD.square().sum().backward()
    torch.testing.assert_close(found_RLD, wanted_RLD, rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-3)
