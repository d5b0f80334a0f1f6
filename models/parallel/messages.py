"""What rank 0 and the processes of the other ranks say to each other, beside the steps themselves.

A rank's life: it starts (`RankStarted`), is told what to load (`RankOrder`), loads it together with
the others (`RankReady`), and follows steps (`StepOrder`, answered by `StepDone`) and the
installation of adapters between them (`AdapterOrder`) until its connection ends. Whatever goes
wrong is said once, as `RankFailed`, and is the last word.
"""

import msgspec


class ModelOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What every rank loads: the arguments of `ModelRunner`."""

    checkpoint_dir: str
    engine_config: str  # JSON
    dtype: str
    device: str
    quantization: str
    random_weights: bool


class RankOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank is."""

    rank: int
    size: int
    host: str  # rank 0's store, where the ranks meet
    port: int
    timeout_s: float  # of each exchange between the ranks
    device_index: int  # of its GPU, among those that its process sees
    model: ModelOrder


class PairBytes(msgspec.Struct, frozen=True, array_like=True):
    """A rank's part of a `LoraPair`, in the model's dtype."""

    module: str
    rank: int  # of the matrices
    a: bytes
    b: bytes


class AdapterOrder(msgspec.Struct, frozen=True, array_like=True, tag="adapter"):
    """Put a layer of an adapter into a slot; it is not answered."""

    slot: int
    layer_index: int
    pairs: list[PairBytes]


class RankStarted(msgspec.Struct, frozen=True, tag="started"):
    """The process has loaded its code and waits for its order."""


class RankReady(msgspec.Struct, frozen=True, tag="ready"):
    """Weights and KV cache are in place."""


class StepDone(msgspec.Struct, frozen=True, tag="done"):
    """The rank's part of one step is computed."""


class RankFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The rank ends. `is_victim`: because another one did not take part in an exchange."""

    message: str
    is_victim: bool


RankMessage = RankStarted | RankReady | StepDone | RankFailed
