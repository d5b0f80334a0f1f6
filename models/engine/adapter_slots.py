"""Which LoRA adapter lies in which slot: read beside the steps, installed between them, and the
least recently used one replaced. Integers and names; the tensors are the host's.

A slot's life: it is given to the adapter of a waiting sequence, whose files are read on a thread;
then `collect`, between steps, installs it layer by layer, a bounded number of bytes a step while
others generate; then sequences run with it. A slot that a running sequence uses is never given
away: where all are in use, the adapter that was asked for the longest ago gets no further
sequences until somebody who waits has got its slot.
"""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore
from typing import Protocol, TypeVar

from cluster.errors import BadRequestError, InternalError, ServingError
from models.adapters.checkpoint import LoadedAdapter, adapter_version
from models.engine.sequence import Sequence
from models.passing_thread import submit_in_passing

INSTALLED_BYTES_PER_STEP = 32 * 2**20
CHECK_PERIOD_S = 1.0  # how often an adapter in use is compared with its files
_NUM_READERS = 4

logger = logging.getLogger(__name__)

Read = TypeVar("Read")


class AdapterHost(Protocol):
    """A runner with slots beside its model."""

    @property
    def num_adapter_slots(self) -> int: ...

    def read_adapter(self, folder: Path) -> LoadedAdapter:
        """Safe in any thread.

        Raises:
            ValueError: it cannot be used; the message says why, without paths of this machine.
        """

    def install_adapter(self, slot: int, adapter: LoadedAdapter, layer_index: int) -> None:
        """Put one layer into a slot, between steps. What the slot held of that layer is gone."""


#: An adapter's folder by its name, on a thread; may download it. Raises ValueError with a message
#: for clients.
FindAdapter = Callable[[str], Path]
#: An adapter, and the error for all requests that wait with it.
AdapterFailure = tuple[str, ServingError]


@dataclass(slots=True)
class _Slot:
    """What one slot holds, or will."""

    name: str = ""  # "": nothing, or an adapter that has been replaced and may still be in use
    version: bytes = b""
    reading: Future[LoadedAdapter] | None = None
    adapter: LoadedAdapter | None = None  # while it is installed
    num_installed_layers: int = 0
    is_ready: bool = False
    last_used: int = 0  # the number of the assignment

    @property
    def is_loading(self) -> bool:
        return self.reading is not None or self.adapter is not None


class AdapterSlots:
    """Every method is called in the thread that steps. Without a host there are no slots."""

    def __init__(
        self,
        host: AdapterHost | None = None,
        find: FindAdapter | None = None,
        *,
        check_period_s: float = CHECK_PERIOD_S,
    ) -> None:
        self._host = host
        self._find = find
        self._check_period_s = check_period_s
        num_slots = 0 if host is None else host.num_adapter_slots
        self._slots = [_Slot() for _ in range(num_slots)]
        self._num_assignments = 0
        self._running: Iterable[Sequence] = ()
        self._wanted: set[int] = set()  # slots assigned in this step, to sequences admitted or not
        #: Adapters that get no further sequences in this step.
        self.held: set[str] = set()
        self._readers = Semaphore(_NUM_READERS)
        self._is_closed = False
        self._checked_at_s: dict[str, float] = {}
        self._checks: dict[str, Future[bytes]] = {}
        self._on_news: Callable[[], None] = _ignore

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    @property
    def loaded(self) -> list[str]:
        """The adapters that sequences can use at once."""
        return [slot.name for slot in self._slots if slot.name and slot.is_ready]

    @property
    def is_loading(self) -> bool:
        return any(slot.is_loading for slot in self._slots)

    @property
    def has_news(self) -> bool:
        """Whether `collect` has something to do."""
        return any(
            slot.adapter is not None or (slot.reading is not None and slot.reading.done())
            for slot in self._slots
        )

    def set_listener(self, on_news: Callable[[], None]) -> None:
        """Called on a thread when an adapter was read, or could not be."""
        self._on_news = on_news

    def begin_step(self, running: Iterable[Sequence]) -> None:
        """`running`: the sequences that run, as they are from now on."""
        self._running = running
        self._wanted.clear()
        self.held.clear()

    def try_assign(self, sequence: Sequence) -> bool:
        """Tell a waiting sequence where its adapter lies. False: it lies nowhere yet; that is seen
        to, and the adapter is `held`."""
        name = sequence.adapter
        index = self._index_of(name)
        if index is None or not self._slots[index].is_ready:
            self.held.add(name)
            if index is None:
                self._make_room(name)
            return False
        slot = self._slots[index]
        self._wanted.add(index)
        self._num_assignments += 1
        slot.last_used = self._num_assignments
        sequence.use_adapter(index, slot.version)
        self._check_files(name)
        return True

    def collect(self, *, is_idle: bool) -> list[AdapterFailure]:
        """Take what was read since the last step, and install it: a part of it, unless nobody waits
        for the next step. Returns the adapters that cannot be used."""
        failures = []
        for slot in self._slots:
            if slot.reading is not None and slot.reading.done():
                failure = self._take(slot, slot.reading)
                failures += [] if failure is None else [failure]
        num_bytes_left = INSTALLED_BYTES_PER_STEP
        for index, slot in enumerate(self._slots):
            while slot.adapter is not None and (is_idle or num_bytes_left > 0):
                num_bytes_left -= self._install_layer(index, slot.adapter)
        self._forget_changed()
        return failures

    def wait(self) -> None:
        """Until something was read."""
        wait([slot.reading for slot in self._slots if slot.reading], return_when=FIRST_COMPLETED)

    def close(self) -> None:
        self._is_closed = True

    def _index_of(self, name: str) -> int | None:
        return next((index for index, slot in enumerate(self._slots) if slot.name == name), None)

    def _make_room(self, name: str) -> None:
        """Give the adapter a slot, or let one become free."""
        in_use = self._wanted | {
            seq.adapter_slot for seq in self._running if seq.adapter_slot is not None
        }
        by_age = sorted(range(len(self._slots)), key=lambda index: self._slots[index].last_used)
        for index in by_age:
            if index not in in_use and not self._slots[index].is_loading:
                self._begin(index, name)
                return
        names = [self._slots[index].name for index in by_age if self._slots[index].is_ready]
        self.held.update([other for other in names if other and other not in self.held][:1])

    def _begin(self, index: int, name: str) -> None:
        if self._slots[index].name:
            logger.info("adapter %s leaves slot %d for %s", self._slots[index].name, index, name)
        reading = submit_in_passing("adapter", self._in_turn, self._read, name)
        self._slots[index] = _Slot(name=name, reading=reading, last_used=self._num_assignments)
        reading.add_done_callback(lambda _: self._on_news())

    def _in_turn(self, read: Callable[[str], Read], name: str) -> Read:
        """On a thread: not too many at once, and none after `close`."""
        with self._readers:
            if self._is_closed:
                raise CancelledError
            return read(name)

    def _read(self, name: str) -> LoadedAdapter:
        assert self._host is not None
        assert self._find is not None
        return self._host.read_adapter(self._find(name))

    def _read_version(self, name: str) -> bytes:
        assert self._find is not None
        return adapter_version(self._find(name))

    def _take(self, slot: _Slot, reading: Future[LoadedAdapter]) -> AdapterFailure | None:
        slot.reading = None
        name = slot.name
        error = reading.exception()
        if error is None:
            slot.adapter = reading.result()
            slot.version = slot.adapter.version
            self._checked_at_s[name] = time.monotonic()
            return None
        slot.name = ""
        if isinstance(error, ValueError):
            logger.warning("adapter %s cannot be used: %s", name, error)
            refusal = f"The adapter {name!r} cannot be used: {error}"
            return name, BadRequestError(refusal, param="model", openai_code="invalid_adapter")
        logger.error("reading the adapter %s failed", name, exc_info=error)
        return name, InternalError(f"The adapter {name!r} could not be read.")

    def _install_layer(self, index: int, adapter: LoadedAdapter) -> int:
        """Returns the number of bytes."""
        slot = self._slots[index]
        layer_index = slot.num_installed_layers
        assert self._host is not None, "somebody has read it"
        self._host.install_adapter(index, adapter, layer_index)
        slot.num_installed_layers += 1
        if slot.num_installed_layers == len(adapter.layers):
            slot.adapter = None
            slot.is_ready = True
            logger.info("adapter %s is in slot %d", slot.name, index)
        return sum(pair.num_bytes for pair in adapter.layers[layer_index].values())

    def _check_files(self, name: str) -> None:
        """Now and then, on a thread: what is replaced on disk is to be served anew."""
        now_s = time.monotonic()
        if name in self._checks or now_s - self._checked_at_s[name] < self._check_period_s:
            return
        self._checked_at_s[name] = now_s
        self._checks[name] = submit_in_passing("adapter", self._in_turn, self._read_version, name)

    def _forget_changed(self) -> None:
        for name, check in [item for item in self._checks.items() if item[1].done()]:
            del self._checks[name]
            index = self._index_of(name)
            if index is None or not self._slots[index].is_ready:
                continue
            # Files that are gone need not be: what is loaded is still right.
            if check.exception() is None and check.result() != self._slots[index].version:
                logger.info("adapter %s has changed and is read again", name)
                self._slots[index].name = ""


def _ignore() -> None:
    return
