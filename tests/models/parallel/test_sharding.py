"""Which numbers of a weight a rank has: together the ranks have all of them, once."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from models.checkpoint import DecoderConfig, read_decoder_config
from models.parallel.sharding import Part, Shards, sharding_problem

LAYER = "model.layers.3."


@pytest.fixture
def config() -> DecoderConfig:
    """64 query and 8 key heads of 128, a feed-forward of 28,672, a vocabulary of 128,256."""
    return read_decoder_config(Path(__file__).parent.parent.parent / "data" / "llama_3_1_70b")


def spans(config: DecoderConfig, size: int, name: str) -> list[tuple[int, int]]:
    parts = [Shards(config, rank=rank, size=size).part(name) for rank in range(size)]
    assert all(part is not None for part in parts)
    return [(part.start, part.stop) for part in parts if part is not None]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("name", "dim", "total"),
    [
        ("self_attn.q_proj.weight", 0, 64 * 128),
        ("self_attn.k_proj.bias", 0, 8 * 128),
        ("self_attn.v_proj.weight", 0, 8 * 128),
        ("self_attn.o_proj.weight", 1, 64 * 128),
        ("mlp.gate_proj.weight", 0, 28672),
        ("mlp.up_proj.weight", 0, 28672),
        ("mlp.down_proj.weight", 1, 28672),
    ],
)
def test_the_ranks_parts_lie_side_by_side_and_make_the_whole(
    config: DecoderConfig, size: int, name: str, dim: int, total: int
) -> None:
    bounds = spans(config, size, LAYER + name)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds))
    assert len({stop - start for start, stop in bounds}) == 1
    first = Shards(config, size=size).part(LAYER + name)
    assert first is not None
    assert (first.dim, first.total) == (dim, total)


def test_more_ranks_than_key_heads_have_the_one_that_their_query_heads_attend_to(
    config: DecoderConfig,
) -> None:
    """16 ranks with 4 query heads each; 8 of these share a key head."""
    assert spans(config, 16, LAYER + "self_attn.q_proj.weight")[5] == (5 * 512, 6 * 512)
    bounds = spans(config, 16, LAYER + "self_attn.k_proj.weight")
    assert bounds == [(rank // 2 * 128, rank // 2 * 128 + 128) for rank in range(16)]
    assert Shards(config, rank=5, size=16).config.num_kv_heads == 1


def test_norms_are_whole_on_every_rank(config: DecoderConfig) -> None:
    for name in ("input_layernorm.weight", "self_attn.q_norm.weight"):
        assert Shards(config, rank=1, size=2).part(LAYER + name) is None
    assert Shards(config, rank=1, size=2).part("model.norm.weight") is None


def test_biases_of_summed_outputs_are_the_first_ranks_alone(config: DecoderConfig) -> None:
    for name in ("self_attn.o_proj.bias", "mlp.down_proj.bias"):
        first, second = (Shards(config, rank=rank, size=2) for rank in range(2))
        assert not first.is_left_out(LAYER + name)
        assert second.is_left_out(LAYER + name)
        assert not second.is_left_out(LAYER + name.replace("bias", "weight"))


def test_the_vocabulary_is_cut_into_parts_of_equal_padded_size(config: DecoderConfig) -> None:
    small = replace(config, vocab_size=545)
    shards = [Shards(small, rank=rank, size=4) for rank in range(4)]
    assert [s.num_vocabulary_rows for s in shards] == [144] * 4
    assert [s.first_vocabulary_row for s in shards] == [0, 144, 288, 432]
    assert spans(small, 4, "lm_head.weight") == [(0, 144), (144, 288), (288, 432), (432, 545)]


def test_a_rank_beyond_a_tiny_vocabulary_has_only_padding(config: DecoderConfig) -> None:
    tiny = replace(config, vocab_size=10)
    assert spans(tiny, 4, "model.embed_tokens.weight") == [(0, 8), (8, 10), (10, 10), (10, 10)]


def test_one_rank_has_everything_unpadded(config: DecoderConfig) -> None:
    odd = replace(config, vocab_size=545)
    alone = Shards(odd)
    assert alone.config == odd
    assert alone.num_vocabulary_rows == 545
    assert alone.part("lm_head.weight") == Part(dim=0, start=0, stop=545, total=545)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({}, 3, "tensor_parallel_size (3) does not divide num_attention_heads (64)"),
        (
            {"intermediate_size": 4097},
            2,
            "tensor_parallel_size (2) does not divide intermediate_size (4097)",
        ),
        (
            {"num_kv_heads": 6, "num_heads": 24},
            4,
            "tensor_parallel_size (4) neither divides num_key_value_heads (6) nor is a multiple "
            "of it",
        ),
    ],
)
def test_what_cannot_be_shared_out_is_named_with_both_numbers(
    config: DecoderConfig, changes: dict[str, int], size: int, message: str
) -> None:
    changed = replace(config, **changes)  # type: ignore[arg-type]
    assert sharding_problem(changed, size) == message
    with pytest.raises(ValueError, match=r"^tensor_parallel_size"):
        Shards(changed, size=size)
