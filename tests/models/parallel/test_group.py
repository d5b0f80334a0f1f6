"""Exchanges between ranks, each of which is a thread here: through memory that they share, and by
gloo, as between machines and where there are no kernels."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import pytest
import torch

from models.native import ranks
from models.native.ranks import GroupError
from models.parallel import shared_memory
from models.parallel.group import LOOPBACK, Rendezvous, TPGroup

CPU = torch.device("cpu")
Result = TypeVar("Result")


@pytest.fixture(autouse=True, params=["memory", "little memory", "gloo"])
def through(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ranks exchange through."""
    if request.param == "gloo":
        monkeypatch.setattr(shared_memory, "native_library", lambda: None)
    elif request.param == "little memory":
        monkeypatch.setattr(ranks, "SLOT_BYTES", 512)  # so that exchanges take several pieces


def on_every_rank(
    size: int,
    work: Callable[[TPGroup], Result],
    *,
    timeout_s: float = 120.0,
    must_share: bool = True,
) -> list[Result]:
    """What each rank makes of it, in their order."""
    meeting = Rendezvous.open(LOOPBACK, size=size, timeout_s=120)

    def run(rank: int) -> Result:
        mine = meeting
        if rank:
            mine = Rendezvous.reach(meeting.host, meeting.port, size=size, timeout_s=120)
        group = TPGroup.join(mine, rank=rank, size=size, device=CPU, timeout_s=timeout_s)
        has_kernels = shared_memory.native_library() is not None
        assert (group.native_ranks is not None) == (must_share and has_kernels)
        return work(group)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def limit_exchanges(group: TPGroup, seconds: float) -> None:
    """What `join` was given, once all have met: that may take longer on a busy machine."""
    if group.native_ranks is not None:
        group.native_ranks._fields.timeout_s = seconds
    backend: Any = group._backend
    backend._set_default_timeout(timedelta(seconds=seconds))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_rank_gets_the_same_bits_of_a_sum(dtype: torch.dtype) -> None:
    numbers = torch.randn(4, 3, 999, generator=torch.Generator().manual_seed(1)).to(dtype)

    def work(group: TPGroup) -> torch.Tensor:
        with torch.inference_mode():
            return group.all_reduce(numbers[group.rank].clone())

    sums = on_every_rank(4, work)
    assert all(torch.equal(sums[0], other) for other in sums[1:])
    tolerance = {"atol": 1e-5, "rtol": 0.0} if dtype is torch.float32 else {}
    expected = numbers.float().sum(0).to(dtype)
    torch.testing.assert_close(sums[0], expected, **(tolerance or {"atol": 0.1, "rtol": 0.05}))


def test_columns_are_gathered_on_the_first_rank_in_the_order_of_ranks() -> None:
    def work(group: TPGroup) -> torch.Tensor | None:
        return group.gather_columns(torch.full((2, 3), float(group.rank))[:, ::1])

    first, *others = on_every_rank(3, work)
    assert first is not None
    assert first.tolist() == [[0.0] * 3 + [1.0] * 3 + [2.0] * 3] * 2
    assert others == [None, None]


def test_more_is_gathered_than_fits_at_once() -> None:
    x_RV = torch.randn(7, 2 * 501, generator=torch.Generator().manual_seed(2)).bfloat16()
    first, _ = on_every_rank(2, lambda g: g.gather_columns(x_RV.chunk(2, dim=1)[g.rank]))
    assert first is not None
    assert torch.equal(first, x_RV)


def test_many_sums_follow_each_other() -> None:
    """Who is early writes the next one's numbers while others still read."""
    numbers = torch.randint(0, 100, (3, 200, 64), generator=torch.Generator().manual_seed(3))

    def work(group: TPGroup) -> torch.Tensor:
        return torch.stack([group.all_reduce(x) for x in numbers[group.rank].float()])

    for sums in on_every_rank(3, work):
        assert torch.equal(sums, numbers.sum(0).float())


def test_all_take_gloo_where_one_cannot_reach_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    once = iter([True])

    def process_fd(process: int) -> int:
        if next(once, False):
            raise OSError("no such process here")
        return -1

    monkeypatch.setattr(shared_memory, "_process_fd", process_fd)
    through: list[bool] = []

    def work(group: TPGroup) -> float:
        through.append(group.native_ranks is not None)
        return group.all_reduce(torch.ones(2))[1].item()

    assert on_every_rank(2, work, must_share=False) == [2.0, 2.0]
    assert through == [False, False]


def test_the_least_value_is_known_to_all() -> None:
    values = [2**40, 2**33 + 1, 2**35]
    assert on_every_rank(3, lambda g: g.minimum(values[g.rank], timeout_s=120)) == [2**33 + 1] * 3


def test_a_late_rank_may_have_a_limit_of_its_own() -> None:
    def work(group: TPGroup) -> int:
        limit_exchanges(group, 0.05)
        if group.rank:
            time.sleep(0.2)  # longer than the limit of other exchanges
        return group.minimum(7, timeout_s=120)

    assert on_every_rank(2, work) == [7, 7]


def test_an_exchange_that_a_rank_does_not_join_ends_within_its_limit() -> None:
    has_ended = threading.Event()

    def work(group: TPGroup) -> bool:
        if group.rank:
            return has_ended.wait(120)  # there, and silent
        limit_exchanges(group, 0.3)
        with pytest.raises(GroupError, match="exchange between the ranks failed"):
            group.all_reduce(torch.ones(8))
        has_ended.set()
        return True

    assert on_every_rank(2, work) == [True, True]


def test_a_rank_that_never_comes_fails_the_meeting() -> None:
    meeting = Rendezvous.open(LOOPBACK, size=2, timeout_s=0.5)
    with pytest.raises(GroupError):
        TPGroup.join(meeting, rank=0, size=2, device=CPU, timeout_s=0.5)


def test_a_group_of_one_hands_back_what_it_is_given() -> None:
    group, x = TPGroup(), torch.ones(2, 3)
    assert (group.rank, group.size) == (0, 1)
    assert group.all_reduce(x) is x
    assert group.gather_columns(x) is x
    assert group.minimum(5, timeout_s=0) == 5


@pytest.mark.parametrize("through", ["memory", "little memory"], indirect=True)
@pytest.mark.parametrize(
    "exchange", [TPGroup.all_reduce, TPGroup.gather_columns], ids=["sum", "columns"]
)
def test_a_rank_that_leaves_is_waited_for_no_longer(
    exchange: Callable[[TPGroup, torch.Tensor], object],
) -> None:
    """Its process goes on, and the limit is an hour."""

    def meet_or_leave(group: TPGroup) -> str:
        if group.rank == 1:
            group.leave()
            return "left"
        with pytest.raises(GroupError, match="one did not"):
            exchange(group, torch.ones(1, 300))
        return "noticed"

    found = on_every_rank(3, meet_or_leave, timeout_s=3600.0)
    assert found == ["noticed", "left", "noticed"]
