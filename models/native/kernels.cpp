// The small operations of a decoder's step on a CPU, where torch spends more on moving than on
// computing. Plain C interface.
//
// Shapes: T = tokens, M = model width, F = feed-forward width, H = query heads, K = key/value heads,
// G = H / K, D = head width, S = slots of a block (a multiple of 16), R = rows of a tile: G query
// heads of some tokens, which share their keys.
//
// The layout of a block of the KV cache is this file's own. With P = 4 / sizeof(element) elements in
// a 32-bit lane, an element (slot s, feature d) stands at
//   keys:   ((d / P) * S + s) * P + d % P     16 slots side by side: a lane is a slot
//   values: ((s / P) * D + d) * P + s % P     16 features side by side: a lane is a feature
// so that scores and outputs are sums over whole vectors, and never across a vector.

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

constexpr int MAX_ROWS = 12;     // of a tile of vectors: their accumulators fit the registers
constexpr int CHUNK = 128;       // keys between two corrections of the softmax; no block is larger
constexpr float NEVER = -1e30f;  // the score of a key that is not seen; -inf would give NaN

inline float largest(Floats x) {
  float top = x[0];
  for (int i = 1; i < LANES; i++) top = std::max(top, x[i]);
  return top;
}

// e to the x, for x up to 88; 0 below -87. A power of two by its bits, times a polynomial on
// [-1/2, 1/2] with as many terms as the element type has use for.
template <class T>
inline Floats exponential(Floats x) {
  constexpr float ROUNDS = 12582912.f;  // 3 * 2^22: adding it leaves the integer in the low bits
  Floats z = x * 1.44269504f;
  const Ints is_tiny = z < splat(-126.f);
  z = is_tiny ? splat(0.f) : z;
  const Floats shifted = z + ROUNDS;
  const Floats f = z - (shifted - ROUNDS);
  Floats p;
  if constexpr (std::is_same_v<T, float>) {
    p = splat(1.54035304e-4f);
    p = p * f + 1.33335581e-3f;
    p = p * f + 9.61812911e-3f;
  } else {
    p = splat(9.61812911e-3f);
  }
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.f;
  const Floats value = (Floats)((Ints)p + ((Ints)shifted << 23));
  return is_tiny ? splat(0.f) : value;
}

// ---------------------------------------------------------------- attention

struct Step {
  const void *queries;       // [T, ...]: H heads of D at the start of a row
  int64_t row_stride;        // elements from one token's queries to the next one's
  void *cache;               // one layer: [B, 2, K, S * D]
  void *out;                 // [T, H * D]
  const int32_t *tables;     // [sequences, table_width]
  const int32_t *query_lens; // [sequences]
  const int32_t *context_lens;
  int64_t num_sequences, table_width;
  int32_t num_heads, num_kv_heads, head_dim, block_size;
  int32_t window;  // keys that a query sees, its own included; 0: all
  float scale;
  // A token's output has the same bits whatever else is in the step: keys are taken in chunks and
  // parts that begin at multiples of their sizes, and one unit computes tiles of any number of rows.
  bool is_invariant;
};

struct Tile {
  int32_t sequence, kv_head, first_query, num_queries, first_row;
  int32_t first_key, end_key;  // which keys this tile looks at
  int32_t part;                // of the partial results; -1: the tile writes its output itself
};

struct Partial {
  float top[MATRIX_ROWS], total[MATRIX_ROWS];
  std::vector<float> out;  // [R, D], not yet divided
};

template <class T>
struct Attention {
  const Step &s;
  const int D, S, G, P = PER_LANE<T>;

  explicit Attention(const Step &step)
      : s(step), D(step.head_dim), S(step.block_size), G(step.num_heads / step.num_kv_heads) {}

  const T *block(int32_t number, int is_value, int head) const {
    return (const T *)s.cache + ((int64_t(number) * 2 + is_value) * s.num_kv_heads + head) * S * D;
  }

  // Blocks lie anywhere in memory, where no prefetcher looks for them.
  void fetch(const T *a_block) const {
    const char *from = (const char *)a_block;
    for (size_t i = 0; i < sizeof(T) * S * D; i += 64) __builtin_prefetch(from + i, 0, 2);
  }

  // The rows of a tile: their queries, the keys they see, and their softmax so far.
  struct Rows {
    int count;
    const T *queries[MATRIX_ROWS];
    int start[MATRIX_ROWS], limit[MATRIX_ROWS];
    float top[MATRIX_ROWS], total[MATRIX_ROWS];
  };

  Rows rows_of(const Tile &tile) const {
    Rows rows;
    rows.count = tile.num_queries * G;
    const int position = s.context_lens[tile.sequence] - s.query_lens[tile.sequence];
    for (int r = 0; r < rows.count; r++) {
      const int query = r / G;
      rows.queries[r] = (const T *)s.queries + (tile.first_row + query) * s.row_stride +
                        (tile.kv_head * G + r % G) * D;
      rows.limit[r] = position + tile.first_query + query + 1;
      rows.start[r] = s.window ? std::max(0, rows.limit[r] - s.window) : 0;
      rows.top[r] = NEVER;
      rows.total[r] = 0;
    }
    return rows;
  }

  // Unit: how scores and outputs of a chunk are computed, `VectorUnit` or `MatrixUnit`.
  template <class Unit>
  void attend_rows(const Tile &tile, Rows &rows, float *out) const {
    alignas(64) float scores[Unit::ROWS * CHUNK];
    alignas(64) T weights[Unit::ROWS * CHUNK] = {};
    const T *keys[CHUNK / LANES], *values[CHUNK / LANES];
    const int32_t *table = s.tables + tile.sequence * s.table_width;
    const int chunk = this->chunk();
    Unit unit(*this, rows);
    for (int key = tile.first_key; key < tile.end_key; key += chunk) {
      const int end = std::min(key + chunk, tile.end_key);
      const int num_keys = (end - key + LANES - 1) / LANES * LANES;
      for (int k = 0; k < num_keys; k += S) {
        const int32_t number = table[(key + k) / S];
        keys[k / S] = block(number, 0, tile.kv_head);
        values[k / S] = block(number, 1, tile.kv_head);
        fetch(values[k / S]);
        const int ahead = key + k + chunk;  // the keys of the next chunk
        if (ahead < tile.end_key) fetch(block(table[ahead / S], 0, tile.kv_head));
      }
      unit.score(keys, num_keys, scores);
      for (int r = 0; r < rows.count; r++)
        soften(scores + r * CHUNK, weights + r * CHUNK, key, num_keys, rows, r, out + r * D);
      unit.mix(values, num_keys, weights, out);
    }
  }

  // Turn a chunk's scores into weights relative to the largest score so far.
  void soften(float *scores, T *weights, int first_key, int num_keys, Rows &rows, int r,
              float *out) const {
    const int start = rows.start[r], limit = rows.limit[r];
    Floats best = splat(NEVER);
    for (int k = 0; k < num_keys; k += LANES) {
      Floats x = load(scores + k) * s.scale;
      if (first_key + k < start || first_key + k + LANES > limit) {
        const Ints key = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + first_key + k;
        x = (key >= start) & (key < limit) ? x : splat(NEVER);
      }
      store(x, scores + k);
      best = x > best ? x : best;
    }
    float *top = &rows.top[r], *total = &rows.total[r];
    const float new_top = std::max(*top, largest(best));
    if (new_top == NEVER) {  // nothing is seen yet
      for (int k = 0; k < num_keys; k++) store(0.f, weights + k);
      return;
    }
    if (*top != new_top) {
      const float shrink = *top == NEVER ? 0.f : std::exp(*top - new_top);
      *total *= shrink;
      for (int d = 0; d < D; d++) out[d] *= shrink;
      *top = new_top;
    }
    Floats sums = Floats{};
    for (int k = 0; k < num_keys; k += LANES) {
      const Floats weight = exponential<T>(load(scores + k) - new_top);
      store(weight, weights + k);
      sums += weight;
    }
    *total += sum(sums);
  }

  // Scores and outputs by vectors, R rows at a time.
  template <int R, bool IS_INVARIANT>
  struct VectorUnit {
    static constexpr int ROWS = R;
    // Sums that do not wait for each other: an addition takes as long as several can be started in.
    static constexpr int C = IS_INVARIANT ? 1 : R <= 3 ? 4 : R <= 6 ? 2 : 1;
    const Attention &a;
    const Rows &rows;
    const int D = a.D, S = a.S, P = a.P;

    VectorUnit(const Attention &attention, const Rows &the_rows) : a(attention), rows(the_rows) {}

    void score(const T *const *keys, int num_keys, float *scores) const {
      for (int k = 0; k < num_keys; k += LANES) {
        Floats acc[C][R];
        for (int c = 0; c < C; c++)
          for (int r = 0; r < R; r++) acc[c][r] = Floats{};
        for (int d = 0; d < D; d += P * C)
          for (int c = 0; c < C; c++) {
            const int feature = d + c * P;
            const T *lanes = keys[k / S] + (int64_t(feature / P) * S + k % S) * P;
            for (int r = 0; r < R; r++) multiply_add(acc[c][r], lanes, rows.queries[r] + feature);
          }
        for (int r = 0; r < R; r++) {
          for (int c = 1; c < C; c++) acc[0][r] += acc[c][r];
          store(acc[0][r], scores + r * CHUNK + k);
        }
      }
    }

    // out[r][d] += the weights of a chunk's keys times their values, 16 features at a time.
    void mix(const T *const *values, int num_keys, const T *weights, float *out) const {
      for (int d = 0; d < D; d += LANES) {
        Floats acc[C][R];
        for (int r = 0; r < R; r++) acc[0][r] = load(out + r * D + d);
        for (int c = 1; c < C; c++)
          for (int r = 0; r < R; r++) acc[c][r] = Floats{};
        for (int first = 0; first < num_keys; first += LANES) {
          const T *lanes = values[first / S] + (int64_t(first % S / P) * D + d) * P;
          for (int k = 0; k < LANES; k += P * C)
            for (int c = 0; c < C; c++) {
              const int key = k + c * P;
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
  // Scores and outputs by the matrix unit: 16 rows by 16 keys, or features, at a time. Its second
  // operand wants pairs of elements side by side, which is how blocks are laid out.
  struct MatrixUnit {
    static constexpr int ROWS = MATRIX_ROWS;
    const int D, S;
    std::vector<BFloat16> queries;  // [16, D]; rows that are not there are zeros

    MatrixUnit(const Attention &attention, const Rows &rows)
        : D(attention.D), S(attention.S), queries(size_t(ROWS) * D) {
      for (int r = 0; r < rows.count; r++)
        memcpy(&queries[size_t(r) * D], rows.queries[r], sizeof(BFloat16) * D);
      alignas(64) struct {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t bytes_per_row[16] = {64, 64, 64, 32, 64, 64, 64, 64};
        uint8_t num_rows[16] = {16, 16, 16, 16, 8, 16, 16, 8};
      } shapes;
      _tile_loadconfig(&shapes);
    }
    ~MatrixUnit() { _tile_release(); }

    // Two groups of keys at a time, whose sums (2 and 5) do not wait for each other.
    void score(const BFloat16 *const *keys, int num_keys, float *scores) const {
      for (int k = 0; k < num_keys; k += 2 * LANES) {
        const int other = std::min(k + LANES, num_keys - LANES);
        const BFloat16 *one = keys[k / S] + k % S * 2, *two = keys[other / S] + other % S * 2;
        _tile_zero(2);
        _tile_zero(5);
        for (int d = 0; d < D; d += 32) {
          const int64_t offset = int64_t(d / 2) * S * 2;
          _tile_loadd(0, &queries[d], D * 2);
          _tile_loadd(1, one + offset, S * 4);
          _tile_loadd(6, two + offset, S * 4);
          _tile_dpbf16ps(2, 0, 1);
          _tile_dpbf16ps(5, 0, 6);
        }
        _tile_stored(2, scores + k, CHUNK * 4);
        _tile_stored(5, scores + other, CHUNK * 4);
      }
    }

    void mix(const BFloat16 *const *values, int num_keys, const BFloat16 *weights,
             float *out) const {
      for (int d = 0; d < D; d += 2 * LANES) {
        _tile_loadd(2, out + d, D * 4);
        _tile_loadd(5, out + d + LANES, D * 4);
        for (int k = 0; k < num_keys; k += LANES) {
          const BFloat16 *lanes = values[k / S] + (int64_t(k % S / 2) * D + d) * 2;
          _tile_loadd(3, weights + k, CHUNK * 2);
          _tile_loadd(4, lanes, D * 4);
          _tile_loadd(7, lanes + 2 * LANES, D * 4);
          _tile_dpbf16ps(2, 3, 4);
          _tile_dpbf16ps(5, 3, 7);
        }
        _tile_stored(2, out + d, D * 4);
        _tile_stored(5, out + d + LANES, D * 4);
      }
    }
  };
#endif

  void attend(const Tile &tile, std::vector<Partial> &partials) const {
    Rows rows = rows_of(tile);
    std::vector<float> out(size_t(MATRIX_ROWS) * D);
    attend_all_rows(tile, rows, out.data());
    if (tile.part < 0) {
      for (int r = 0; r < rows.count; r++) write(tile, r, &out[size_t(r) * D], 1.f / rows.total[r]);
      return;
    }
    Partial &partial = partials[tile.part];
    std::copy(rows.top, rows.top + rows.count, partial.top);
    std::copy(rows.total, rows.total + rows.count, partial.total);
    partial.out.swap(out);
  }

  void attend_all_rows(const Tile &tile, Rows &rows, float *out) const {
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, BFloat16>) {
      const bool is_worth_it = rows.count > 6 || s.is_invariant;
      if (is_worth_it && has_matrix_unit()) return attend_rows<MatrixUnit>(tile, rows, out);
    }
#endif
    if (s.is_invariant)
      attend_by_vectors<true>(tile, rows, out);
    else
      attend_by_vectors<false>(tile, rows, out);
  }

  template <bool IS_INVARIANT>
  void attend_by_vectors(const Tile &tile, Rows &rows, float *out) const {
    switch (rows.count) {
#define ROWS(n) case n: attend_rows<VectorUnit<n, IS_INVARIANT>>(tile, rows, out); break;
      ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
      ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#undef ROWS
    }
  }

  static int max_rows() { return std::is_same_v<T, BFloat16> && has_matrix_unit() ? MATRIX_ROWS : MAX_ROWS; }

  // The parts of one tile, in order, as if it had been attended in one go.
  void combine(const Tile &tile, const Partial *parts, int num_parts) const {
    std::vector<float> merged(D);
    for (int r = 0; r < tile.num_queries * G; r++) {
      float top = NEVER, total = 0;
      for (int i = 0; i < num_parts; i++) top = std::max(top, parts[i].top[r]);
      std::fill(merged.begin(), merged.end(), 0.f);
      for (int i = 0; i < num_parts; i++) {
        if (parts[i].top[r] == NEVER) continue;
        const float share = std::exp(parts[i].top[r] - top);
        total += parts[i].total[r] * share;
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

  void run(int num_threads) const {
    std::vector<Tile> whole = tiles(), split;
    std::vector<std::pair<int, int>> parts_of;  // by whole tile: first part, number of parts
    int num_parts = 0;
    for (Tile tile : whole) {
      const int step = part_keys(tile, int(whole.size()), num_threads);
      // Where parts begin: at the tile's first key, or at multiples of their size.
      const int origin = s.is_invariant ? tile.first_key / step * step : tile.first_key;
      if (origin + step >= tile.end_key) {
        tile.part = -1;
        split.push_back(tile);
        parts_of.push_back({0, 0});
        continue;
      }
      parts_of.push_back({num_parts, 0});
      for (int key = origin; key < tile.end_key; key += step) {
        Tile piece = tile;
        piece.first_key = std::max(key, tile.first_key);
        piece.end_key = std::min(key + step, tile.end_key);
        piece.part = num_parts++;
        parts_of.back().second++;
        split.push_back(piece);
      }
    }
    std::vector<Partial> partials(num_parts);
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
    for (size_t i = 0; i < split.size(); i++) attend(split[i], partials);
    if (!num_parts) return;
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
    for (size_t i = 0; i < whole.size(); i++)
      if (parts_of[i].second) combine(whole[i], &partials[parts_of[i].first], parts_of[i].second);
  }

  static constexpr int SPLIT_KEYS = 1024;

  // The keys of one part of a tile. Few tiles and long contexts: several threads share a tile's keys.
  int part_keys(const Tile &tile, int num_tiles, int num_threads) const {
    if (s.is_invariant) return SPLIT_KEYS / chunk() * chunk();
    const int num_keys = tile.end_key - tile.first_key;
    const int wanted = num_tiles >= 4 * num_threads ? 1 : num_keys / SPLIT_KEYS;
    return wanted <= 1 ? num_keys : (num_keys / wanted + S - 1) / S * S;
  }

  int chunk() const { return CHUNK / S * S; }  // whole blocks

  // Longest first, so that the last ones to start are short.
  std::vector<Tile> tiles() const {
    std::vector<Tile> found;
    const int queries_per_tile = std::max(1, max_rows() / G);
    int32_t row = 0;
    for (int32_t i = 0; i < s.num_sequences; i++) {
      const int query_len = s.query_lens[i], position = s.context_lens[i] - query_len;
      for (int first = 0; first < query_len; first += queries_per_tile) {
        const int count = std::min(queries_per_tile, query_len - first);
        const int seen_from = s.window ? std::max(0, position + first + 1 - s.window) : 0;
        const int unit = s.is_invariant ? chunk() : S;
        for (int32_t head = 0; head < s.num_kv_heads; head++)
          found.push_back({i, head, first, count, row + first, seen_from / unit * unit,
                           position + first + count, -1});
      }
      row += query_len;
    }
    std::stable_sort(found.begin(), found.end(), [](const Tile &a, const Tile &b) {
      return (a.end_key - a.first_key) * a.num_queries > (b.end_key - b.first_key) * b.num_queries;
    });
    return found;
  }
};

template <class T>
void store_keys_values(const T *keys, const T *values, int64_t key_stride, int64_t value_stride,
                       const int64_t *slots, T *cache, int64_t num_tokens, int K, int D, int S,
                       int num_threads) {
  constexpr int P = PER_LANE<T>;
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_tokens * K > 64)
  for (int64_t t = 0; t < num_tokens; t++) {
    const int64_t number = slots[t] / S, slot = slots[t] % S;
    for (int head = 0; head < K; head++) {
      T *k = cache + (number * 2 * K + head) * S * D, *v = k + int64_t(K) * S * D;
      const T *from_k = keys + t * key_stride + head * D, *from_v = values + t * value_stride + head * D;
      for (int d = 0; d < D; d++) k[(int64_t(d / P) * S + slot) * P + d % P] = from_k[d];
      for (int d = 0; d < D; d++) v[(slot / P * D + d) * P + slot % P] = from_v[d];
    }
  }
}

// ---------------------------------------------------------------- the small ones

// x += added (where given); out = x / rms(x), rounded, times the weight.
template <class T>
void add_rms_norm(T *x, const T *added, const T *weight, T *out, int64_t num_rows, int64_t width,
                  float eps, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_rows * width > 8192)
  for (int64_t r = 0; r < num_rows; r++) {
    T *row = x + r * width, *to = out + r * width;
    Floats squares = Floats{};
    for (int64_t i = 0; i < width; i += LANES) {
      Floats value = load(row + i);
      if (added) {
        value = as_stored(value + load(added + r * width + i), row);
        store(value, row + i);
      }
      squares += value * value;
    }
    const float factor = 1.f / std::sqrt(sum(squares) / width + eps);
    for (int64_t i = 0; i < width; i += LANES)
      store(as_stored(load(row + i) * factor, row) * load(weight + i), to + i);
  }
}

// The N = H + K first heads of each row are rotated in place; before that, where there are norms,
// each is divided by its root mean square. table: [positions, 2, D]: cosines, signed sines.
template <class T>
void rotate(T *heads, int64_t row_stride, const int64_t *positions, const T *table,
            const T *q_norm, const T *k_norm, int64_t num_tokens, int H, int K, int D, float eps,
            int num_threads) {
  const int half = D / 2;
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_tokens > 4)
  for (int64_t t = 0; t < num_tokens; t++) {
    const T *cosines = table + positions[t] * 2 * D, *sines = cosines + D;
    for (int n = 0; n < H + K; n++) {
      T *x = heads + t * row_stride + int64_t(n) * D;
      const T *norm = n < H ? q_norm : k_norm;
      if (norm) {
        Floats squares = Floats{};
        for (int d = 0; d < D; d += LANES) squares += load(x + d) * load(x + d);
        const float factor = 1.f / std::sqrt(sum(squares) / D + eps);
        for (int d = 0; d < D; d += LANES)
          store(as_stored(load(x + d) * factor, x) * load(norm + d), x + d);
      }
      for (int d = 0; d < half; d += LANES) {
        Floats low = load(x + d), high = load(x + half + d);
        store(low * load(cosines + d) + high * load(sines + d), x + d);
        store(high * load(cosines + half + d) + low * load(sines + half + d), x + half + d);
      }
    }
  }
}

// gate_up: [T, 2F]; out: [T, F] = gate * sigmoid(gate) * up
template <class T>
void silu_mul(const T *gate_up, T *out, int64_t num_rows, int64_t width, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_rows * width > 4096)
  for (int64_t r = 0; r < num_rows; r++) {
    const T *gate = gate_up + r * 2 * width, *up = gate + width;
    for (int64_t i = 0; i < width; i += LANES) {
      Floats x = load(gate + i);
      const Floats power = x > splat(-88.f) ? -x : splat(88.f);
      const Floats activated = as_stored(x / (exponential<T>(power) + 1.f), gate);
      store(activated * load(up + i), out + r * width + i);
    }
  }
}

}  // namespace

// is_bfloat16: else float32. All widths are multiples of 16, head widths of 32.
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
  const Step step{q, q_stride, cache, out, tables, query_lens, context_lens, num_sequences,
                  table_width, H, K, D, S, window, scale, is_invariant != 0};
  if (is_bfloat16) {
    store_keys_values((const BFloat16 *)k, (const BFloat16 *)v, k_stride, v_stride, slots,
                      (BFloat16 *)cache, num_tokens, K, D, S, num_threads);
    Attention<BFloat16>(step).run(num_threads);
  } else {
    store_keys_values((const float *)k, (const float *)v, k_stride, v_stride, slots,
                      (float *)cache, num_tokens, K, D, S, num_threads);
    Attention<float>(step).run(num_threads);
  }
}

void shoal_add_rms_norm(int is_bfloat16, void *x, const void *added, const void *weight, void *out,
                        int64_t num_rows, int64_t width, float eps, int32_t num_threads) {
  if (is_bfloat16)
    add_rms_norm((BFloat16 *)x, (const BFloat16 *)added, (const BFloat16 *)weight, (BFloat16 *)out,
                 num_rows, width, eps, num_threads);
  else
    add_rms_norm((float *)x, (const float *)added, (const float *)weight, (float *)out, num_rows,
                 width, eps, num_threads);
}

void shoal_rotate(int is_bfloat16, void *heads, int64_t row_stride, const int64_t *positions,
                  const void *table, const void *q_norm, const void *k_norm, int64_t num_tokens,
                  int32_t H, int32_t K, int32_t D, float eps, int32_t num_threads) {
  if (is_bfloat16)
    rotate((BFloat16 *)heads, row_stride, positions, (const BFloat16 *)table,
           (const BFloat16 *)q_norm, (const BFloat16 *)k_norm, num_tokens, H, K, D, eps,
           num_threads);
  else
    rotate((float *)heads, row_stride, positions, (const float *)table, (const float *)q_norm,
           (const float *)k_norm, num_tokens, H, K, D, eps, num_threads);
}

void shoal_silu_mul(int is_bfloat16, const void *gate_up, void *out, int64_t num_rows,
                    int64_t width, int32_t num_threads) {
  if (is_bfloat16)
    silu_mul((const BFloat16 *)gate_up, (BFloat16 *)out, num_rows, width, num_threads);
  else
    silu_mul((const float *)gate_up, (float *)out, num_rows, width, num_threads);
}
}
