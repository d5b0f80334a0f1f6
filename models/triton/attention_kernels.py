"""Attention over the paged KV cache as Triton kernels; `models.attention.triton` launches them.

A cache layer is [block, key or value, K, S, D]: S slots of D numbers lie together for each head.
Softmax is taken to base 2: scores are scaled by log2(e) beforehand, and a row's normaliser is kept
as the base-2 logarithm of its sum. Products are summed in float32; their factors have the type
DOT, the model's own (under Triton's interpreter, which multiplies no bfloat16, float32).

Shapes: K = key/value heads, G = query heads of one, D = head width, S = slots of a block, W = the
width of a row of block tables. Names in capitals are compile-time constants. Where an array of
integers begins, and how many sequences there are, is not compiled in: a step would wait for it.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def write_kernel(
    k_ptr,
    v_ptr,
    slots_ptr,
    cache_ptr,
    scales_ptr,  # [2, K], of keys and values: what is stored times its scale is the number
    k_stride,
    v_stride,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    IS_SCALED: tl.constexpr,
    LARGEST: tl.constexpr,  # of the cache's type, where it is scaled
):
    """Store one token's key and value of one head. A token whose slot is negative is padding."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    dims = tl.arange(0, PADDED_DIM)
    is_written = dims < tl.where(slot >= 0, HEAD_DIM, 0)
    key = tl.load(k_ptr + token * k_stride + head * HEAD_DIM + dims, mask=is_written)
    value = tl.load(v_ptr + token * v_stride + head * HEAD_DIM + dims, mask=is_written)
    if IS_SCALED:
        key = key.to(tl.float32) / tl.load(scales_ptr + head)
        value = value.to(tl.float32) / tl.load(scales_ptr + NUM_KV_HEADS + head)
        key = tl.minimum(tl.maximum(key, -LARGEST), LARGEST)
        value = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)
    block = slot // BLOCK_SIZE
    row = (block * 2 * NUM_KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE
    place = cache_ptr + row * HEAD_DIM + dims
    tl.store(place, key.to(cache_ptr.dtype.element_ty), mask=is_written)
    value_place = place + NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    tl.store(value_place, value.to(cache_ptr.dtype.element_ty), mask=is_written)


@triton.jit
def _attend_tile(
    q,  # [rows, D]
    rows_max,
    rows_sum,
    sums,  # [rows, D]
    cache_ptr,
    table_ptr,
    positions,  # of the tile's keys
    is_key,  # whether anybody sees the key
    is_seen,  # [rows, keys]
    kv_head,
    score_scale,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    DOT: tl.constexpr,
):
    """One tile of keys and values: the running maxima, sums and weighted sums after it."""
    dims = tl.arange(0, PADDED_DIM)
    blocks = tl.load(table_ptr + positions // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
    rows = (blocks * 2 * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + positions % BLOCK_SIZE
    is_dim = dims < HEAD_DIM
    keys = tl.load(
        cache_ptr + rows[None, :] * HEAD_DIM + dims[:, None],
        mask=is_key[None, :] & is_dim[:, None],
        other=0.0,
    )
    scores = tl.dot(q, keys.to(DOT), input_precision="ieee") * score_scale
    scores = tl.where(is_seen, scores, float("-inf"))
    new_max = tl.maximum(rows_max, tl.max(scores, 1))
    # A row that has seen nothing yet: minus infinity less itself would not be a number.
    base = tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(rows_max - base)
    values = tl.load(
        cache_ptr + (rows[:, None] + NUM_KV_HEADS * BLOCK_SIZE) * HEAD_DIM + dims[None, :],
        mask=is_key[:, None] & is_dim[None, :],
        other=0.0,
    )
    added = tl.dot(weights.to(DOT), values.to(DOT), input_precision="ieee")
    return new_max, rows_sum * shrink + tl.sum(weights, 1), sums * shrink[:, None] + added


@triton.jit
def _averaged(sums, rows_sum, scale_ptr, IS_SCALED: tl.constexpr):
    """Zero for rows that have seen nothing; what is not a number stays so."""
    average = sums / tl.where(rows_sum == 0, 1.0, rows_sum)[:, None]
    if IS_SCALED:
        average = average * tl.load(scale_ptr)
    return average


@triton.jit(do_not_specialize_on_alignment=["tables_ptr", "context_lens_ptr"])
def decode_kernel(
    q_ptr,
    cache_ptr,
    tables_ptr,
    context_lens_ptr,
    scales_ptr,
    out_ptr,  # [sequences, heads, D]
    partial_ptr,  # float32 [sequences, heads, splits, D]: unused for one split
    logsum_ptr,  # float32 [sequences, heads, splits]: as above
    score_scale,  # times log2(e)
    q_stride,
    table_width,
    NUM_SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    TILE: tl.constexpr,
    IS_SCALED: tl.constexpr,
    DOT: tl.constexpr,
):
    """One query token of a sequence, the G heads of one key head together, over one of the splits
    of its context. A sequence without a context is padding, and its output is zero."""
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    context = tl.load(context_lens_ptr + sequence)
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(context - WINDOW, 0)
    first_tile = first_key // TILE
    end_tile = tl.cdiv(context, TILE)
    tiles_per_split = tl.cdiv(end_tile - first_tile, NUM_SPLITS)
    start = first_tile + split * tiles_per_split
    stop = tl.minimum(start + tiles_per_split, end_tile)

    rows = tl.arange(0, GROUP_ROWS)
    dims = tl.arange(0, PADDED_DIM)
    heads = kv_head * GROUP_SIZE + rows
    is_row = rows < GROUP_SIZE
    is_number = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    place = heads[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(q_ptr + sequence * q_stride + place, mask=is_number, other=0.0).to(DOT)
    if IS_SCALED:
        score_scale = score_scale * tl.load(scales_ptr + kv_head)

    rows_max = tl.full([GROUP_ROWS], float("-inf"), tl.float32)
    rows_sum = tl.zeros([GROUP_ROWS], tl.float32)
    sums = tl.zeros([GROUP_ROWS, PADDED_DIM], tl.float32)
    for tile in range(start, stop):
        positions = tile * TILE + tl.arange(0, TILE)
        is_key = (positions < context) & (positions >= first_key)
        rows_max, rows_sum, sums = _attend_tile(
            q,
            rows_max,
            rows_sum,
            sums,
            cache_ptr,
            tables_ptr + sequence * table_width,
            positions,
            is_key,
            is_key[None, :],
            kv_head,
            score_scale,
            NUM_KV_HEADS,
            BLOCK_SIZE,
            HEAD_DIM,
            PADDED_DIM,
            DOT,
        )
    sums = _averaged(sums, rows_sum, scales_ptr + NUM_KV_HEADS + kv_head, IS_SCALED)
    num_heads = NUM_KV_HEADS * GROUP_SIZE
    if NUM_SPLITS == 1:
        out = out_ptr + sequence * num_heads * HEAD_DIM + place
        tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=is_number)
    else:
        cells = (sequence * num_heads + heads) * NUM_SPLITS + split
        is_worked = is_row[:, None] & (dims < tl.where(start < stop, HEAD_DIM, 0))[None, :]
        tl.store(partial_ptr + cells[:, None] * HEAD_DIM + dims[None, :], sums, mask=is_worked)
        tl.store(logsum_ptr + cells, _logsum(rows_max, rows_sum), mask=is_row)


@triton.jit
def _logsum(rows_max, rows_sum):
    """Minus infinity for rows that have seen nothing; what is not a number stays so."""
    used_sum = tl.where(rows_sum == 0, 1.0, rows_sum)
    return tl.where(rows_sum == 0, float("-inf"), rows_max + tl.log2(used_sum))


@triton.jit
def reduce_kernel(
    partial_ptr,
    logsum_ptr,
    out_ptr,
    NUM_SPLITS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
):
    """Put the splits of one sequence and head together."""
    cell = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    splits = tl.arange(0, PADDED_SPLITS)
    dims = tl.arange(0, PADDED_DIM)
    logsum = tl.load(
        logsum_ptr + cell * NUM_SPLITS + splits, mask=splits < NUM_SPLITS, other=float("-inf")
    )
    largest = tl.max(logsum, 0)
    is_used = logsum != float("-inf")  # what is not a number goes on
    shares = tl.exp2(logsum - tl.where(largest == float("-inf"), 0.0, largest))
    is_dim = dims < HEAD_DIM
    partial = tl.load(
        partial_ptr + (cell * NUM_SPLITS + splits)[:, None] * HEAD_DIM + dims[None, :],
        mask=is_used[:, None] & is_dim[None, :],
        other=0.0,
    )
    total = tl.sum(shares, 0)
    out = tl.sum(partial * shares[:, None], 0) / tl.where(total == 0, 1.0, total)
    tl.store(out_ptr + cell * HEAD_DIM + dims, out.to(out_ptr.dtype.element_ty), mask=is_dim)


@triton.jit
def _sequence_of(program, query_starts_ptr, num_sequences, QUERIES: tl.constexpr):
    """Whose queries a program of the prefill has. Programs are dealt out so that sequence s begins
    with number starts[s] // QUERIES + s: each has enough of them, whatever the lengths."""
    first_start = tl.load(query_starts_ptr)
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        start = tl.load(query_starts_ptr + middle) - first_start
        if start // QUERIES + middle <= program:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(
    do_not_specialize=["num_sequences"],
    do_not_specialize_on_alignment=["tables_ptr", "query_starts_ptr", "context_lens_ptr"],
)
def prefill_kernel(
    q_ptr,
    cache_ptr,
    tables_ptr,
    query_starts_ptr,  # of the sequences, and the end: rows of q
    context_lens_ptr,
    scales_ptr,
    out_ptr,
    score_scale,  # times log2(e)
    num_sequences,
    q_stride,
    table_width,
    WINDOW: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    ROWS: tl.constexpr,  # queries times the G heads of one key head, and what is left over
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    TILE: tl.constexpr,
    IS_SCALED: tl.constexpr,
    DOT: tl.constexpr,
):
    """A run of one sequence's queries over everything that they see."""
    QUERIES: tl.constexpr = ROWS // GROUP_SIZE
    program = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = _sequence_of(program, query_starts_ptr, num_sequences, QUERIES)
    query_start = tl.load(query_starts_ptr + sequence)
    query_len = tl.load(query_starts_ptr + sequence + 1) - query_start
    programs_before = (query_start - tl.load(query_starts_ptr)) // QUERIES + sequence
    first_query = (program - programs_before) * QUERIES
    if first_query >= query_len:
        return
    context = tl.load(context_lens_ptr + sequence)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, PADDED_DIM)
    queries = first_query + rows // GROUP_SIZE
    heads = kv_head * GROUP_SIZE + rows % GROUP_SIZE
    is_row = (rows < QUERIES * GROUP_SIZE) & (queries < query_len)
    is_number = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    tokens = (query_start + queries).to(tl.int64)
    place = heads[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(q_ptr + tokens[:, None] * q_stride + place, mask=is_number, other=0.0).to(DOT)
    if IS_SCALED:
        score_scale = score_scale * tl.load(scales_ptr + kv_head)

    own_positions = context - query_len + queries
    last_position = context - query_len + tl.minimum(first_query + QUERIES, query_len) - 1
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(context - query_len + first_query - WINDOW + 1, 0)
    rows_max = tl.full([ROWS], float("-inf"), tl.float32)
    rows_sum = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    for tile in range(first_key // TILE, last_position // TILE + 1):
        positions = tile * TILE + tl.arange(0, TILE)
        is_key = (positions <= last_position) & (positions >= first_key)
        is_seen = is_key[None, :] & (positions[None, :] <= own_positions[:, None])
        if WINDOW > 0:
            is_seen = is_seen & (positions[None, :] > own_positions[:, None] - WINDOW)
        rows_max, rows_sum, sums = _attend_tile(
            q,
            rows_max,
            rows_sum,
            sums,
            cache_ptr,
            tables_ptr + sequence.to(tl.int64) * table_width,
            positions,
            is_key,
            is_seen,
            kv_head,
            score_scale,
            NUM_KV_HEADS,
            BLOCK_SIZE,
            HEAD_DIM,
            PADDED_DIM,
            DOT,
        )
    sums = _averaged(sums, rows_sum, scales_ptr + NUM_KV_HEADS + kv_head, IS_SCALED)
    out = out_ptr + tokens[:, None] * (NUM_KV_HEADS * GROUP_SIZE * HEAD_DIM) + place
    tl.store(out, sums.to(out_ptr.dtype.element_ty), mask=is_number)
