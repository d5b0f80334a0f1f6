"""Adapters' products by the kernels: right for any widths and ranks, and the same bits in any
company."""

import random

import pytest
import torch

from models.adapters.checkpoint import LoraPair
from models.adapters.targets import LinearName, TargetLinear
from models.native.adapters import NativeAdapters, native_adapters

NUM_SLOTS = 4
#: Inputs, outputs of each module, the slots' rank, and that of each slot's adapter.
SHAPES = {
    "smallest": (16, (16,), 1, (1, 1, 0, 1)),
    "a rank that fills no block": (48, (80, 16), 20, (20, 3, 0, 17)),
    "three modules": (576, (576, 192, 192), 16, (16, 8, 0, 16)),
    "many blocks": (112, (1040,), 64, (64, 16, 0, 40)),
}
DTYPES = {"float32": (torch.float32, 1e-5), "bfloat16": (torch.bfloat16, 2e-2)}


def linears(num_inputs: int, num_outputs: tuple[int, ...]) -> list[TargetLinear]:
    """The one that is looked at, in each of the places that a layer has."""
    modules = tuple(f"module {i}" for i in range(len(num_outputs)))
    return [
        TargetLinear(name=name, num_inputs=num_inputs, modules=modules, num_outputs=num_outputs)
        for name in LinearName
    ]


class Setup:
    """Slots with random adapters in them, and what they should add."""

    def __init__(self, shape: str, dtype: torch.dtype) -> None:
        self.num_inputs, self.num_outputs, rank, self.ranks = SHAPES[shape]
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(1)
        slots = native_adapters(
            linears(self.num_inputs, self.num_outputs),
            num_layers=1,
            num_slots=NUM_SLOTS,
            rank=rank,
            dtype=dtype,
            device="cpu",
            is_invariant=True,
        )
        assert isinstance(slots, NativeAdapters), "the kernels build wherever tests run"
        self.slots = slots
        self.pairs = [
            {
                f"module {i}": LoraPair(
                    a_RI=self.random(rank, self.num_inputs) / self.num_inputs**0.5,
                    b_RO=self.random(rank, num_outputs),
                )
                for i, num_outputs in enumerate(self.num_outputs)
                if rank > 0 and not (slot == 3 and i == 1)  # which has no second module
            }
            for slot, rank in enumerate(self.ranks)
        ]
        for slot, pairs in enumerate(self.pairs):
            self.slots.install(slot, 0, pairs)

    def random(self, *sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=self._generator).to(self.dtype)

    def added(
        self, x_TI: torch.Tensor, out_TO: torch.Tensor, slots: list[int | None]
    ) -> torch.Tensor:
        found_TO = out_TO.clone()
        step = self.slots.step(slots, [1] * len(slots), len(slots))
        step.add(found_TO, x_TI, 0, LinearName.GATE_UP)
        return found_TO

    def expected(
        self, x_TI: torch.Tensor, out_TO: torch.Tensor, slots: list[int | None]
    ) -> torch.Tensor:
        wanted_TO = out_TO.double()
        for row, slot in enumerate(slots):
            first = 0
            for i, num_outputs in enumerate(self.num_outputs):
                pair = None if slot is None else self.pairs[slot].get(f"module {i}")
                if pair is not None:
                    inner = (x_TI[row].double() @ pair.a_RI.double().T).to(self.dtype)
                    wanted_TO[row, first : first + num_outputs] += (
                        inner.double() @ pair.b_RO.double()
                    )
                first += num_outputs
        return wanted_TO


def random_slots(dice: random.Random, count: int) -> list[int | None]:
    return [dice.choice([None, *range(NUM_SLOTS)]) for _ in range(count)]


def assert_right(shape: str, dtype: torch.dtype, tolerance: float) -> None:
    """Each row gets what its own adapter makes of it."""
    setup, dice = Setup(shape, dtype), random.Random(2)
    batches = [random_slots(dice, count) for count in (1, 2, 5, 17, 33, 70)]
    batches += [[0] * 40, [None] * 3 + [1] * 16 + [3], [2, 2], [None]]
    for slots in batches:
        x_TI = setup.random(len(slots), setup.num_inputs)
        out_TO = setup.random(len(slots), sum(setup.num_outputs))
        found_TO = setup.added(x_TI, out_TO, slots)
        wanted_TO = setup.expected(x_TI, out_TO, slots)
        torch.testing.assert_close(found_TO.double(), wanted_TO, rtol=tolerance, atol=tolerance)
        untouched = torch.tensor([slot in (None, 2) for slot in slots])
        assert torch.equal(found_TO[untouched], out_TO[untouched])


def assert_invariant(shape: str, dtype: torch.dtype) -> None:
    """A row's results have the same bits in any company."""
    setup, dice = Setup(shape, dtype), random.Random(3)
    slots = random_slots(dice, 50)
    x_TI = setup.random(50, setup.num_inputs)
    out_TO = setup.random(50, sum(setup.num_outputs))
    together_TO = setup.added(x_TI, out_TO, slots)
    for rows in ([k] for k in range(50)):
        alone_TO = setup.added(x_TI[rows], out_TO[rows], [slots[k] for k in rows])
        assert torch.equal(alone_TO, together_TO[rows])
    shuffled = dice.sample(range(50), 50)
    mixed_TO = setup.added(x_TI[shuffled], out_TO[shuffled], [slots[k] for k in shuffled])
    assert torch.equal(mixed_TO, together_TO[shuffled])


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_right_and_invariant(shape: str, dtype: torch.dtype, tolerance: float) -> None:
    assert_right(shape, dtype, tolerance)
    assert_invariant(shape, dtype)


def test_a_slots_next_adapter_finds_nothing_of_the_one_before() -> None:
    setup = Setup("many blocks", torch.float32)
    setup.pairs[0] = {
        "module 0": LoraPair(a_RI=setup.random(2, 112), b_RO=setup.random(2, 1040)),
    }
    setup.slots.install(0, 0, setup.pairs[0])
    x_TI, out_TO = setup.random(3, 112), setup.random(3, 1040)
    found_TO = setup.added(x_TI, out_TO, [0] * 3)
    wanted_TO = setup.expected(x_TI, out_TO, [0] * 3)
    torch.testing.assert_close(found_TO.double(), wanted_TO, rtol=1e-5, atol=1e-4)
    setup.slots.install(0, 0, {})
    assert torch.equal(setup.added(x_TI, out_TO, [0] * 3), out_TO)


@pytest.mark.parametrize(
    ("num_inputs", "num_outputs", "dtype", "device"),
    [
        (24, (16,), torch.float32, "cpu"),
        (16, (16, 24), torch.float32, "cpu"),
        (16, (16,), torch.float16, "cpu"),
        (16, (16,), torch.float32, "meta"),
    ],
)
def test_others_are_torchs(
    num_inputs: int, num_outputs: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    sizes = {"num_layers": 1, "num_slots": 1, "rank": 4}
    refused = linears(num_inputs, num_outputs)
    refusal = native_adapters(refused, **sizes, dtype=dtype, device=device, is_invariant=True)
    assert refusal is None
