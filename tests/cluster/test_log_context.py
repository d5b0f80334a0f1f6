import asyncio

from cluster.log_context import add_log_tags, log_tags, tagged


def test_tags_hold_within_and_empty_ones_are_left_out() -> None:
    assert dict(log_tags()) == {}
    with tagged(request_id="r", tenant=""):
        add_log_tags(tenant="t")
        with tagged(task_id="k"):
            assert dict(log_tags()) == {"request_id": "r", "tenant": "t", "task_id": "k"}
        assert dict(log_tags()) == {"request_id": "r", "tenant": "t"}
    assert dict(log_tags()) == {}


async def test_tasks_and_threads_inherit_them_and_do_not_mix() -> None:
    async def inner() -> tuple[str, str]:
        in_thread = await asyncio.to_thread(lambda: log_tags()["request_id"])
        return log_tags()["request_id"], in_thread

    async def request(name: str) -> tuple[str, str]:
        with tagged(request_id=name):
            return await asyncio.create_task(inner())

    assert await asyncio.gather(request("a"), request("b")) == [("a", "a"), ("b", "b")]
