"""The words of a bucket's chunks: BM25 by tantivy, in memory, changed one commit at a time.

A view is a snapshot: later changes do not reach it. Scores of several buckets are made comparable
by weighing each word as if all of them were one (`CorpusWeights`).
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache

import tantivy
from tantivy import Filter, Occur, Query, TextAnalyzer, TextAnalyzerBuilder, Tokenizer

from models.retrieval.lexical_query import (
    Clause,
    clauses_of,
    letter_pairs,
    normalized,
    spaced_text,
)
from models.retrieval.segments import chunk_key

_WORDS, _PAIRS, _KEY, _SEGMENT = "words", "pairs", "key", "segment"
_MAX_WORD_BYTES = 80
_WRITER_BYTES_PER_THREAD = 64_000_000  # tantivy wants 15 MB; more makes fewer segments
_MAX_WRITER_THREADS = 4  # one thread hands them the texts
_OTHER_SPELLING_WEIGHT = 0.9
_INDEX_BYTES_PER_TEXT_BYTE = 0.6  # measured on English text: postings, positions, lengths
_MAX_TIED_HITS = 1024
_UNKNOWN_SHARE = 0.25  # of a word's worth that no chunk has


class LexicalView:
    """The words of one version of a bucket. Never changes."""

    def __init__(self, schema: tantivy.Schema, searcher: tantivy.Searcher) -> None:
        self._schema = schema
        self._searcher = searcher

    @property
    def num_chunks(self) -> int:
        return int(self._searcher.num_docs)

    def num_with(self, clause: Clause, word: str) -> int:
        """How many chunks have a word."""
        return int(self._searcher.doc_freq(_PAIRS if clause.is_unspaced else _WORDS, word))

    def search(
        self, clauses: Sequence[Clause], count: int, weights: "CorpusWeights"
    ) -> list[tuple[int, float]]:
        """Keys and scores of the best `count` chunks and all that are as good as the last of them;
        best first, equal ones in any order.
        """
        queries = [
            (Occur.Should, query)
            for clause in clauses
            if (query := self._query_of(clause, weights)) is not None
        ]
        if not queries:
            return []
        query = Query.boolean_query(queries)
        limit = count + 16
        while True:
            hits = self._searcher.search(query, limit, count=False).hits
            is_complete = len(hits) < limit or hits[-1][0] < hits[count - 1][0]
            if is_complete or limit > _MAX_TIED_HITS:
                break
            limit *= 4
        if len(hits) > count:
            hits = [hit for hit in hits if hit[0] >= hits[count - 1][0]]
        keys = self._searcher.fast_field_values(_KEY, [address for _, address in hits])
        return [
            (key, score)
            for key, (score, _) in zip(keys, hits, strict=True)
            if isinstance(key, int)  # they all are; the method reads any kind of field
        ]

    def _query_of(self, clause: Clause, weights: "CorpusWeights") -> Query | None:
        """None: no chunk has any of its spellings."""
        queries = [
            Query.boost_query(
                self._spelling_query(clause, spelling),
                weights.correction(self, clause, spelling)
                * (1.0 if spelling == clause.spellings[0] else _OTHER_SPELLING_WEIGHT),
            )
            for spelling in weights.spellings(clause)
            if all(self.num_with(clause, word) for word in spelling)
        ]
        if len(queries) > 1:
            return Query.disjunction_max_query(queries)
        return queries[0] if queries else None

    def _spelling_query(self, clause: Clause, spelling: tuple[str, ...]) -> Query:
        if clause.is_unspaced:
            return Query.term_query(self._schema, _PAIRS, spelling[0], "freq")
        if len(spelling) == 1:
            return Query.term_query(self._schema, _WORDS, spelling[0], "freq")
        return Query.phrase_query(self._schema, _WORDS, list(spelling))


class CorpusWeights:
    """How much each word says, in several views taken together (their inverse frequencies)."""

    def __init__(self, views: Sequence[LexicalView]) -> None:
        self._views = views
        self._num_chunks = sum(view.num_chunks for view in views)

    def total(self, clauses: Iterable[Clause]) -> float:
        """What is scored, about, by a chunk that has each thing once that any chunk has; and a part
        of what the others would be worth, since where words are missing the rest says less.
        """
        return sum(
            max(self._weight(clause, spelling) for spelling in spellings)
            if (spellings := self.spellings(clause))
            else _UNKNOWN_SHARE * self._weight(clause, clause.spellings[0])
            for clause in clauses
        )

    def spellings(self, clause: Clause) -> list[tuple[str, ...]]:
        """Those of a clause that may be found anywhere."""
        found = [s for s in clause.spellings if all(self._num_with(clause, word) for word in s)]
        if not found and clause.fallback and self._num_with(clause, clause.fallback):
            return [(clause.fallback,)]
        return found

    def correction(self, view: LexicalView, clause: Clause, spelling: tuple[str, ...]) -> float:
        """What a view's own weight of a spelling has to be multiplied with."""
        if len(self._views) == 1:
            return 1.0
        own = sum(
            _inverse_frequency(view.num_chunks, view.num_with(clause, word)) for word in spelling
        )
        return self._weight(clause, spelling) / own

    def _weight(self, clause: Clause, spelling: tuple[str, ...]) -> float:
        """As tantivy weighs a spelling: the sum over its words."""
        return sum(
            _inverse_frequency(self._num_chunks, self._num_with(clause, word)) for word in spelling
        )

    def _num_with(self, clause: Clause, word: str) -> int:
        return sum(view.num_with(clause, word) for view in self._views)


def _inverse_frequency(num_chunks: int, num_with: int) -> float:
    # Chunks that are removed may still be counted among those that have the word.
    num_chunks = max(num_chunks, num_with)
    return math.log(1 + (num_chunks - num_with + 0.5) / (num_with + 0.5))


class LexicalIndex:
    """One thread at a time changes it; its views may be searched on any."""

    def __init__(self, *, num_threads: int) -> None:
        self._schema = (
            tantivy.SchemaBuilder()
            .add_text_field(_WORDS, tokenizer_name=_WORDS, index_option="position")
            .add_text_field(_PAIRS, tokenizer_name=_PAIRS, index_option="freq")
            .add_integer_field(_KEY, fast=True)
            .add_integer_field(_SEGMENT, indexed=True)
            .build()
        )
        self._index = tantivy.Index(self._schema)
        self._index.register_tokenizer(_WORDS, word_analyzer())
        self._index.register_tokenizer(_PAIRS, TextAnalyzerBuilder(Tokenizer.whitespace()).build())
        self._num_threads = min(num_threads, _MAX_WRITER_THREADS)
        self._merging: tantivy.IndexWriter | None = None  # it still merges parts of the index
        self._text_bytes: dict[int, int] = {}  # segment number -> bytes
        self._num_text_bytes = 0

    @property
    def num_bytes(self) -> int:
        """An estimate: tantivy does not tell."""
        return int(self._num_text_bytes * _INDEX_BYTES_PER_TEXT_BYTE)

    def change(
        self, *, added: Iterable[tuple[int, Sequence[str]]], removed: Iterable[int]
    ) -> LexicalView:
        """Add segments (number, texts) and remove others, at once; return the new view.

        `added` is consumed while it is indexed: it may be a generator that waits for more.
        """
        self.settle()  # there can be one writer
        writer = self._index.writer(_WRITER_BYTES_PER_THREAD * self._num_threads, self._num_threads)
        for number in removed:
            writer.delete_documents_by_term(_SEGMENT, number)
            self._num_text_bytes -= self._text_bytes.pop(number)
        for number, texts in added:
            for offset, text in enumerate(texts):
                writer.add_document(_document(number, offset, text))
            self._text_bytes[number] = sum(map(len, texts))
            self._num_text_bytes += self._text_bytes[number]
        writer.commit()
        self._merging = writer
        return self._newest_view()

    def settle(self) -> LexicalView | None:
        """Wait until the last change's merges are done; a view that is searched with less effort
        and finds the same. None: there was nothing to wait for.
        """
        if self._merging is None:
            return None
        self._merging.wait_merging_threads()
        self._merging = None
        return self._newest_view()

    def _newest_view(self) -> LexicalView:
        self._index.reload()
        return LexicalView(self._schema, self._index.searcher())


@cache
def word_analyzer() -> TextAnalyzer:
    """What a word is, in texts and in queries."""
    return (
        TextAnalyzerBuilder(Tokenizer.simple())
        .filter(Filter.remove_long(_MAX_WORD_BYTES))
        .filter(Filter.lowercase())
        .filter(Filter.ascii_fold())
        .build()
    )


def parse_query(query: str) -> list[Clause]:
    """What a query looks for."""
    return clauses_of(query, word_analyzer().analyze)


def _document(number: int, offset: int, text: str) -> tantivy.Document:
    document = tantivy.Document()
    text = normalized(text)
    document.add_text(_WORDS, spaced_text(text))
    pairs = letter_pairs(text)
    if pairs:
        document.add_text(_PAIRS, " ".join(pairs))
    document.add_integer(_KEY, chunk_key(number, offset))
    document.add_integer(_SEGMENT, number)
    return document
