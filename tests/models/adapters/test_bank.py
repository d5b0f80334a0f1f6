"""Products of mixed batches against each row's own matrices, in whatever order they come."""

import random

import pytest
import torch

from models.adapters import bank as bank_module
from models.adapters.bank import AdapterBank
from models.adapters.checkpoint import LoraPair
from models.adapters.targets import LinearName, module_sizes, target_linears
from models.adapters.torch_adapters import LONG_ROWS
from models.checkpoint import DecoderConfig, read_decoder_config
from models.engine.padding import padded_size
from tests.models.conftest import MakeCheckpoint

RANK = 4
NUM_SLOTS = 6


@pytest.fixture(scope="module")
def config(make_checkpoint: MakeCheckpoint) -> DecoderConfig:
    return read_decoder_config(make_checkpoint("llama"))


def random_pairs(config: DecoderConfig, rank: int) -> dict[str, LoraPair]:
    return {
        module: LoraPair(a_RI=torch.randn(rank, inputs), b_RO=torch.randn(rank, outputs))
        for module, (inputs, outputs) in module_sizes(config).items()
    }


def make_bank(config: DecoderConfig) -> tuple[AdapterBank, list[dict[str, LoraPair]]]:
    torch.manual_seed(0)
    bank = AdapterBank(
        config,
        num_slots=NUM_SLOTS,
        rank=RANK,
        dtype=torch.float32,
        device="cpu",
        padded=padded_size,
    )
    adapters = [random_pairs(config, rank=1 + slot % RANK) for slot in range(NUM_SLOTS)]
    for slot, pairs in enumerate(adapters):
        bank.install(slot, 0, pairs)
    return bank, adapters


def added(
    bank: AdapterBank,
    slots: list[int | None],
    lens: list[int],
    x_TI: torch.Tensor,
    name: LinearName,
) -> torch.Tensor:
    num_outputs = sum(
        sum(linear.num_outputs) for linear in target_linears(CONFIG[0]) if linear.name is name
    )
    out_TO = torch.zeros(len(x_TI), num_outputs)
    step = bank.step(slots, lens, num_rows=len(x_TI))
    step.add(out_TO, x_TI, 0, name)
    return out_TO


CONFIG: list[DecoderConfig] = []  # of the module's fixture


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def computed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(bank_module, "native_adapters", lambda *_, **__: None)


@pytest.fixture(autouse=True)
def _remember(config: DecoderConfig) -> None:
    CONFIG[:] = [config]


BATCHES: dict[str, list[tuple[int | None, int]]] = {
    "one row": [(2, 1)],
    "all slots": [(slot, 1) for slot in range(NUM_SLOTS)],
    "few slots far apart": [(5, 1), (None, 1), (0, 1), (5, 1), (0, 1)],
    "neighbours": [(3, 1), (4, 1), (None, 1)] * 5,
    "short stretches": [(1, 1), (None, 3), (4, 17), (0, 63)],
    "a long one alone": [(3, 130)],
    "long ones at both ends": [(2, 1), (None, 64), (3, 65), (1, 100), (None, 200), (0, 300)],
    "only the last": [(None, 1)] * 9 + [(None, 70), (5, 71)],
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", LinearName)
def test_every_row_gets_the_product_of_its_own_adapter(
    batch: str, name: LinearName, config: DecoderConfig
) -> None:
    bank, adapters = make_bank(config)
    slots, lens = (list(column) for column in zip(*BATCHES[batch], strict=True))
    (linear,) = (linear for linear in target_linears(config) if linear.name is name)
    num_rows = padded_size(sum(lens))
    x_TI = torch.randn(num_rows, linear.num_inputs)
    expected = torch.zeros(num_rows, sum(linear.num_outputs))
    row = 0
    for slot, count in zip(slots, lens, strict=True):
        if slot is not None:
            pairs = [adapters[slot][module] for module in linear.modules]
            rows = x_TI[row : row + count]
            products = [rows @ pair.a_RI.T @ pair.b_RO for pair in pairs]
            expected[row : row + count] = torch.cat(products, dim=1)
        row += count
    torch.testing.assert_close(added(bank, slots, lens, x_TI, name), expected, rtol=1e-4, atol=1e-3)


def test_random_batches_too(config: DecoderConfig) -> None:
    bank, adapters = make_bank(config)
    rng = random.Random(0)
    for _ in range(50):
        lens = sorted(
            rng.choice([1, 1, 1, 2, 30, LONG_ROWS, 100]) for _ in range(rng.randint(1, 9))
        )
        slots = [rng.choice([None, *range(NUM_SLOTS)]) for _ in lens]
        x_TI = torch.randn(padded_size(sum(lens)), config.intermediate_size)
        out_TO = added(bank, slots, lens, x_TI, LinearName.DOWN)
        row = 0
        for slot, count in zip(slots, lens, strict=True):
            expected = torch.zeros(count, config.hidden_size)
            if slot is not None:
                pair = adapters[slot]["mlp.down_proj"]
                expected = x_TI[row : row + count] @ pair.a_RI.T @ pair.b_RO
            torch.testing.assert_close(out_TO[row : row + count], expected, rtol=1e-4, atol=1e-3)
            row += count


def test_an_installed_adapter_leaves_nothing_of_the_one_before(config: DecoderConfig) -> None:
    bank, _ = make_bank(config)
    only_queries = {"self_attn.q_proj": random_pairs(config, 1)["self_attn.q_proj"]}
    bank.install(3, 0, only_queries)
    x_TI = torch.randn(1, config.hidden_size)
    out_TO = added(bank, [3], [1], x_TI, LinearName.QKV)
    pair = only_queries["self_attn.q_proj"]
    num_queries = pair.b_RO.shape[1]
    torch.testing.assert_close(out_TO[:, :num_queries], x_TI @ pair.a_RI.T @ pair.b_RO)
    assert not out_TO[:, num_queries:].any()
    assert not added(bank, [3], [1], x_TI, LinearName.GATE_UP).any()


def test_what_is_not_finite_in_one_row_stays_there(config: DecoderConfig) -> None:
    bank, _ = make_bank(config)
    x_TI = torch.randn(4, config.hidden_size)
    x_TI[1] = torch.inf
    out_TO = added(bank, [0, 1, None, 5], [1] * 4, x_TI, LinearName.GATE_UP)
    assert out_TO[[0, 2, 3]].isfinite().all()
    assert not out_TO[2].any()
