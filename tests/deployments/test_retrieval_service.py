"""Searches of real buckets in a real Redis: what is found, how fresh it is, whose it is."""

import asyncio
import logging
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.chunk_keys import ChunkKeys
from cluster.config import RedisConfig
from cluster.errors import BadRequestError, NotFoundError, ServiceUnavailableError
from cluster.retrieval import SearchMode
from cluster.types import BucketRef
from deployments import progress_log
from models.retrieval.approximate_index import ApproximateIndex
from models.retrieval.bucket_index import BucketIndex
from models.retrieval.reranker import Reranker
from tests.deployments.retrieval_rig import BUCKET, rig, until
from tests.models.retrieval.test_reranker import checkpoint


async def test_a_result_says_what_it_is_and_where_it_comes_from(redis_config: RedisConfig) -> None:
    async with rig(redis_config) as r:
        await r.put(pets=["cats purr", "dogs bark"], codes=["pump QX-12 is green"])
        found = (await r.search("dogs bark"))[0]
        assert (found.bucket, found.filename, found.etag) == (
            "handbook",
            "pets.txt",
            "etag of pets",
        )
        assert (found.chunk.text, found.position, found.embedding_model) == ("dogs bark", 1, "m")
        assert found.distance == pytest.approx(0, abs=1e-3)
        assert (await r.texts("What is QX-12?"))[0] == "pump QX-12 is green"
        scores = [one.score for one in await r.search("dogs bark")]
        assert scores == sorted(scores, reverse=True)


async def test_the_modes_rank_by_vectors_by_words_or_by_both(redis_config: RedisConfig) -> None:
    async with rig(redis_config) as r:
        await r.put(a=["red kite", "grey heron", "red fox"])
        assert len(await r.texts("red", mode=SearchMode.LEXICAL)) == 2
        dense = await r.search("grey heron", mode=SearchMode.DENSE)
        assert [one.distance for one in dense] == sorted(one.distance for one in dense)
        assert dense[0].chunk.text == "grey heron"


@pytest.mark.parametrize("count", [1, 3, 100])
async def test_as_many_are_found_as_are_asked_for_and_there_are(
    redis_config: RedisConfig, count: int
) -> None:
    async with rig(redis_config) as r:
        await r.put(a=[f"word{n} here" for n in range(60)])
        assert len(await r.texts("word7 here", count=count)) == min(count, 60)


async def test_the_same_text_is_found_once(redis_config: RedisConfig) -> None:
    async with rig(redis_config) as r:
        await r.put(a=["the same text"], copy=["The same text."], other=["another text"])
        assert sorted(await r.texts("the same text")) == ["another text", "the same text"]


async def test_a_bucket_that_was_never_embedded_is_named(redis_config: RedisConfig) -> None:
    async with rig(redis_config) as r:
        with pytest.raises(NotFoundError, match="'handbook' does not exist or was never embedded"):
            await r.search("anything")
        await r.put(a=["text"])
        assert await r.texts("text") == ["text"]
        with pytest.raises(NotFoundError, match="'nowhere'"):
            await r.search("text", buckets=[BUCKET, BucketRef("default", "nowhere")])


async def test_tenants_do_not_see_each_other(redis_config: RedisConfig) -> None:
    mine, theirs = BucketRef("one", "papers"), BucketRef("two", "papers")
    async with rig(redis_config) as r:
        await r.put(bucket=mine, a=["my salary"])
        with pytest.raises(NotFoundError, match="'papers'"):
            await r.search("my salary", buckets=[theirs])
        await r.put(bucket=theirs, a=["their salary"])
        assert await r.texts("my salary", buckets=[theirs]) == ["their salary"]
        assert await r.texts("their salary", buckets=[mine]) == ["my salary"]


async def test_several_buckets_are_searched_as_one_even_of_several_models(
    redis_config: RedisConfig,
) -> None:
    one, two = BucketRef("default", "one"), BucketRef("default", "two")
    async with rig(redis_config) as r:
        r.embedders["other"].width = 8
        await r.put(bucket=one, a=["red kite", "grey heron"])
        await r.put(bucket=two, model="other", b=["red fox", "grey wolf"])
        found = await r.search("red fox", buckets=[one, two, one])
        assert (found[0].bucket, found[0].chunk.text, found[0].embedding_model) == (
            *("two", "red fox", "other"),
        )
        assert {chunk.chunk.text for chunk in found} == {
            *("red kite", "grey heron", "red fox", "grey wolf"),
        }


async def test_a_commit_is_soon_in_the_index_without_being_asked_for(
    redis_config: RedisConfig,
) -> None:
    async with rig(redis_config) as r:
        await r.put(a=["first"])
        await r.texts("first")
        for number in range(5):
            version = await r.put(**{f"b{number}": ["later"]})
            await until(lambda v=version: r.loaded()["handbook"] == v)  # type: ignore[misc]


async def test_what_is_committed_is_found_by_the_very_next_search(
    redis_config: RedisConfig,
) -> None:
    async with rig(redis_config) as r:
        await r.put(a=["first"])
        await r.texts("first")
        for number in range(20):
            await r.put(**{f"b{number}": [f"news number{number}"]})
            assert (await r.texts(f"number{number}", count=1)) == [f"news number{number}"]


async def test_what_is_replaced_or_dropped_or_deleted_is_never_found_again(
    redis_config: RedisConfig,
) -> None:
    async with rig(redis_config) as r:
        await r.put(a=["secret plan"], b=["public plan"])
        assert len(await r.texts("secret plan")) == 2
        await r.put(a=["harmless plan"])
        assert sorted(await r.texts("secret plan")) == ["harmless plan", "public plan"]
        await r.put(drop=["a.txt"])
        assert await r.texts("harmless plan") == ["public plan"]
        assert await r.store.delete(BUCKET)
        with pytest.raises(NotFoundError):
            await r.search("public plan")
        await r.put(c=["a new life"])
        assert await r.texts("public plan") == ["a new life"]


async def test_searches_see_one_version_and_none_older_than_they_began_at(
    redis_config: RedisConfig,
) -> None:
    """Every version is one file whose chunks all name it."""
    async with rig(redis_config, max_exact_chunks=15) as r:
        await r.put(v0=[f"v0 row{row}" for row in range(20)])
        newest, is_done, num_seen = 0, False, set[int]()
        has_searched = asyncio.Event()

        async def commit() -> None:
            nonlocal newest, is_done
            for number in range(1, 40):
                texts = [f"v{number} row{row}" for row in range(20)]
                await r.put(drop=[f"v{number - 1}.txt"], **{f"v{number}": texts})
                newest = number
                has_searched.clear()
                await has_searched.wait()  # or a busy machine would commit them all at once
            is_done = True

        async def search() -> None:
            while not is_done:
                oldest = newest
                texts = await r.texts("row3 row4", count=10)
                versions = {int(text.split()[0][1:]) for text in texts}
                assert len(versions) == 1, versions
                assert min(versions) >= oldest
                num_seen.update(versions)
                if oldest == newest:
                    has_searched.set()

        await asyncio.gather(commit(), *(search() for _ in range(8)))
        assert set(range(1, 40)) <= num_seen


async def test_a_bucket_is_loaded_once_for_all_who_ask_at_once(redis_config: RedisConfig) -> None:
    async with rig(redis_config) as r:
        await r.put(a=[f"word{n}" for n in range(500)])
        await r.redis.execute("CONFIG", "RESETSTAT")
        results = await asyncio.gather(*(r.texts(f"word{n}", count=1) for n in range(64)))
        assert results == [[f"word{n}"] for n in range(64)]
        stats = await r.redis.execute("INFO", "commandstats")
        assert stats["cmdstat_mget"]["calls"] == 1
        assert r.service.stats().num_searches == 64
        assert r.service.stats().num_searches_running == 0


async def test_a_bucket_embedded_by_another_model_since_is_loaded_anew(
    redis_config: RedisConfig,
) -> None:
    async with rig(redis_config) as r:
        r.embedders["other"].width = 8
        await r.put(a=["red kite"])
        assert (await r.search("red kite"))[0].embedding_model == "m"
        await r.put(model="other", a=["red kite"])
        found = (await r.search("red kite"))[0]
        assert found.embedding_model == "other"
        assert found.distance == pytest.approx(0, abs=1e-3)


async def test_a_model_that_is_not_served_any_more_is_named_with_what_to_do(
    redis_config: RedisConfig,
) -> None:
    async with rig(redis_config) as r:
        await r.put(a=["text"])
        r.embedders["m"].revision = "r2"
        with pytest.raises(BadRequestError, match="revision r of 'm', and revision r2 is served"):
            await r.search("text")
        del r.embedders["m"]
        with pytest.raises(BadRequestError, match=r"by 'm', .* \(served are: other\): embed the"):
            await r.search("text")


async def test_a_change_log_that_was_trimmed_is_made_up_for_by_loading_anew(
    redis_config: RedisConfig,
) -> None:
    async with rig(redis_config) as r:
        await r.put(a=["first"])
        await r.texts("first")
        await r.put(b=["second"])
        await r.redis.execute("XTRIM", ChunkKeys(r.redis, BUCKET).log, "MAXLEN", 0)
        await r.put(c=["third"])
        assert sorted(await r.texts("first second third")) == ["first", "second", "third"]


async def test_a_redis_that_lost_everything_is_believed(redis_config: RedisConfig) -> None:
    async with rig(redis_config) as r:
        await r.put(a=["first"])
        await r.texts("first")
        await r.redis.execute("FLUSHALL")
        with pytest.raises(NotFoundError):
            await r.search("first")


async def test_the_least_recently_used_buckets_go_when_memory_is_short(
    redis_config: RedisConfig,
) -> None:
    refs = [BucketRef("default", name) for name in ("one", "two", "three")]
    async with rig(redis_config) as r:
        for ref in refs:
            await r.put(bucket=ref, a=[f"word{n} of {ref.name}" for n in range(50)])
        await r.texts("word1", buckets=refs[:2])
        needed = r.service.stats().num_bytes
    async with rig(redis_config, index_memory_bytes=int(needed * 1.2)) as r:
        await r.texts("word1", buckets=[refs[0]])
        await r.texts("word1", buckets=[refs[1]])
        await r.texts("word1", buckets=[refs[0]])
        await r.texts("word1", buckets=[refs[2]])
        assert sorted(r.loaded()) == ["one", "three"]
        assert r.service.stats().num_bytes <= needed * 1.2
        found = await r.search("word1", buckets=refs, count=20)  # more than fit, one after another
        assert {one.bucket for one in found} == {"one", "two", "three"}


async def test_loads_that_do_not_fit_together_wait_for_each_other(
    redis_config: RedisConfig,
) -> None:
    refs = [BucketRef("default", name) for name in ("one", "two", "three")]
    async with rig(redis_config) as r:
        for ref in refs:
            await r.put(bucket=ref, a=[f"word{n} of {ref.name}" for n in range(200)])
        await r.texts("word1", buckets=refs[:1])
        needed = r.service.stats().num_bytes
    async with rig(redis_config, index_memory_bytes=int(needed * 1.2)) as r:
        found = await r.search("word1", buckets=refs, count=20)
        assert {one.bucket for one in found} == {"one", "two", "three"}
        assert r.service.stats().num_bytes <= needed * 1.2


async def test_a_bucket_larger_than_all_memory_is_refused_with_both_numbers(
    redis_config: RedisConfig,
) -> None:
    large = [f"word{n} " + "x" * 2000 for n in range(1000)]
    async with rig(redis_config, index_memory_bytes=2**20) as r:
        await r.put(a=large)
        for _ in range(2):  # the second time without reading it
            with pytest.raises(
                ServiceUnavailableError, match=r"needs at least \d MiB, and .* 1 MiB"
            ):
                await r.search("word1")
        assert r.loaded() == {}
        await r.put(a=["word1 small"])
        assert await r.texts("word1") == ["word1 small"]
        await r.put(b=large)  # grows while it is held
        with pytest.raises(ServiceUnavailableError, match="too large"):
            await r.search("word1")
        assert r.loaded() == {}


async def test_who_waits_too_long_for_a_bucket_is_told_how_far_it_is(
    redis_config: RedisConfig,
) -> None:
    async with rig(redis_config, search_timeout_s=0.02) as r:
        for number in range(40):
            await r.put(**{f"f{number}": [f"word{n} of file{number}" for n in range(1000)]})
        with pytest.raises(ServiceUnavailableError, match=r"being loaded: [\d,]+ of") as caught:
            await r.search("word1")
        assert caught.value.retry_after_s is not None
        await until(lambda: "handbook" in r.loaded())
        assert (await r.texts("file7 word3", count=1)) == ["word3 of file7"]


async def test_a_large_bucket_is_searched_approximately_and_its_recall_is_told(
    redis_config: RedisConfig,
) -> None:
    async with rig(redis_config, max_exact_chunks=500) as r:
        await r.put(a=[f"word{n} of all" for n in range(1500)])
        assert (await r.texts("word77 of all", count=1)) == ["word77 of all"]  # at once
        await until(lambda: r.service.stats().buckets[0].recall is not None)
        (stats,) = r.service.stats().buckets
        assert (stats.kind, stats.num_chunks) == ("approximate", 1500)
        assert stats.recall is not None
        assert stats.recall >= 0.99
        assert stats.num_waiting == 0
        await r.put(b=["something new"])
        assert (await r.texts("something new", count=1)) == ["something new"]


async def test_commits_are_found_at_once_while_a_large_bucket_is_linked(
    redis_config: RedisConfig,
) -> None:
    async with rig(redis_config, max_exact_chunks=500) as r:
        files = {f"a{f}": [f"file{f} word{n}" for n in range(1100)] for f in range(4)}
        await r.put(**files)
        await r.texts("file1 word77")
        num_commits, is_linked = 0, False
        while not is_linked:
            (stats,) = r.service.stats().buckets
            is_linked = stats.recall is not None
            num_commits += 1
            text = f"news number{num_commits}"
            await r.put(drop=["a3.txt"] if num_commits == 1 else [], **{f"b{num_commits}": [text]})
            assert (await r.texts(text, count=1)) == [text]
        (stats,) = r.service.stats().buckets
        assert stats.num_chunks == 3 * 1100 + num_commits
        assert (await r.texts("file2 word5", count=1)) == ["file2 word5"]


async def test_loading_a_large_bucket_and_linking_it_are_told_in_the_log(
    redis_config: RedisConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_log, "_INTERVAL_S", 0.0)
    caplog.set_level(logging.INFO, "deployments.loaded_buckets")
    async with rig(redis_config, max_exact_chunks=500) as r:
        await r.put(a=[f"word{n} of all" for n in range(1500)])
        await r.texts("word77 of all")
        await until(lambda: r.service.stats().buckets[0].recall is not None)
    lines = "\n".join(caplog.messages)
    assert "loading bucket 'handbook', chunks: 1,000 of 1,500" in lines
    assert re.search(r"loading bucket 'handbook', chunks: 1,500, \d+ MiB, in \d+ s", lines)
    assert re.search(r"linking bucket 'handbook' into a graph, chunks: 1,500, \d+ MiB, in", lines)
    assert re.search(r"linking .*, chunks: 1,000 of 1,500, about \d+ s more", lines)


async def test_a_small_bucket_is_never_said_to_be_linked(
    redis_config: RedisConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_log, "_INTERVAL_S", 0.0)
    caplog.set_level(logging.INFO, "deployments.loaded_buckets")
    async with rig(redis_config) as r:
        await r.put(a=["some text"])
        await r.texts("some text")
    assert "loading bucket" in caplog.text
    assert "linking" not in caplog.text


async def test_graphs_are_built_by_threads_that_let_others_go_first(
    redis_config: RedisConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    niceness: dict[str, int] = {}
    add, change = ApproximateIndex.add, BucketIndex.change

    def noting_add(self: ApproximateIndex, *args: Any) -> None:
        niceness["linking"] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        add(self, *args)

    def noting_change(self: BucketIndex, *args: Any, **kwargs: Any) -> None:
        niceness["loading"] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        change(self, *args, **kwargs)

    monkeypatch.setattr(ApproximateIndex, "add", noting_add)
    monkeypatch.setattr(BucketIndex, "change", noting_change)
    async with rig(redis_config, max_exact_chunks=10) as r:
        await r.put(a=[f"word{n}" for n in range(50)])
        await r.texts("word7")
        await until(lambda: "linking" in niceness)
    assert niceness["loading"] == os.getpriority(os.PRIO_PROCESS, 0)  # somebody waits for it
    assert niceness["linking"] == min(19, max(5, niceness["loading"]))


async def test_results_are_reranked_where_a_reranker_is_configured(
    redis_config: RedisConfig, tmp_path: Path
) -> None:
    reranker = Reranker(checkpoint(tmp_path, num_labels=1))
    texts = ["it is warm", "it is cold", "the sea is warm", "the sea is cold", "how cold it is"]
    async with rig(redis_config, reranker=reranker) as r:
        await r.put(a=texts)
        found = await r.search("how warm is the sea", count=4)
        scores = dict(zip(texts, reranker.score("how warm is the sea", texts), strict=True))
        expected = sorted(texts, key=lambda text: -scores[text])[:4]
        assert [one.chunk.text for one in found] == expected
        assert [one.score for one in found] == pytest.approx([scores[text] for text in expected])


async def test_it_works_on_a_redis_cluster(redis_cluster_config: RedisConfig) -> None:
    async with rig(redis_cluster_config) as r:
        for name in ("one", "two", "three"):
            await r.put(bucket=BucketRef("default", name), a=[f"text of {name}"])
        refs = [BucketRef("default", name) for name in ("one", "two", "three")]
        assert len(await r.texts("text", buckets=refs)) == 3
        version = await r.put(bucket=refs[1], b=["more"])
        await until(lambda: r.loaded()["two"] == version)
