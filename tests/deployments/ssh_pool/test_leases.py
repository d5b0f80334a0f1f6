"""The book of hosts in use."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.ssh_pool.leases import (
    FIRST_PAUSE_S,
    MAX_PAUSE_S,
    Lease,
    LeaseBook,
    LeaseBookError,
    Leases,
    LeaseState,
)


def lease(node_id: str, state: LeaseState = LeaseState.RUNNING, expires_s: float = 0) -> Lease:
    return Lease(node_id=node_id, tags={}, state=state, expires_s=expires_s)


def test_what_is_changed_is_there_for_the_next_process(tmp_path: Path) -> None:
    with LeaseBook(tmp_path, "c").change() as leases:
        leases.leases["a"] = lease("a-1")
    assert LeaseBook(tmp_path, "c").read().host_of("a-1") == "a"
    assert LeaseBook(tmp_path, "other").read() == Leases()


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    book = LeaseBook(tmp_path, "c")

    def fail() -> None:
        with book.change() as leases:
            leases.leases["a"] = lease("a-1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert book.read() == Leases()


def test_changes_of_many_threads_are_all_kept(tmp_path: Path) -> None:
    book = LeaseBook(tmp_path, "c")

    def add(number: int) -> None:
        with book.change() as leases:
            leases.leases[f"h{number}"] = lease(f"h{number}-1")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(40)))
    assert len(book.read().leases) == 40


def test_a_name_with_a_path_in_it_stays_in_the_folder(tmp_path: Path) -> None:
    assert LeaseBook(tmp_path, "../x/y").path.parent == tmp_path


def test_a_file_that_makes_no_sense_is_named_with_what_to_do(tmp_path: Path) -> None:
    book = LeaseBook(tmp_path, "c")
    book.path.write_text('{"leases": 3}')
    with pytest.raises(LeaseBookError, match=r"c\.json: cannot be read: .*delete the file"):
        book.read()


@pytest.mark.parametrize("state", [LeaseState.CLAIMING, LeaseState.STOPPING])
def test_what_a_process_left_unfinished_is_void_after_a_while(state: LeaseState) -> None:
    leases = Leases(leases={"a": lease("a-1", state, expires_s=100)})
    assert not leases.is_free("a", 99)
    assert leases.is_free("a", 101)
    assert leases.running() == {}


def test_a_host_that_fails_again_and_again_is_left_alone_longer() -> None:
    leases = Leases()
    leases.note_trouble("a", "x", 0)
    assert not leases.is_free("a", FIRST_PAUSE_S - 1)
    assert leases.is_free("a", FIRST_PAUSE_S + 1)
    for _ in range(30):
        leases.note_trouble("a", "x", 0)
    assert leases.is_free("a", MAX_PAUSE_S + 1)
    assert not leases.is_free("a", MAX_PAUSE_S - 1)
