"""Chooses which tokens a step computes, and records what came of it. Integers only.

There is no prefill phase and no decode phase: every step gives each sequence tokens until
`num_computed_tokens` catches up with the tokens it has. Within a priority, running sequences that
need one token come first, then running ones with longer stretches (chunked prefill), then waiting
ones in order of arrival. A more important priority is served whole before the next one.

Sequences that run out of blocks are preempted by recompute: they lose their blocks and wait again
at the place their arrival gives them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from cluster.types import TokenDelta, TokenLogprobs
from models.engine.adapter_slots import AdapterSlots
from models.engine.batch import Batch, end_token_ids, prompt_logprobs_row
from models.engine.beam_group import BeamGroup
from models.engine.beam_search import BeamSearch
from models.engine.block_manager import BlockCopy, BlockManager
from models.engine.deltas import failed_delta, hypothesis_deltas, token_delta
from models.engine.sequence import Sequence, SequenceStatus
from models.engine.step_inputs import BeamCandidates, StepOutputs
from models.engine.stop_string_tail import StopStringTail
from models.engine.waiting_queue import WaitingQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What a step and the running set may hold."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_prefix_caching: bool = True


class Scheduler:
    """Owns every unfinished sequence. One call of `schedule`, one of `update`, in turn."""

    def __init__(
        self,
        blocks: BlockManager,
        limits: SchedulerLimits,
        *,
        eos_token_ids: frozenset[int],
        adapters: AdapterSlots,
        token_bytes: Callable[[int], bytes] | None = None,
    ) -> None:
        """`token_bytes` spells tokens, for the stop strings of beams."""
        self._blocks = blocks
        self._limits = limits
        self._eos_token_ids = eos_token_ids
        self._running: list[Sequence] = []  # in Sequence.order
        self._waiting = WaitingQueue()
        self._by_request: dict[str, list[Sequence]] = {}
        self._beam_groups: dict[str, BeamGroup] = {}
        self._token_bytes = token_bytes
        self._adapters = adapters
        # The most important priority that lost blocks in this step: it and those below it may
        # not admit, or the victim would come straight back.
        self._preempted_priority: int | None = None
        # Totals since the start.
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_waiting_prefill_tokens(self) -> int:
        """Tokens that waiting and running sequences still have to compute before they decode."""
        waiting = sum(seq.num_tokens for seq in self._waiting)
        return waiting + sum(
            max(0, seq.num_tokens - 1 - seq.num_computed_tokens) for seq in self._running
        )

    @property
    def has_unfinished(self) -> bool:
        return bool(self._by_request)

    def add(self, *sequences: Sequence) -> None:
        """Queue a new request: one sequence, or those that are resumed. Its caller has checked that
        they can fit.
        """
        first = sequences[0]
        assert first.request_id not in self._by_request, "request ids are unique"
        self._by_request[first.request_id] = list(sequences)
        if first.params.beam is not None:
            self._beam_groups[first.request_id] = self._new_beam_group(first)
        for sequence in sequences:
            sequence.end_token_ids = end_token_ids(sequence.params, self._eos_token_ids)
            sequence.limit_to(self._limits.max_model_len)
            self._waiting.push(sequence)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forget a request, or one of its sequences, and free the blocks. What is unknown or has
        finished is no error; beams belong together, and none of them is forgotten alone.
        """
        group = self._by_request.get(request_id, [])
        dropped = list(group)
        if index is not None:
            is_beam = request_id in self._beam_groups
            dropped = [s for s in group if s.index == index and s.num_slots == 1 and not is_beam]
        for sequence in dropped:
            self._drop(sequence)
            group.remove(sequence)
        if not group:
            self._by_request.pop(request_id, None)
            self._beam_groups.pop(request_id, None)

    def waiting_for_adapter(self, name: str) -> set[str]:
        """The requests with sequences that wait with this adapter."""
        return {sequence.request_id for sequence in self._waiting.with_adapter(name)}

    def schedule(self) -> Batch:
        """Choose the next step. Blocks are taken here; nothing else about a sequence changes."""
        batch = Batch(max_num_tokens=self._limits.max_num_batched_tokens)
        self._preempted_priority = None
        self._adapters.begin_step(self._running)
        running = self._running_by_priority()
        for priority in sorted({*running, *self._waiting.priorities()}):
            self._continue_running(batch, running.get(priority, []))
            self._admit_waiting(batch, priority)
        return batch

    def update(self, batch: Batch, outputs: StepOutputs) -> list[TokenDelta]:
        """Record a computed step: append tokens, fork, finish. Plain tokens go to their sequences'
        outlets; returned is what else there is to tell."""
        deltas: list[TokenDelta] = []
        row = self._update_singles(batch, outputs, deltas)
        self._update_chunks(batch, outputs, row, deltas)
        return deltas

    def check(self) -> None:
        """Assert that owned + free = total, and that every sequence is in exactly one place."""
        unfinished = [seq for group in self._by_request.values() for seq in group]
        self._blocks.check([seq.block_table for seq in unfinished])
        running = [seq for seq in unfinished if seq.status is SequenceStatus.RUNNING]
        waiting = [seq for seq in unfinished if seq.status is SequenceStatus.WAITING]
        assert sorted(map(id, running)) == sorted(map(id, self._running))
        assert sorted(map(id, waiting)) == sorted(map(id, self._waiting))
        owners = {id(seq) for seq in unfinished if seq.block_table}
        assert owners == {id(seq) for seq in running}, "only running sequences own blocks"

    # -- schedule ------------------------------------------------------------------------------

    def _running_by_priority(self) -> dict[int, list[Sequence]]:
        groups = itertools.groupby(self._running, key=attrgetter("priority"))
        return {priority: list(group) for priority, group in groups}

    def _continue_running(self, batch: Batch, candidates: list[Sequence]) -> None:
        """Give running sequences of one priority what they lack, those that lack one token first.
        A beam that waits for the others of its group lacks nothing.
        """
        singles = [seq for seq in candidates if seq.num_tokens - seq.num_computed_tokens == 1]
        for sequence in singles[: batch.num_tokens_left]:
            if sequence.num_computed_tokens < sequence.next_block_at:
                batch.singles.append(sequence)
            else:
                self._continue(batch, sequence)
        if len(singles) < len(candidates):
            for sequence in candidates:
                if sequence.num_tokens - sequence.num_computed_tokens > 1:
                    self._continue(batch, sequence)

    def _continue(self, batch: Batch, sequence: Sequence) -> None:
        """Give a running sequence as many tokens as it lacks and the budget has."""
        num_computed = sequence.num_computed_tokens
        num_new = min(sequence.num_tokens - num_computed, batch.num_tokens_left)
        if num_new == 0 or sequence.status is not SequenceStatus.RUNNING:
            return  # not running: preempted for one before it
        copies = self._extend_or_preempt(batch, sequence, num_new)
        if copies is not None:
            batch.block_copies.extend(copies)
            batch.add(sequence, num_new)
            self._publish(sequence, num_new)

    def _extend_or_preempt(
        self, batch: Batch, sequence: Sequence, num_new_tokens: int
    ) -> list[BlockCopy] | None:
        """Find room for a running sequence, at the cost of less important ones, or of itself."""
        num_computed = sequence.num_computed_tokens
        while True:
            copies = self._blocks.try_extend(
                sequence.block_table, num_computed, num_computed + num_new_tokens
            )
            if copies is not None:
                self._note_room(sequence)
                return copies
            scheduled = {id(seq) for seq in batch.sequences()}
            victim = next(seq for seq in reversed(self._running) if id(seq) not in scheduled)
            self._preempt(victim)
            if victim is sequence:
                return None

    def _admit_waiting(self, batch: Batch, priority: int) -> None:
        held = self._adapters.held
        while sequence := self._waiting.first(priority, but_adapters=held):
            floor = self._preempted_priority
            if batch.num_tokens_left == 0 or (floor is not None and floor <= priority):
                return
            if sequence.adapter and not self._adapters.try_assign(sequence):
                continue
            if not self._try_admit(batch, sequence):
                return
            self._waiting.pop(sequence)

    def _try_admit(self, batch: Batch, sequence: Sequence) -> bool:
        """Start a waiting sequence, at the cost of running ones of lower priorities only."""
        while self._num_slots() + sequence.num_slots > self._limits.max_num_seqs:
            if not self._preempt_below(batch, sequence.priority):
                return False
        while True:
            cached = self._cached_prefix(sequence)
            num_cached = len(cached) * self._blocks.block_size
            num_new = min(sequence.num_tokens - num_cached, batch.num_tokens_left)
            table = self._blocks.try_admit(cached, num_cached + num_new)
            if table is not None:
                break
            if not self._preempt_below(batch, sequence.priority) and not self._preempt_idle(batch):
                return False
        self._start(sequence, table, num_cached)
        batch.add(sequence, num_new)
        self._publish(sequence, num_new)
        return True

    def _start(self, sequence: Sequence, block_table: list[int], num_cached_tokens: int) -> None:
        sequence.block_table = block_table
        self._note_room(sequence)
        sequence.num_computed_tokens = num_cached_tokens
        sequence.num_published_blocks = num_cached_tokens // self._blocks.block_size
        if not sequence.output_token_ids:
            sequence.num_cached_tokens = num_cached_tokens
        sequence.status = SequenceStatus.RUNNING
        self._running.append(sequence)
        self._running.sort(key=lambda seq: seq.order)

    def _note_room(self, sequence: Sequence) -> None:
        """Its blocks are its own from here to the end of the last one."""
        sequence.next_block_at = len(sequence.block_table) * self._blocks.block_size - 1

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """Cached blocks of the sequence's beginning; at least one token is left to compute."""
        if not self._limits.enable_prefix_caching or sequence.wants_prompt_logprobs:
            return []
        num_blocks = (sequence.num_tokens - 1) // self._blocks.block_size
        hashes = sequence.block_hashes(num_blocks, self._blocks.block_size)
        return self._blocks.match_prefix(hashes)

    def _publish(self, sequence: Sequence, num_new_tokens: int) -> None:
        """Offer the blocks that this step fills. Sequences of the same step may already read
        them: in every layer all KV of a step is written before any of it is attended to.
        """
        if not self._limits.enable_prefix_caching:
            return
        num_full = (sequence.num_computed_tokens + num_new_tokens) // self._blocks.block_size
        if num_full == sequence.num_published_blocks:
            return
        hashes = sequence.block_hashes(num_full, self._blocks.block_size)
        for index in range(sequence.num_published_blocks, num_full):
            self._blocks.publish(sequence.block_table[index], hashes[index])
        sequence.num_published_blocks = num_full

    def _num_slots(self) -> int:
        return sum(seq.num_slots for seq in self._running)

    def _preempt_below(self, batch: Batch, priority: int) -> bool:
        """Preempt the least important running sequence if it is of a lower priority."""
        victim = self._running[-1] if self._running else None
        if victim is None or victim.priority <= priority:
            return False
        assert all(sequence is not victim for sequence in batch.sequences())
        self._preempt(victim)
        return True

    def _preempt_idle(self, batch: Batch) -> bool:
        """Preempt a beam that waits for its group, if nothing else can run: the one it waits for
        may be the one that needs the blocks.
        """
        if batch:
            return False
        for victim in reversed(self._running):
            if victim.num_computed_tokens == victim.num_tokens:
                self._preempt(victim)
                return True
        return False

    def _preempt(self, sequence: Sequence) -> None:
        is_idle = sequence.num_computed_tokens == sequence.num_tokens
        self._running.remove(sequence)
        self._blocks.release(sequence.block_table)
        sequence.num_computed_tokens = 0
        sequence.num_published_blocks = 0
        sequence.next_block_at = 0
        sequence.is_plain = False
        if sequence.wants_prompt_logprobs:
            sequence.prompt_logprobs.clear()  # the prompt is computed anew
        self.num_preemptions += 1
        if is_idle:
            sequence.status = SequenceStatus.PARKED
            return
        sequence.status = SequenceStatus.WAITING
        self._waiting.push(sequence)
        floor = self._preempted_priority
        if floor is None or sequence.priority < floor:
            self._preempted_priority = sequence.priority

    # -- update --------------------------------------------------------------------------------

    def _update_singles(self, batch: Batch, outputs: StepOutputs, deltas: list[TokenDelta]) -> int:
        """Record what the singles' rows say, the first of them 0; return the next."""
        token_ids, failed_rows = outputs.token_ids, outputs.failed_rows
        row = num_plain = 0
        for sequence in batch.singles:
            sequence.num_computed_tokens += 1
            if not sequence.is_plain or row in failed_rows:
                row = self._record(sequence, outputs, row, deltas)
                continue
            token_id = token_ids[row]
            row += 1
            sequence.append(token_id)
            if token_id in sequence.end_token_ids or sequence.num_tokens >= sequence.max_num_tokens:
                deltas.append(self._report(sequence, token_id, None))
            else:
                num_plain += 1
                sequence.outlet.add(sequence.key, sequence.index, token_id)
        self.num_generated_tokens += num_plain
        return row

    def _update_chunks(
        self, batch: Batch, outputs: StepOutputs, row: int, deltas: list[TokenDelta]
    ) -> None:
        prompt_logprobs = iter(outputs.prompt_logprobs)
        for sequence, num_new_tokens in batch.chunks:
            if prompt_logprobs_row(sequence, num_new_tokens, 0) is not None:
                sequence.prompt_logprobs.extend(next(prompt_logprobs))
            sequence.num_computed_tokens += num_new_tokens
            if sequence.num_computed_tokens == sequence.num_tokens:
                row = self._record(sequence, outputs, row, deltas)

    def _forks(self, sequence: Sequence) -> list[Sequence]:
        """The sequence and, once its prompt is computed, the continuations it was asked for."""
        forks = [sequence]
        for index in range(1, sequence.num_slots):
            fork = sequence.fork(index)
            self._blocks.share(fork.block_table)
            forks.append(fork)
        if len(forks) > 1:
            sequence.num_pending_forks = 0
            self._by_request[sequence.request_id].extend(forks[1:])
            self._running.extend(forks[1:])
            self._running.sort(key=lambda seq: seq.order)
        return forks

    def _record(
        self, sequence: Sequence, outputs: StepOutputs, row: int, deltas: list[TokenDelta]
    ) -> int:
        """Record what a sampled sequence's rows say, the first of them `row`; return the next."""
        if sequence.params.beam is not None:
            candidates, logprobs = outputs.candidates[row], outputs.logprobs[row]
            deltas += self._report_beam(sequence, candidates, logprobs)
            return row + 1
        for fork in self._forks(sequence):
            if row in outputs.failed_rows:
                deltas.append(self._fail(fork))
            else:
                token_id, logprobs = outputs.token_ids[row], outputs.logprobs[row]
                deltas.append(self._append(fork, token_id, logprobs))
            row += 1
        return row

    def _append(
        self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None
    ) -> TokenDelta:
        if not sequence.output_token_ids and sequence.index == 0:
            self.num_prompt_tokens += sequence.num_prompt_tokens
            self.num_cached_tokens += sequence.num_cached_tokens
        if not sequence.try_accept(token_id):
            self.num_generated_tokens += 1
            return self._fail(sequence)
        sequence.append(token_id)
        if logprobs is not None:
            sequence.cumulative_logprob += logprobs.logprob
        sequence.is_plain = sequence.has_plain_params and (
            len(sequence.output_token_ids) > sequence.params.min_tokens
        )
        return self._report(sequence, token_id, logprobs)

    def _report(
        self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None
    ) -> TokenDelta:
        """What to tell of a token that was appended. A sequence that it ends is retired."""
        self.num_generated_tokens += 1
        ending = sequence.ending(token_id)
        if ending[0] is not None:
            self._retire(sequence)
        is_first = len(sequence.output_token_ids) == 1
        return token_delta(sequence, token_id, logprobs, ending, is_first=is_first)

    def _new_beam_group(self, sequence: Sequence) -> BeamGroup:
        params = sequence.params
        assert params.beam is not None
        search = BeamSearch(
            params.beam,
            end_token_ids=end_token_ids(params, self._eos_token_ids),
            ends_with_stop_string=StopStringTail(
                params.beam.stop_strings, self._token_bytes, min_tokens=params.min_tokens
            ),
        )
        return BeamGroup(sequence, search)

    def _report_beam(
        self, beam: Sequence, candidates: BeamCandidates, logprobs: TokenLogprobs | None
    ) -> list[TokenDelta]:
        """Note what a beam learned. The last one of its group moves all of them on."""
        group = self._beam_groups[beam.request_id]
        if beam.num_pending_forks:
            self.num_prompt_tokens += beam.num_prompt_tokens
            self.num_cached_tokens += beam.num_cached_tokens
            beam.num_pending_forks = 0
        if not beam.output_token_ids:
            group.prompt_logprobs = beam.take_prompt_logprobs()
        group.report(beam, candidates, logprobs)
        return self._advance_beams(group) if group.is_complete else []

    def _advance_beams(self, group: BeamGroup) -> list[TokenDelta]:
        previous = group.beams
        first = previous[0]
        limit = first.params.max_tokens
        is_last = (
            limit is not None and len(first.output_token_ids) + 1 >= limit
        ) or first.num_tokens + 1 >= self._limits.max_model_len
        following = group.advance(is_last_position=is_last)
        for beam in following:
            if beam.is_fork:
                self._place_fork(beam.sequence)
        kept = {id(sequence) for sequence in group.beams}
        for sequence in previous:
            if id(sequence) not in kept:
                self._drop(sequence)
        for beam in following:
            # A beam whose grammar gives up gets an empty mask, and so no further candidates.
            beam.sequence.try_accept(beam.continuation.token_id)
            beam.sequence.append(beam.continuation.token_id)
            beam.sequence.cumulative_logprob = beam.continuation.score
            if beam.continuation.logprobs is not None:
                beam.sequence.output_logprobs.append(beam.continuation.logprobs)
            if beam.sequence.status is SequenceStatus.PARKED:
                beam.sequence.status = SequenceStatus.WAITING
                self._waiting.push(beam.sequence)
        if following:
            self._by_request[first.request_id] = list(group.beams)
            return []
        del self._by_request[first.request_id], self._beam_groups[first.request_id]
        deltas = hypothesis_deltas(first, group.search.hypotheses, group.prompt_logprobs)
        self.num_generated_tokens += sum(len(delta.token_ids) for delta in deltas)
        return deltas

    def _place_fork(self, sequence: Sequence) -> None:
        """Let a fork run on its parent's blocks; a parked one has none and stays parked."""
        if sequence.status is SequenceStatus.RUNNING:
            self._blocks.share(sequence.block_table)
            self._running.append(sequence)
            self._running.sort(key=lambda seq: seq.order)

    def _fail(self, sequence: Sequence) -> TokenDelta:
        """End a sequence that has no next token."""
        self._retire(sequence)
        return failed_delta(sequence, sequence.index)

    def _retire(self, sequence: Sequence) -> None:
        """Take a finished sequence out of the running set and of its request."""
        self._running.remove(sequence)
        self._finish(sequence)
        group = self._by_request[sequence.request_id]
        group.remove(sequence)
        if not group:
            del self._by_request[sequence.request_id]

    def _drop(self, sequence: Sequence) -> None:
        """Take a sequence out of wherever it is, and free its blocks."""
        if sequence.status is SequenceStatus.RUNNING:
            self._running.remove(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.block_table)
        sequence.status = SequenceStatus.FINISHED
