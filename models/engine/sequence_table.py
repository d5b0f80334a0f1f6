"""Every unfinished sequence of an engine, in exactly one place: running, waiting or parked.

Running sequences own blocks, the others none. Nothing is chosen here: the scheduler and the step
recorder do that, and this keeps the books.
"""

from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence

from models.engine.block_manager import BlockManager
from models.engine.fair_shares import FairShares
from models.engine.sequence import Sequence, SequenceStatus
from models.engine.waiting_queue import WaitingQueue


class SequenceTable:
    """The books; `running` and `waiting` are for others to read."""

    def __init__(self, blocks: BlockManager) -> None:
        self.blocks = blocks
        self.running: list[Sequence] = []  # in Sequence.order
        self.waiting = WaitingQueue()
        self.shares = FairShares()
        self.num_preemptions = 0  # since the start
        self._by_request: dict[str, list[Sequence]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_request)

    @property
    def num_slots(self) -> int:
        """Sequences that run, or will when those that run have forked."""
        return sum(sequence.num_slots for sequence in self.running)

    def add(self, sequences: AbstractSequence[Sequence]) -> None:
        """A new request's sequences; they wait."""
        first = sequences[0]
        assert first.request_id not in self._by_request, "request ids are unique"
        self._by_request[first.request_id] = list(sequences)
        self.shares.begin(first.tenant)
        for sequence in sequences:
            self.waiting.push(sequence)

    def of_request(self, request_id: str) -> AbstractSequence[Sequence]:
        """The unfinished sequences of a request; none where it is unknown."""
        return self._by_request.get(request_id, ())

    def start(self, sequence: Sequence, block_table: list[int], num_cached_tokens: int) -> None:
        """A sequence that its caller took out of the queue runs, on these blocks."""
        sequence.block_table = block_table
        self.note_room(sequence)
        sequence.num_computed_tokens = num_cached_tokens
        sequence.num_published_blocks = num_cached_tokens // self.blocks.block_size
        if not sequence.output_token_ids:
            sequence.num_cached_tokens = num_cached_tokens
        sequence.status = SequenceStatus.RUNNING
        self._run([sequence])

    def note_room(self, sequence: Sequence) -> None:
        """Its blocks are its own from here to the end of the last one."""
        sequence.next_block_at = len(sequence.block_table) * self.blocks.block_size - 1

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks. It waits again; a beam with nothing to compute until
        its group advances is parked."""
        is_idle = sequence.num_computed_tokens == sequence.num_tokens
        self.running.remove(sequence)
        self.blocks.release(sequence.block_table)
        sequence.num_computed_tokens = 0
        sequence.num_published_blocks = 0
        sequence.next_block_at = 0
        sequence.is_plain = False
        if sequence.wants_prompt_logprobs:
            sequence.prompt_logprobs.clear()  # the prompt is computed anew
        self.num_preemptions += 1
        if is_idle:
            sequence.status = SequenceStatus.PARKED
        else:
            self._wait(sequence)

    def add_forks(self, forks: list[Sequence]) -> None:
        """New continuations of a running sequence, on its blocks."""
        for fork in forks:
            self.blocks.share(fork.block_table)
        self._by_request[forks[0].request_id].extend(forks)
        self._run(forks)

    def replace_beams(self, beams: list[Sequence], new_forks: Iterable[Sequence]) -> None:
        """A request's beams from here on; the new ones among them run on their parents' blocks, and
        those that were parked wait."""
        request_id = beams[0].request_id
        for fork in new_forks:
            if fork.status is SequenceStatus.RUNNING:
                self.blocks.share(fork.block_table)
                self._run([fork])
        kept = set(map(id, beams))
        for sequence in self._by_request[request_id]:
            if id(sequence) not in kept:
                self._take_out(sequence)
        self._by_request[request_id] = list(beams)

    def unpark(self, sequence: Sequence) -> None:
        """A parked beam has something to compute."""
        if sequence.status is SequenceStatus.PARKED:
            self._wait(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget an unfinished sequence, wherever it is, and free its blocks."""
        self._take_out(sequence)
        group = self._by_request[sequence.request_id]
        group.remove(sequence)
        if not group:
            del self._by_request[sequence.request_id]
            self.shares.end(sequence.tenant)

    def check(self) -> None:
        """Assert that owned + free = total, and that every sequence is in exactly one place."""
        unfinished = [seq for group in self._by_request.values() for seq in group]
        self.blocks.check([seq.block_table for seq in unfinished])
        running = [seq for seq in unfinished if seq.status is SequenceStatus.RUNNING]
        waiting = [seq for seq in unfinished if seq.status is SequenceStatus.WAITING]
        assert sorted(map(id, running)) == sorted(map(id, self.running))
        assert sorted(map(id, waiting)) == sorted(map(id, self.waiting))
        owners = {id(seq) for seq in unfinished if seq.block_table}
        assert owners == {id(seq) for seq in running}, "only running sequences own blocks"
        self.shares.check(group[0].tenant for group in self._by_request.values())

    def _run(self, sequences: list[Sequence]) -> None:
        self.running.extend(sequences)
        self.running.sort(key=lambda sequence: sequence.order)

    def _wait(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.WAITING
        self.waiting.push(sequence)

    def _take_out(self, sequence: Sequence) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        self.blocks.release(sequence.block_table)
        sequence.status = SequenceStatus.FINISHED
