"""Chooses which tokens a step computes. Integers only.

There is no prefill phase and no decode phase: every step gives each sequence tokens until
`num_computed_tokens` catches up with the tokens it has. Within a priority, running sequences that
need one token come first. What is left goes to tenants, the least served first: to each one's
running sequences with longer stretches (chunked prefill), then to its waiting ones in order of
arrival. A more important priority is served whole before the next one; batch sequences beside
online ones get a small share of the step's time (`batch_share`), and so do prompts that need
several steps beside streams (`long_prompts`).

Sequences that run out of blocks are preempted by recompute: they lose their blocks and wait again
at the place their arrival gives them. A tenant that waits while others run more than their fair
share of sequences takes the places of their latest ones. Who is next and finds too little room is
waited for: nobody of its priority or below starts before it.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from operator import attrgetter

from cluster.config import SpeculativeConfig
from cluster.types import PRIORITY_BATCH, TokenDelta
from models.engine.adapter_slots import AdapterSlots
from models.engine.batch import Batch
from models.engine.batch_share import BatchShare
from models.engine.block_manager import BlockCopy, BlockManager
from models.engine.long_prompts import LongPrompts
from models.engine.prefix_cache import PrefixCache
from models.engine.scheduler_limits import SchedulerLimits
from models.engine.sequence import Sequence, SequenceStatus
from models.engine.sequence_table import SequenceTable
from models.engine.speculation import Speculator
from models.engine.step_inputs import StepOutputs
from models.engine.step_recorder import StepRecorder


class Scheduler:
    """Owns every unfinished sequence. One call of `schedule`, one of `update`, in turn; a step that
    was interrupted has no `update`."""

    def __init__(
        self,
        blocks: BlockManager,
        limits: SchedulerLimits,
        *,
        eos_token_ids: frozenset[int],
        adapters: AdapterSlots,
        token_bytes: Callable[[int], bytes] | None = None,
        speculative_config: SpeculativeConfig | None = None,
    ) -> None:
        """`token_bytes` spells tokens, for the stop strings of beams. `speculative_config`: None:
        nothing is guessed."""
        self._blocks = blocks
        self._limits = limits
        self._table = SequenceTable(blocks)
        self._recorder = StepRecorder(
            self._table,
            max_model_len=limits.max_model_len,
            eos_token_ids=eos_token_ids,
            token_bytes=token_bytes,
        )
        self._prefixes = PrefixCache(blocks, is_enabled=limits.enable_prefix_caching)
        self._adapters = adapters
        self._batch_share = BatchShare(limits.max_batch_slowdown)
        self._speculator: Speculator | None = None
        if speculative_config is not None:
            self._speculator = Speculator(
                speculative_config,
                blocks,
                max_num_rows=limits.max_step_rows,
                token_cost=self._batch_share.token_cost,
            )
        self._long_prompts = LongPrompts(limits)
        # The most important priority that lacks room in this step: it lost blocks, or the next of
        # its tenants found too little. Nobody of it or below is admitted: a victim would come
        # straight back, and what becomes free bit by bit would never be enough for a large one.
        self._full_priority: int | None = None

    @property
    def num_running(self) -> int:
        return len(self._table.running)

    @property
    def num_waiting(self) -> int:
        return len(self._table.waiting)

    @property
    def num_waiting_prefill_tokens(self) -> int:
        """Tokens that waiting and running sequences still have to compute before they decode."""
        waiting = sum(seq.num_tokens for seq in self._table.waiting)
        return waiting + sum(
            max(0, seq.num_tokens - 1 - seq.num_computed_tokens) for seq in self._table.running
        )

    @property
    def num_preemptions(self) -> int:
        """Since the start."""
        return self._table.num_preemptions

    @property
    def num_prompt_tokens(self) -> int:
        """Of prompts whose first token was chosen, since the start."""
        return self._recorder.num_prompt_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Of these, those that were found in the prefix cache."""
        return self._recorder.num_cached_tokens

    @property
    def num_generated_tokens(self) -> int:
        """Since the start."""
        return self._recorder.num_generated_tokens

    @property
    def num_drafts(self) -> int:
        """Guesses that were verified, since the start."""
        return 0 if self._speculator is None else self._speculator.num_drafts

    @property
    def num_draft_tokens(self) -> int:
        """Tokens of these."""
        return 0 if self._speculator is None else self._speculator.num_draft_tokens

    @property
    def num_accepted_tokens(self) -> int:
        """Of these, those that came true."""
        return 0 if self._speculator is None else self._speculator.num_accepted_tokens

    @property
    def has_unfinished(self) -> bool:
        return bool(self._table)

    def add(self, *sequences: Sequence) -> None:
        """Queue a new request: one sequence, or those that are resumed. Its caller has checked that
        they can fit.
        """
        self._recorder.begin(sequences)
        self._table.add(sequences)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Forget a request, or one of its sequences, and free the blocks. What is unknown or has
        finished is no error; beams belong together, and none of them is forgotten alone.
        """
        dropped = list(self._table.of_request(request_id))
        if index is not None:
            has_beams = self._recorder.has_beams(request_id)
            dropped = [
                s for s in dropped if s.index == index and s.num_slots == 1 and not has_beams
            ]
        for sequence in dropped:
            self._table.drop(sequence)
        if not self._table.of_request(request_id):
            self._recorder.forget(request_id)

    def waiting_for_adapter(self, name: str) -> set[str]:
        """The requests with sequences that wait with this adapter."""
        return {sequence.request_id for sequence in self._table.waiting.with_adapter(name)}

    def schedule(self, *, may_guess: bool = True) -> Batch:
        """Choose the next step. Blocks are taken here; nothing else about a sequence changes.

        `may_guess`: whether sequences may guess tokens, where the scheduler has them do that.
        """
        batch = self._choose()
        # Where beams that wait for their groups have all the room, those they wait for need it.
        while not batch and self._park_idle():
            batch = self._choose()
        if self._speculator is not None and may_guess:
            self._speculator.add_drafts(batch)
        self._charge(batch)
        return batch

    def _choose(self) -> Batch:
        batch = Batch(max_num_tokens=self._limits.max_num_batched_tokens)
        self._full_priority = None
        self._adapters.begin_step(self._table.running)
        if self._table.shares.is_contended:
            self._make_room_for_the_unserved()
        running = self._running_by_priority()
        for priority in sorted({*running, *self._table.waiting.priorities()}):
            if priority >= PRIORITY_BATCH:
                self._limit_to_batch_share(batch)
            self._continue_singles(batch, running.get(priority, []))
            self._serve_tenants(batch, priority, running.get(priority, []))
        return batch

    def update(self, batch: Batch, outputs: StepOutputs, *, seconds: float) -> list[TokenDelta]:
        """Record a computed step, which took so long. Plain tokens go to their sequences' outlets;
        returned is what else there is to tell."""
        self._batch_share.observe(
            num_tokens=batch.num_tokens, num_batch_tokens=batch.num_batch_tokens, seconds=seconds
        )
        self._long_prompts.observe(batch, seconds)
        for sequence, num_tokens in batch.unpublished:
            self._prefixes.publish(sequence, num_tokens)
        deltas = self._recorder.record(batch, outputs)
        if self._speculator is not None:
            self._speculator.observe(batch, seconds=seconds)
            self._take_back_guesses(batch)
        return deltas

    def give_up(self, batch: Batch) -> None:
        """A step was interrupted: nothing of it is recorded."""
        self._take_back_guesses(batch)

    def _take_back_guesses(self, batch: Batch) -> None:
        """Leave sequences the blocks that their tokens need, and offer those that are full."""
        for draft in batch.drafts:
            sequence = draft.sequence
            if sequence.status is SequenceStatus.RUNNING:
                self._blocks.shrink(sequence.block_table, sequence.num_tokens)
                self._table.note_room(sequence)
                self._prefixes.publish(sequence, sequence.num_computed_tokens)

    def try_reserve_next(self, batch: Batch) -> bool:
        """Whether the step after this one, which is under way, may decode the same sequences once
        more: none ends by its length or is about to guess tokens, nobody would join them, and there
        is room for the keys and values. That room belongs to the sequences already when the next
        step is chosen.
        """
        num_running = self._table.num_slots
        if self.num_waiting and num_running < self._limits.max_num_seqs:
            return False
        if len(batch.singles) < len(self._table.running):
            return False  # a long prompt that has nothing in this step
        if any(seq.num_tokens + 1 >= seq.max_num_tokens for seq in batch.singles):
            return False
        if self._speculator is not None and self._speculator.would_guess(batch):
            return False
        size = self._blocks.block_size
        for sequence in batch.singles:
            table, position = sequence.block_table, sequence.num_computed_tokens + 1
            is_full = position == len(table) * size
            if is_full and self._blocks.try_extend(table, position, position + 1) is None:
                return False
        return True

    def check(self) -> None:
        """Assert that owned + free = total, and that every sequence is in exactly one place."""
        self._table.check()

    # -- fairness ------------------------------------------------------------------------------

    def _make_room_for_the_unserved(self) -> None:
        """Where a tenant waits with fewer running sequences than its fair share, preempt the latest
        ones of tenants that run more than theirs."""
        table = self._table
        for priority in table.waiting.priorities():
            if table.running and table.running[-1].priority > priority:
                continue  # a less important one gives way when somebody is admitted
            slots, share = self._slots_by_tenant(priority)
            if max(slots.values(), default=0) <= share:
                continue
            for tenant in table.shares.in_order(table.waiting.tenants(priority)):
                head = self._next_waiting(priority, tenant)
                if head is not None and slots[tenant] + head.num_slots <= share:
                    self._displace(head, slots, share)

    def _slots_by_tenant(self, priority: int) -> tuple[Counter[str], int]:
        """How many sequences each tenant runs at a priority, and how many are its fair share."""
        slots: Counter[str] = Counter()
        for sequence in self._table.running:
            if sequence.priority == priority:
                slots[sequence.tenant] += sequence.num_slots
        tenants = {*slots, *self._table.waiting.tenants(priority)}
        return slots, max(1, self._limits.max_num_seqs // len(tenants))

    def _displace(self, head: Sequence, slots: Counter[str], share: int) -> None:
        """Preempt sequences of tenants that run their share without them, if that is enough for
        `head`: otherwise they would come back, to be preempted again in the next step."""
        num_slots = self._table.num_slots + head.num_slots - self._limits.max_num_seqs
        cached, num_tokens = self._first_tokens(head, None)
        num_blocks = self._blocks.num_lacking(cached, num_tokens)
        released = Counter(dict.fromkeys(cached, -1))  # those are to stay
        left, victims = slots.copy(), []
        for sequence in reversed(self._table.running):
            if num_slots <= 0 and num_blocks <= 0:
                break
            rest = left[sequence.tenant] - sequence.num_slots
            if sequence.priority == head.priority and rest >= share:
                left[sequence.tenant] = rest
                victims.append(sequence)
                num_slots -= sequence.num_slots
                num_blocks -= self._blocks.count_released(sequence.block_table, released)
        if num_slots <= 0 and num_blocks <= 0:
            for victim in victims:
                slots[victim.tenant] = left[victim.tenant]
                self._table.preempt(victim)

    def _charge(self, batch: Batch) -> None:
        shares = self._table.shares
        if not shares.is_contended:
            return  # a newcomer starts level with whoever is alone here
        for tenant, count in Counter(sequence.tenant for sequence in batch.singles).items():
            shares.charge(tenant, num_output_tokens=count)
        for draft in batch.drafts:
            shares.charge(
                draft.sequence.tenant,
                num_output_tokens=1,
                num_prompt_tokens=len(draft.token_ids),
            )
        for sequence, num_new_tokens in batch.chunks:
            shares.charge(sequence.tenant, num_prompt_tokens=num_new_tokens)
        if batch.layer_slice is not None and batch.layer_slice.is_first:
            chunk = batch.layer_slice.chunk
            shares.charge(chunk.sequence.tenant, num_prompt_tokens=chunk.num_tokens)

    # -- running sequences ---------------------------------------------------------------------

    def _running_by_priority(self) -> dict[int, list[Sequence]]:
        groups = itertools.groupby(self._table.running, key=attrgetter("priority"))
        return {priority: list(group) for priority, group in groups}

    def _limit_to_batch_share(self, batch: Batch) -> None:
        """From here on the step takes batch sequences."""
        if batch.num_online_tokens is not None:
            return  # it has taken more important ones of them
        batch.num_online_tokens = batch.num_tokens
        if batch:
            left = self._batch_share.num_tokens(batch.num_tokens_left)
            batch.max_num_tokens = batch.num_tokens + left
        else:
            batch.is_interruptible = True

    def _continue_singles(self, batch: Batch, candidates: list[Sequence]) -> None:
        """Give running sequences of one priority that lack one token that token."""
        singles = [seq for seq in candidates if seq.num_tokens - seq.num_computed_tokens == 1]
        for sequence in singles[: batch.num_tokens_left]:
            if sequence.num_computed_tokens < sequence.next_block_at:
                batch.singles.append(sequence)
            else:
                self._continue(batch, sequence)

    def _serve_tenants(self, batch: Batch, priority: int, running: list[Sequence]) -> None:
        """Give what is left to running sequences with longer stretches and to waiting ones. A beam
        that waits for the others of its group lacks nothing.

        Where several tenants want something, each admits within its fair share before any of them
        admits more: a place that was made for one is not taken by another. A tenant without running
        sequences may admit one request that is wider than its share.
        """
        longer = [seq for seq in running if seq.num_tokens - seq.num_computed_tokens > 1]
        waiting = self._table.waiting.tenants(priority)
        tenants = self._table.shares.in_order([*(seq.tenant for seq in longer), *waiting])
        if len(tenants) > 1:
            slots, share = self._slots_by_tenant(priority)
            for tenant in tenants:
                self._continue_all(batch, [seq for seq in longer if seq.tenant == tenant])
                head = self._next_waiting(priority, tenant)
                most = share if slots[tenant] or head is None else max(share, head.num_slots)
                self._admit_waiting(batch, priority, tenant, max_slots=most - slots[tenant])
        else:
            self._continue_all(batch, longer)
        for tenant in tenants:
            self._admit_waiting(batch, priority, tenant, max_slots=self._limits.max_num_seqs)

    def _continue_all(self, batch: Batch, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._continue(batch, sequence)

    def _continue(self, batch: Batch, sequence: Sequence) -> None:
        """Give a running sequence as many tokens as it lacks and the budget has."""
        is_layered = self._long_prompts.is_layered(batch, sequence)
        if is_layered:
            num_new = self._long_prompts.next_chunk_tokens(batch, sequence)
        else:
            most = self._long_prompts.num_tokens_left(batch, sequence, sequence.num_cached_tokens)
            num_new = min(sequence.num_tokens - sequence.num_computed_tokens, most)
        if num_new == 0 or sequence.status is not SequenceStatus.RUNNING:
            return  # not running: preempted for one before it
        copies = self._extend_or_preempt(batch, sequence, num_new)
        if copies is not None:
            batch.block_copies.extend(copies)
            if is_layered:
                self._long_prompts.add_layers(batch, sequence, num_new)
            else:
                self._compute(batch, sequence, num_new)

    def _compute(self, batch: Batch, sequence: Sequence, num_new: int) -> None:
        """Put a sequence's next tokens into the step, and offer the blocks that they fill.

        Sequences of the same step may already read them: in every layer all KV of a step is
        written before any of it is attended to. Where the step may be interrupted they are offered
        once it has been computed.
        """
        batch.add(sequence, num_new)
        self._long_prompts.note(batch, sequence, num_new)
        num_tokens = sequence.num_computed_tokens + num_new
        if batch.is_interruptible:
            batch.unpublished.append((sequence, num_tokens))
        else:
            self._prefixes.publish(sequence, num_tokens)

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
                self._table.note_room(sequence)
                return copies
            scheduled = {id(seq) for seq in batch.sequences()}
            running = reversed(self._table.running)
            victim = next(seq for seq in running if id(seq) not in scheduled)
            self._preempt(victim)
            if victim is sequence:
                return None

    # -- waiting sequences ---------------------------------------------------------------------

    def _next_waiting(self, priority: int, tenant: str) -> Sequence | None:
        """A tenant's next sequence, of those whose adapters are there; the others' are seen to."""
        while True:
            sequence = self._table.waiting.first(priority, tenant, but_adapters=self._adapters.held)
            if sequence is None or not sequence.adapter or self._adapters.try_assign(sequence):
                return sequence
            # Its adapter is held from here on.

    def _admit_waiting(self, batch: Batch, priority: int, tenant: str, *, max_slots: int) -> None:
        """Start a tenant's waiting sequences in their order, as long as there is room."""
        while batch.num_tokens_left > 0:
            full = self._full_priority
            if full is not None and full <= priority:
                return
            sequence = self._next_waiting(priority, tenant)
            if sequence is None or sequence.num_slots > max_slots:
                return
            if not self._try_admit(batch, sequence):
                self._note_full(priority)
                return
            max_slots -= sequence.num_slots

    def _try_admit(self, batch: Batch, sequence: Sequence) -> bool:
        """Start a waiting sequence, at the cost of running ones of lower priorities only."""
        while self._table.num_slots + sequence.num_slots > self._limits.max_num_seqs:
            if not self._preempt_below(batch, sequence.priority):
                return False
        while True:
            cached, num_tokens = self._first_tokens(sequence, batch)
            table = self._blocks.try_admit(cached, num_tokens)
            if table is not None:
                break
            if not self._preempt_below(batch, sequence.priority):
                return False
        num_cached = len(cached) * self._blocks.block_size
        self._table.waiting.pop(sequence)
        self._table.start(sequence, table, num_cached)
        self._compute(batch, sequence, num_tokens - num_cached)
        return True

    def _first_tokens(self, sequence: Sequence, batch: Batch | None) -> tuple[list[int], int]:
        """The cached blocks that a waiting sequence would begin with, and how many tokens it would
        have after this step, or at most after any."""
        cached = self._prefixes.find(sequence)
        num_cached = len(cached) * self._blocks.block_size
        most = self._limits.max_num_batched_tokens
        if batch is not None:
            most = self._long_prompts.first_tokens(batch, sequence, num_cached)
        return cached, min(sequence.num_tokens, num_cached + most)

    def _preempt_below(self, batch: Batch, priority: int) -> bool:
        """Preempt the least important running sequence if it is of a lower priority."""
        running = self._table.running
        victim = running[-1] if running else None
        if victim is None or victim.priority <= priority:
            return False
        assert all(sequence is not victim for sequence in batch.sequences())
        self._preempt(victim)
        return True

    def _park_idle(self) -> bool:
        """Preempt a beam that waits for its group."""
        for sequence in reversed(self._table.running):
            if sequence.num_computed_tokens == sequence.num_tokens:
                self._preempt(sequence)
                return True
        return False

    def _preempt(self, sequence: Sequence) -> None:
        self._table.preempt(sequence)
        if sequence.status is not SequenceStatus.PARKED:
            self._note_full(sequence.priority)

    def _note_full(self, priority: int) -> None:
        full = self._full_priority
        self._full_priority = priority if full is None else min(full, priority)
