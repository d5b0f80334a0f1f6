"""Cross-encoders: a tiny checkpoint with random weights, compared with transformers itself."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from models.retrieval.reranker import Reranker, RerankerError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "how", "warm", "is", "it", "cold", "the", "sea"]


def checkpoint(folder: Path, *, num_labels: int) -> Path:
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=num_labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("num_labels", [1, 2])
def test_scores_are_those_of_the_checkpoint_however_many_passages(
    tmp_path: Path, num_labels: int
) -> None:
    folder = checkpoint(tmp_path, num_labels=num_labels)
    passages = ["it is warm", "the sea is cold " * 3, "cold", "the sea", *["it is"] * 20]
    scores = Reranker(folder).score("how warm is the sea", passages)
    assert len(scores) == 24
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for passage, score in zip(passages, scores, strict=True):
        inputs = tokenizer("how warm is the sea", passage, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs).logits[0]
        expected = logits[0] if num_labels == 1 else logits[1] - logits[0]
        assert score == pytest.approx(float(expected), abs=1e-5)


def test_a_passage_longer_than_the_model_loses_its_end(tmp_path: Path) -> None:
    reranker = Reranker(checkpoint(tmp_path, num_labels=1))
    long, longer = "the sea is cold " * 20, "the sea is cold " * 20 + "it is warm"
    (one,), (other,) = (reranker.score("how warm", [text]) for text in (long, longer))
    assert one == other
    assert len(reranker.score("how warm " * 50, ["the sea"])) == 1


def test_nothing_to_score_is_nothing(tmp_path: Path) -> None:
    assert Reranker(checkpoint(tmp_path, num_labels=1)).score("how", []) == []


def test_a_classifier_of_three_kinds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RerankerError, match="has 3 labels"):
        Reranker(checkpoint(tmp_path, num_labels=3))


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RerankerError, match=rf"retrieval\.reranker: {tmp_path}"):
        Reranker(tmp_path)
