// Attention over the paged KV cache on a CPU. Plain C interface.
//
// A tile is the query heads of some tokens of one sequence that share a key head. It passes over the
// keys that it sees in chunks, with the running softmax of FlashAttention (Dao et al. 2022): per row
// the largest score, the sum of the weights and the weighted sum of the values. While a chunk is in
// the cache it serves the tile's rows, a strip of them at a time. Keys after a strip's last query, and
// before its window, are left out.
//
// Shapes: T = tokens, H = query heads, K = key/value heads, G = H / K, D = head width, S = slots of a
// block (a multiple of 16), R = rows of a tile or strip.
//
// The layout of a block of the KV cache is this file's own. With P = 4 / sizeof(element) elements in
// a 32-bit lane, an element (slot s, feature d) stands at
//   keys:   ((d / P) * S + s) * P + d % P     16 slots side by side: a lane is a slot
//   values: ((s / P) * D + d) * P + s % P     16 features side by side: a lane is a feature
// so that scores and outputs are sums over whole vectors, and never across a vector.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "team.h"
#include "vectors.h"

namespace {

constexpr int MAX_ROWS = 128;    // of a tile; no key head has more query heads
constexpr int VECTOR_ROWS = 12;  // of a strip by vectors: their accumulators fit the registers
constexpr int CHUNK = 128;       // keys between two corrections of the softmax; no block is larger
constexpr int SPLIT_KEYS = 1024;       // and more for each part of a tile
constexpr int TILES_PER_THREAD = 4;    // or parts: whoever is done early takes another one
constexpr float NEVER = -1e30f;  // the score of a key that is not seen; -inf would give NaN

// The rows of a tile: their queries, the keys they see, and their softmax so far.
template <class T>
struct Rows {
  int count;
  const T *queries[MAX_ROWS];
  int start[MAX_ROWS], limit[MAX_ROWS];  // neither falls from one row to the next
  float top[MAX_ROWS];                   // before it is scaled
  alignas(64) float totals[MAX_ROWS][LANES];
  float *out;  // [R, D]; strips of the matrix unit are whole ones
};

// Where a chunk's keys and values are, by block. Blocks lie anywhere in memory, where no prefetcher
// looks for them: while one chunk is worked on, the next one is fetched.
template <class T>
struct Chunk {
  int num_keys;  // a multiple of 16
  const T *keys[CHUNK / LANES], *values[CHUNK / LANES];
};

// What a thread needs again and again.
struct Workspace {
  Aligned out;       // [MAX_ROWS, D] floats
  Aligned queries;   // [MAX_ROWS, D], for the matrix unit
  Aligned together;  // [CHUNK / 2, D, 2], likewise, where a block's values are too few for it
  int tile_rows = 0;  // which the matrix unit's shapes have; 0: it has none

  explicit Workspace(int D) {
    out.reserve(sizeof(float) * MAX_ROWS * D);
    if (!has_matrix_unit()) return;
    queries.reserve(sizeof(BFloat16) * MAX_ROWS * D);
    together.reserve(sizeof(BFloat16) * CHUNK * D);
  }
  ~Workspace() {
#ifdef __AMX_TILE__
    if (tile_rows) _tile_release();
#endif
  }
};

// Scores and outputs by vectors.
template <class T>
struct VectorUnit {
  static constexpr int ROWS = VECTOR_ROWS, P = PER_LANE<T>;
  static constexpr int KEYS = LANES;  // are taken at once
  const int D, S;
  const bool is_invariant;
  const T *const *queries;
  const Chunk<T> *next = nullptr;  // each line of a chunk that is read fetches one of the next

  VectorUnit(const AttentionStep &s, const Rows<T> &rows, Workspace &)
      : D(s.head_dim), S(s.block_size), is_invariant(s.is_invariant), queries(rows.queries) {}

  static int rows_of_strips(int count) { return count; }

  void begin(const Chunk<T> &chunk, const Chunk<T> &following) {
    next = &following;
    for (int k = chunk.num_keys; k < next->num_keys; k += LANES) {
      fetch(next->keys[k / S] + k % S * P, D / P, S * P);
      fetch(next->values[k / S] + k % S * D, LANES / P * D / LANES, LANES * P);
    }
  }

  // scores[r][k] of the strip of `count` rows from `first` on.
  void score(int first, int count, const Chunk<T> &chunk, int num_keys, float *scores) {
    if (first) next = &chunk;  // the first strip has fetched it
    by_rows(count, [&](auto sums, auto rows) {
      score_rows<sums.value, rows.value>(queries + first, chunk, num_keys, scores);
    });
  }

  // out[r][d] += the weights of a chunk's keys times their values.
  void mix(int count, const Chunk<T> &chunk, int num_keys, const T *weights, float *out) const {
    by_rows(count, [&](auto sums, auto rows) {
      mix_rows<sums.value, rows.value>(chunk, num_keys, weights, out);
    });
  }

 private:
  // Calls with how many sums per row do not wait for each other (an addition takes as long as
  // several can be started in), and with the number of rows, as constants.
  template <class Call>
  void by_rows(int count, Call call) const {
    switch (count) {
#define ROWS_CASE(R)                                                                     \
  case R:                                                                                \
    if (is_invariant) return call(Constant<1>{}, Constant<R>{});                         \
    return call(Constant<(R <= 3 ? 4 : R <= 6 ? 2 : 1)>{}, Constant<R>{});
      ROWS_CASE(1) ROWS_CASE(2) ROWS_CASE(3) ROWS_CASE(4) ROWS_CASE(5) ROWS_CASE(6)
      ROWS_CASE(7) ROWS_CASE(8) ROWS_CASE(9) ROWS_CASE(10) ROWS_CASE(11) ROWS_CASE(12)
#undef ROWS_CASE
    }
  }
  template <int N>
  using Constant = std::integral_constant<int, N>;

  template <int C, int R>
  void score_rows(const T *const *rows, const Chunk<T> &chunk, int num_keys, float *scores) const {
    for (int k = 0; k < num_keys; k += LANES) {
      const T *keys = chunk.keys[k / S] + k % S * P;
      const T *ahead = k < next->num_keys ? next->keys[k / S] + k % S * P : keys;
      Floats acc[C][R];
      for (int c = 0; c < C; c++)
        for (int r = 0; r < R; r++) acc[c][r] = Floats{};
      for (int d = 0; d < D; d += P * C)
        for (int c = 0; c < C; c++) {
          const int feature = d + c * P;
          __builtin_prefetch(ahead + int64_t(feature) * S, 0, 2);
          const T *lanes = keys + int64_t(feature) * S;
          for (int r = 0; r < R; r++) multiply_add(acc[c][r], lanes, rows[r] + feature);
        }
      for (int r = 0; r < R; r++) {
        for (int c = 1; c < C; c++) acc[0][r] += acc[c][r];
        store(acc[0][r], scores + r * CHUNK + k);
      }
    }
  }

  template <int C, int R>  // 16 features at a time
  void mix_rows(const Chunk<T> &chunk, int num_keys, const T *weights, float *out) const {
    for (int d = 0; d < D; d += LANES) {
      Floats acc[C][R];
      for (int r = 0; r < R; r++) acc[0][r] = load(out + r * D + d);
      for (int c = 1; c < C; c++)
        for (int r = 0; r < R; r++) acc[c][r] = Floats{};
      for (int first = 0; first < num_keys; first += LANES) {
        const int64_t place = int64_t(first % S) * D + d * P;
        const T *lanes = chunk.values[first / S] + place;
        const T *ahead = first < next->num_keys ? next->values[first / S] + place : lanes;
        for (int k = 0; k < LANES; k += P * C)
          for (int c = 0; c < C; c++) {
            const int key = k + c * P;
            __builtin_prefetch(ahead + int64_t(key) * D, 0, 2);
            for (int r = 0; r < R; r++)
              multiply_add(acc[c][r], lanes + int64_t(key) * D, weights + r * CHUNK + first + key);
          }
      }
      for (int r = 0; r < R; r++) {
        for (int c = 1; c < C; c++) acc[0][r] += acc[c][r];
        store(acc[0][r], out + r * D + d);
      }
    }
  }
};

#ifdef __AMX_BF16__
// Scores and outputs by the matrix unit: up to 16 rows by 16 keys, or features, at a time. Its second
// operand wants pairs of elements side by side, which is how blocks are laid out. A product takes as
// long for 16 keys as for 32, so values of blocks that are no multiple of 32 are first put together.
struct MatrixUnit {
  static constexpr int ROWS = MATRIX_ROWS;
  static constexpr int KEYS = 2 * LANES;
  const int D, S;
  BFloat16 *queries;  // [R, D]; rows that are not there are zeros
  BFloat16 *together; // the chunk's values: [CHUNK / 2, D, 2]
  const Chunk<BFloat16> *next = nullptr;  // fetched meanwhile; none: it has been

  MatrixUnit(const AttentionStep &s, const Rows<BFloat16> &rows, Workspace &memory)
      : D(s.head_dim), S(s.block_size), queries(memory.queries.as<BFloat16>()),
        together(memory.together.as<BFloat16>()) {
    for (int r = 0; r < rows.count; r++)
      memcpy((void *)(queries + r * D), rows.queries[r], sizeof(BFloat16) * D);
    memset((void *)(queries + rows.count * D), 0, sizeof(BFloat16) * (rows_of_strips(rows.count) - rows.count) * D);
    if (memory.tile_rows != std::min(rows.count, ROWS)) shape(memory.tile_rows = std::min(rows.count, ROWS));
  }

  // A tile with fewer rows than a whole strip is one strip, and as quick as it has rows.
  static int rows_of_strips(int count) { return count <= ROWS ? count : (count + ROWS - 1) / ROWS * ROWS; }

  static void shape(int num_rows) {
    const uint8_t R = uint8_t(num_rows);
    shape_tiles({R, 16, R, R, 16, R, 16, 16});
  }

  void begin(const Chunk<BFloat16> &chunk, const Chunk<BFloat16> &following) {
    next = &following;
    for (int k = chunk.num_keys; k < next->num_keys; k += LANES) {
      fetch_keys(k, 0, D);
      fetch_values(k, 0, D);
    }
    if (S % KEYS == 0) return;
    BFloat16 *to = together;
    const int64_t sixteen = int64_t(LANES) * D;
    for (int k = 0; k < chunk.num_keys; k += LANES)
      memcpy((void *)(to + int64_t(k) * D), chunk.values[k / S] + int64_t(k % S) * D, sizeof(BFloat16) * sixteen);
    if (chunk.num_keys % KEYS)
      memset((void *)(to + int64_t(chunk.num_keys) * D), 0, sizeof(BFloat16) * sixteen);
  }

  // Two groups of keys at a time, whose sums (2 and 5) do not wait for each other.
  void score(int first, int, const Chunk<BFloat16> &chunk, int num_keys, float *scores) {
    if (first) next = nullptr;
    const BFloat16 *rows = queries + int64_t(first) * D;
    for (int k = 0; k < num_keys; k += 2 * LANES) {
      const int other = std::min(k + LANES, num_keys - LANES);
      const BFloat16 *one = chunk.keys[k / S] + k % S * 2, *two = chunk.keys[other / S] + other % S * 2;
      _tile_zero(2);
      _tile_zero(5);
      for (int d = 0; d < D; d += 32) {
        fetch_keys(k, d, 32);
        fetch_keys(k + LANES, d, 32);
        const int64_t offset = int64_t(d / 2) * S * 2;
        _tile_loadd(0, rows + d, D * 2);
        _tile_loadd(1, one + offset, S * 4);
        _tile_loadd(6, two + offset, S * 4);
        _tile_dpbf16ps(2, 0, 1);
        _tile_dpbf16ps(5, 0, 6);
      }
      _tile_stored(2, scores + k, CHUNK * 4);
      _tile_stored(5, scores + other, CHUNK * 4);
    }
  }

  void mix(int, const Chunk<BFloat16> &chunk, int num_keys, const BFloat16 *weights, float *out) const {
    for (int d = 0; d < D; d += 2 * LANES) {
      _tile_loadd(2, out + d, D * 4);
      _tile_loadd(5, out + d + LANES, D * 4);
      for (int k = 0; k < num_keys; k += KEYS) {
        const BFloat16 *pairs = S % KEYS ? together + int64_t(k) * D
                                         : chunk.values[k / S] + int64_t(k % S) * D;
        fetch_values(k, d, 32);
        fetch_values(k + LANES, d, 32);
        _tile_loadd(3, weights + k, CHUNK * 2);
        _tile_loadd(4, pairs + d * 2, D * 4);
        _tile_loadd(7, pairs + (d + LANES) * 2, D * 4);
        _tile_dpbf16ps(2, 3, 4);
        _tile_dpbf16ps(5, 3, 7);
      }
      _tile_stored(2, out + d, D * 4);
      _tile_stored(5, out + d + LANES, D * 4);
    }
  }

 private:
  // Some features of 16 of the next chunk's keys, or values. Bit by bit: all at once would keep the
  // core waiting, and memory has nothing to do in between.
  void fetch_keys(int k, int feature, int count) const {
    if (next && k < next->num_keys)
      fetch(next->keys[k / S] + (int64_t(feature) * S / 2 + k % S) * 2, count / 2, S * 2);
  }
  void fetch_values(int k, int feature, int count) const {
    if (!next || k >= next->num_keys) return;
    const BFloat16 *from = next->values[k / S] + (int64_t(k % S) / 2 * D + feature) * 2;
    for (int pair = 0; pair < LANES / 2; pair++) fetch(from + int64_t(pair) * D * 2, count / LANES, 32);
  }
};
#endif

template <class T>
struct Attention {
  const AttentionStep &s;
  const int D, S, G;

  explicit Attention(const AttentionStep &step)
      : s(step), D(step.head_dim), S(step.block_size), G(step.num_heads / step.num_kv_heads) {}

  void share_out(AttentionPlan &plan, int num_threads) const {
    plan.whole = tiles(num_threads);
    double work = 0;
    for (const Tile &tile : plan.whole) work += work_of(tile);
    const double share = num_threads == 1 ? work : work / (TILES_PER_THREAD * num_threads);
    int num_parts = 0;
    for (Tile tile : plan.whole) {
      const int step = part_keys(tile, share);
      // Where parts begin: at the tile's first key, or at multiples of their size.
      const int origin = s.is_invariant ? tile.first_key / step * step : tile.first_key;
      if (origin + step >= tile.end_key) {
        plan.split.push_back(tile);
        plan.parts_of.push_back({0, 0});
        continue;
      }
      plan.parts_of.push_back({num_parts, 0});
      for (int key = origin; key < tile.end_key; key += step) {
        Tile piece = tile;
        piece.first_key = std::max(key, tile.first_key);
        piece.end_key = std::min(key + step, tile.end_key);
        piece.part = num_parts++;
        plan.parts_of.back().second++;
        plan.split.push_back(piece);
      }
    }
    plan.partials.resize(num_parts);
  }

  void run(AttentionPlan &plan) const {
    const size_t num_threads = omp_get_num_threads();
    Workspace memory(D);
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < plan.split.size(); i++) {
      const size_t following = i + num_threads;  // most likely this thread's next
      attend(plan.split[i], following < plan.split.size() ? &plan.split[following] : nullptr,
             plan.partials, memory);
    }
    if (plan.partials.empty()) return;
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < plan.whole.size(); i++)
      if (plan.parts_of[i].second)
        combine(plan.whole[i], &plan.partials[plan.parts_of[i].first], plan.parts_of[i].second);
  }

 private:
  int chunk_keys() const { return CHUNK / S * S; }  // whole blocks

  static bool has_matrix() { return std::is_same_v<T, BFloat16> && has_matrix_unit(); }

  // The more rows a tile has, the fewer times keys are fetched; the fewer, the more evenly threads
  // share the step, unless they can share a tile's keys. Longest first, so that the last ones to start
  // are short.
  std::vector<Tile> tiles(int num_threads) const {
    std::vector<Tile> found;
    int64_t num_rows = 0;  // of all key heads
    for (int32_t i = 0; i < s.num_sequences; i++) num_rows += int64_t(s.query_lens[i]) * s.num_heads;
    const int64_t one_strip = has_matrix() ? MATRIX_ROWS : VECTOR_ROWS;
    const int64_t num_wanted = num_threads == 1 ? 1 : TILES_PER_THREAD * num_threads;
    const int64_t even = num_rows / num_wanted / one_strip * one_strip;
    const int even_rows = int(std::clamp<int64_t>(even, one_strip, MAX_ROWS));
    int32_t row = 0;
    for (int32_t i = 0; i < s.num_sequences; i++) {
      const int rows_per_tile = s.context_lens[i] >= 2 * SPLIT_KEYS ? MAX_ROWS : even_rows;
      const int queries_per_tile = std::max(1, rows_per_tile / G);
      const int query_len = s.query_lens[i], position = s.context_lens[i] - query_len;
      for (int first = 0; first < query_len; first += queries_per_tile) {
        const int count = std::min(queries_per_tile, query_len - first);
        const int seen_from = s.window ? std::max(0, position + first + 1 - s.window) : 0;
        const int unit = s.is_invariant ? chunk_keys() : S;
        for (int32_t head = 0; head < s.num_kv_heads; head++)
          found.push_back({i, head, first, count, row + first, seen_from / unit * unit,
                           position + first + count, -1});
      }
      row += query_len;
    }
    std::stable_sort(found.begin(), found.end(), [](const Tile &a, const Tile &b) {
      return int64_t(a.end_key - a.first_key) * a.num_queries >
             int64_t(b.end_key - b.first_key) * b.num_queries;
    });
    return found;
  }

  // How long a tile takes, in a measure of its own: keys are fetched once and serve every strip.
  double work_of(const Tile &tile) const {
    const int rows = tile.num_queries * G;
    return (1. + (rows + MATRIX_ROWS - 1) / MATRIX_ROWS) * (tile.end_key - tile.first_key);
  }

  // The keys of one part of a tile: where it is more than a thread's share, several have its keys.
  int part_keys(const Tile &tile, double share) const {
    if (s.is_invariant) return SPLIT_KEYS / chunk_keys() * chunk_keys();
    const int num_keys = tile.end_key - tile.first_key;
    const int wanted = std::min(int(std::ceil(work_of(tile) / share)), num_keys / SPLIT_KEYS);
    return wanted <= 1 ? num_keys : (num_keys / wanted + S - 1) / S * S;
  }

  void attend(const Tile &tile, const Tile *following, std::vector<Partial> &partials,
              Workspace &memory) const {
    Rows<T> rows;
    fill(rows, tile);
    rows.out = memory.out.as<float>();
    attend_rows(tile, following, rows, memory);
    if (tile.part < 0) {
      for (int r = 0; r < rows.count; r++)
        write(tile, r, rows.out + r * D, 1.f / sum(load(rows.totals[r])));
      return;
    }
    Partial &partial = partials[tile.part];
    partial.tops.assign(rows.top, rows.top + rows.count);
    partial.totals.clear();
    for (int r = 0; r < rows.count; r++) partial.totals.push_back(sum(load(rows.totals[r])));
    partial.out.assign(rows.out, rows.out + rows.count * D);
  }

  void fill(Rows<T> &rows, const Tile &tile) const {
    rows.count = tile.num_queries * G;
    const int position = s.context_lens[tile.sequence] - s.query_lens[tile.sequence];
    for (int r = 0; r < rows.count; r++) {
      const int query = r / G;
      rows.queries[r] = (const T *)s.queries + (tile.first_row + query) * s.row_stride +
                        (tile.kv_head * G + r % G) * D;
      rows.limit[r] = position + tile.first_query + query + 1;
      rows.start[r] = s.window ? std::max(0, rows.limit[r] - s.window) : 0;
      rows.top[r] = NEVER;
      store(Floats{}, rows.totals[r]);
    }
  }

  void attend_rows(const Tile &tile, const Tile *following, Rows<T> &rows, Workspace &memory) const {
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, BFloat16>)
      if (has_matrix_unit()) return attend_by<MatrixUnit>(tile, following, rows, memory);
#endif
    attend_by<VectorUnit<T>>(tile, following, rows, memory);
  }

  template <class Unit>
  void attend_by(const Tile &tile, const Tile *following, Rows<T> &rows, Workspace &memory) const {
    alignas(64) float scores[Unit::ROWS * CHUNK];
    alignas(64) T weights[Unit::ROWS * CHUNK];
    const int num_rows = Unit::rows_of_strips(rows.count);
    memset(rows.out, 0, sizeof(float) * num_rows * D);
    if (num_rows != rows.count) memset((void *)weights, 0, sizeof weights);
    Unit unit(s, rows, memory);
    Chunk<T> chunk, next;
    const int step = chunk_keys(tile);
    find(tile, tile.first_key, step, chunk);
    for (int key = tile.first_key; key < tile.end_key; key += step, chunk = next) {
      if (key + step < tile.end_key)
        find(tile, key + step, step, next);
      else if (following)
        find(*following, following->first_key, chunk_keys(*following), next);
      else
        next = chunk;
      unit.begin(chunk, next);
      for (int first = 0; first < rows.count; first += Unit::ROWS) {
        const int count = std::min(Unit::ROWS, rows.count - first);
        const int limit = rows.limit[first + count - 1];
        if (limit <= key || rows.start[first] >= key + chunk.num_keys) continue;
        const int num_keys = std::min(chunk.num_keys, (limit - key + LANES - 1) / LANES * LANES);
        unit.score(first, count, chunk, num_keys, scores);
        for (int r = 0; r < count; r++) {
          soften(scores + r * CHUNK, weights + r * CHUNK, key, num_keys, rows, first + r);
          if (num_keys % Unit::KEYS) store(Floats{}, weights + r * CHUNK + num_keys);
        }
        unit.mix(count, chunk, num_keys, weights, rows.out + int64_t(first) * D);
      }
    }
  }

  // Of a tile's chunks, all alike, so that each has as long as any to fetch the next one.
  int chunk_keys(const Tile &tile) const {
    if (s.is_invariant) return chunk_keys();
    const int num_keys = tile.end_key - tile.first_key;
    const int num_chunks = (num_keys + chunk_keys() - 1) / chunk_keys();
    return ((num_keys + num_chunks - 1) / num_chunks + S - 1) / S * S;
  }

  const T *block(int32_t number, int is_value, int head) const {
    return (const T *)s.cache + ((int64_t(number) * 2 + is_value) * s.num_kv_heads + head) * S * D;
  }

  // The blocks of the chunk of up to `step` keys from `key` on.
  void find(const Tile &tile, int key, int step, Chunk<T> &chunk) const {
    const int32_t *table = s.tables + tile.sequence * s.table_width;
    const int end = std::min(key + step, tile.end_key);
    chunk.num_keys = (end - key + LANES - 1) / LANES * LANES;
    for (int k = 0; k < chunk.num_keys; k += S) {
      const int32_t number = table[(key + k) / S];
      chunk.keys[k / S] = block(number, 0, tile.kv_head);
      chunk.values[k / S] = block(number, 1, tile.kv_head);
    }
  }

  // Turn a row's scores of a chunk into weights relative to the largest score so far.
  void soften(float *scores, T *weights, int first_key, int num_keys, Rows<T> &rows, int r) const {
    const int start = rows.start[r] - first_key, limit = rows.limit[r] - first_key;
    if (start > 0 || limit < num_keys) hide(scores, num_keys, start, limit);
    Floats best = splat(NEVER);  // of what is not NaN
    for (int k = 0; k < num_keys; k += LANES) best = larger(load(scores + k), best);
    float *top = &rows.top[r], *totals = rows.totals[r];
    const float new_top = std::max(*top, largest(best));
    if (new_top == NEVER) {  // nothing is seen yet
      for (int k = 0; k < num_keys; k += LANES) store(Floats{}, weights + k);
      return;
    }
    const float factor = s.scale * LOG2_E;
    if (*top != new_top) {
      const float shrink = *top == NEVER ? 0.f : std::exp2((*top - new_top) * factor);
      float *out = rows.out + int64_t(r) * D;
      for (int d = 0; d < D; d += LANES) store(load(out + d) * shrink, out + d);
      store(load(totals) * shrink, totals);
      *top = new_top;
    }
    Floats total = load(totals);
    const float offset = new_top * factor;
    for (int k = 0; k < num_keys; k += LANES) {
      // One operation less for bfloat16, whose weights are coarser than what it rounds.
      const Floats x = load(scores + k);
      const Floats z = std::is_same_v<T, float> ? (x - new_top) * factor : x * factor - offset;
      const Floats weight = power_of_two<T>(z);
      store(weight, weights + k);
      total += weight;
    }
    store(total, totals);
  }

  static void hide(float *scores, int num_keys, int start, int limit) {
    for (int k = 0; k < num_keys; k += LANES) {
      if (start <= k && k + LANES <= limit) continue;
      const Ints key = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + k;
      store((key >= start) & (key < limit) ? load(scores + k) : splat(NEVER), scores + k);
    }
  }

  // The parts of one tile, in order, as if it had been attended in one go.
  void combine(const Tile &tile, const Partial *parts, int num_parts) const {
    std::vector<float> merged(D);
    for (int r = 0; r < tile.num_queries * G; r++) {
      float top = NEVER, total = 0;
      for (int i = 0; i < num_parts; i++) top = std::max(top, parts[i].tops[r]);
      std::fill(merged.begin(), merged.end(), 0.f);
      for (int i = 0; i < num_parts; i++) {
        if (parts[i].tops[r] == NEVER) continue;
        const float share = std::exp2((parts[i].tops[r] - top) * (s.scale * LOG2_E));
        total += parts[i].totals[r] * share;
        for (int d = 0; d < D; d++) merged[d] += parts[i].out[size_t(r) * D + d] * share;
      }
      write(tile, r, merged.data(), 1.f / total);
    }
  }

  void write(const Tile &tile, int r, const float *row, float factor) const {
    const int64_t token = tile.first_row + r / G;
    T *to = (T *)s.out + (token * s.num_heads + tile.kv_head * G + r % G) * D;
    for (int d = 0; d < D; d += LANES) store(load(row + d) * factor, to + d);
  }
};

// to: the D lanes of the slots that share them.
inline void store_value(const float *from, int D, int, float *to) { memcpy(to, from, sizeof *to * D); }
inline void store_value(const BFloat16 *from, int D, int place, BFloat16 *to) {
#ifdef __AVX512BW__
  const __mmask32 mask = place ? 0xaaaaaaaau : 0x55555555u;
  for (int d = 0; d < D; d += LANES) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from + d)));
    _mm512_mask_storeu_epi16(to + d * 2, mask, place ? _mm512_slli_epi32(words, 16) : words);
  }
#else
  for (int d = 0; d < D; d++) to[d * 2 + place] = from[d];
#endif
}

template <class T>
void store_keys_values(const AttentionStep &step, const NewKeys &added) {
  constexpr int P = PER_LANE<T>;
  const int K = step.num_kv_heads, D = step.head_dim, S = step.block_size;
#pragma omp for schedule(static)
  for (int64_t t = 0; t < added.num_tokens; t++) {
    const int64_t number = added.slots[t] / S, slot = added.slots[t] % S;
    for (int head = 0; head < K; head++) {
      T *k = (T *)step.cache + (number * 2 * K + head) * S * D, *v = k + int64_t(K) * S * D;
      const T *from_k = (const T *)added.keys + t * added.key_stride + head * D;
      const T *from_v = (const T *)added.values + t * added.value_stride + head * D;
      for (int d = 0; d < D; d += P)
        memcpy((void *)(k + int64_t(d) * S + slot * P), (const void *)(from_k + d), sizeof(T) * P);
      store_value(from_v, D, int(slot % P), v + slot / P * P * D);
    }
  }
}

}  // namespace

AttentionPlan::AttentionPlan(bool is_bfloat16, const AttentionStep &step, int num_threads) {
  if (is_bfloat16)
    Attention<BFloat16>(step).share_out(*this, num_threads);
  else
    Attention<float>(step).share_out(*this, num_threads);
}

// Head widths are multiples of 32.
void store_keys_values(bool is_bfloat16, const AttentionStep &step, const NewKeys &added) {
  is_bfloat16 ? store_keys_values<BFloat16>(step, added) : store_keys_values<float>(step, added);
}

void attend(bool is_bfloat16, const AttentionStep &step, AttentionPlan &plan) {
  is_bfloat16 ? Attention<BFloat16>(step).run(plan) : Attention<float>(step).run(plan);
}

extern "C" {

// q, k, v: [T, heads, D], their tokens `…_stride` elements apart. Stores the step's keys and values,
// then attends. Sequences' tokens follow each other; `out` is [T, H, D].
void shoal_attend(int is_bfloat16, const void *q, const void *k, const void *v, int64_t q_stride,
                  int64_t k_stride, int64_t v_stride, const int64_t *slots, void *cache,
                  void *out, const int32_t *tables, const int32_t *query_lens,
                  const int32_t *context_lens, int64_t num_sequences,
                  int64_t table_width, int64_t num_tokens, int32_t H, int32_t K, int32_t D,
                  int32_t S, int32_t window, float scale, int32_t num_threads,
                  int32_t is_invariant) {
  const AttentionStep step{q, q_stride, cache, out, tables, query_lens, context_lens, num_sequences,
                           table_width, H, K, D, S, window, scale, is_invariant != 0};
  AttentionPlan plan(is_bfloat16, step, num_threads);
#pragma omp parallel num_threads(num_threads)
  {
    store_keys_values(is_bfloat16, step, {k, v, k_stride, v_stride, slots, num_tokens});
    attend(is_bfloat16, step, plan);
  }
}
}
