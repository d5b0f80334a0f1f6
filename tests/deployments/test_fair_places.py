"""Who gets a place when many want one."""

import asyncio

from deployments.fair_places import FairPlaces


class Visitors:
    """Each comes for a place, notes that it has one, and goes when it is told."""

    def __init__(self, num_places: int) -> None:
        self.places = FairPlaces(num_places)
        self.inside: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self._visits: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str) -> None:
        """A name begins with its tenant's letter."""
        for name in names:
            self._leave[name] = asyncio.Event()
            self._visits[name] = asyncio.create_task(self._visit(name))
        await settle()

    async def _visit(self, name: str) -> None:
        async with self.places.place(name[0]):
            self.inside.append(name)
            await self._leave[name].wait()
        self.inside.remove(name)

    async def go(self, name: str) -> None:
        self._leave[name].set()
        await self._visits[name]
        await settle()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self._visits[name].cancel()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_alone_may_have_all_places() -> None:
    visitors = Visitors(2)
    await visitors.come("a1", "a2", "a3")
    assert visitors.inside == ["a1", "a2"]
    await visitors.go("a1")
    assert visitors.inside == ["a2", "a3"]


async def test_a_free_place_goes_to_who_has_the_fewest() -> None:
    visitors = Visitors(2)
    await visitors.come(*(f"a{number}" for number in range(9)), "b1", "b2")
    await visitors.go("a0")
    assert visitors.inside == ["a1", "b1"]
    await visitors.go("b1")
    assert visitors.inside == ["a1", "b2"]


async def test_tenants_with_equally_many_take_turns() -> None:
    visitors = Visitors(1)
    await visitors.come("a0", "a1", "a2", "b1", "b2", "c1")
    order = []
    while visitors.inside:
        (name,) = visitors.inside
        order.append(name)
        await visitors.go(name)
    assert order == ["a0", "a1", "b1", "c1", "a2", "b2"]


async def test_who_leaves_while_waiting_takes_no_place() -> None:
    visitors = Visitors(1)
    await visitors.come("a1", "b1", "b2")
    await visitors.cancel("b1")
    await visitors.go("a1")
    assert visitors.inside == ["b2"]
    await visitors.go("b2")
    await visitors.come("c1")
    assert visitors.inside == ["c1"]


async def test_a_place_that_was_just_given_to_who_leaves_goes_on_to_the_next() -> None:
    places = FairPlaces(1)
    entered = []

    async def visit(tenant: str) -> None:
        async with places.place(tenant):
            entered.append(tenant)

    async with places.place("a"):
        waiting = [asyncio.create_task(visit(tenant)) for tenant in "bc"]
        await settle()
    waiting[0].cancel()  # it has the place and does not know yet
    await asyncio.gather(*waiting, return_exceptions=True)
    assert entered == ["c"]
    async with places.place("d"):
        pass
