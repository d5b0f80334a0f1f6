"""Reciprocal ranks."""

import pytest

from models.retrieval.fusion import Ranked, fuse


def test_an_item_has_the_sum_of_its_reciprocal_ranks() -> None:
    rankings = [
        [Ranked("a", 1.0), Ranked("b", 1.0), Ranked("c", 1.0)],
        [Ranked("c", 1.0), Ranked("a", 1.0)],
    ]
    assert fuse(rankings) == pytest.approx({"a": 1 + 1 / 2, "b": 1 / 2, "c": 1 / 3 + 1})


def test_a_weight_scales_what_a_place_counts() -> None:
    assert fuse([[Ranked("a", 0.5), Ranked("b", 2.0)]]) == pytest.approx({"a": 0.5, "b": 1.0})


def test_nothing_fused_is_nothing() -> None:
    assert fuse([]) == {}
    assert fuse([[], []]) == {}
