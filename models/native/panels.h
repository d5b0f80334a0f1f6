// What products have in common: panels of outputs, the matrix unit, sums by vectors, results, and which
// tokens meet which panels when. Shapes: T = tokens, O = outputs, K = the matrix's width.

#pragma once

#include <algorithm>

#include "team.h"
#include "vectors.h"

namespace {

constexpr int WIDTH = 2 * LANES;       // outputs that are computed together: a panel
constexpr int64_t SPAN_BYTES = 512 << 10;  // of the tokens that panels meet one after the other
constexpr int TILE_ROWS = 2 * MATRIX_ROWS;  // that the matrix unit takes at once

typedef float Totals[TILE_ROWS][WIDTH];  // of some tokens and a panel

// ---------------------------------------------------------------- activations, the matrix unit

// Rows of activations as wide as the matrix: the ones given, or a copy filled up with zeros.
template <class T>
const T *widened(const Product &p) {
  const int64_t count = p.by.num_inputs, width = p.by.width;
  if (count == width) return (const T *)p.x;
  T *rows = (T *)p.scratch;
#pragma omp for schedule(static)
  for (int64_t t = 0; t < p.num_tokens; t++) {
    memcpy((void *)(rows + t * width), (const T *)p.x + t * count, sizeof(T) * count);
    memset((void *)(rows + t * width + count), 0, sizeof(T) * (width - count));
  }
  return rows;
}

template <class T>
int64_t widened_bytes(const Matrix &matrix, int64_t num_tokens) {
  return matrix.num_inputs == matrix.width ? 0 : num_tokens * matrix.width * int64_t(sizeof(T));
}

// Up to 32 rows of activations: where they are, and how far apart. Each product takes some bytes of each.
struct Rows {
  const void *first;
  int64_t row_bytes, step_bytes, half_bytes;  // to the next row, the next product's, and the 17th row
};

#ifdef __AMX_TILE__
// Up to 32 rows (tiles 4 and 5) times the two blocks (6 and 7): sums in tiles 0 to 3. A thread has
// one of these for all of its panels: giving the unit its shapes takes as long as ten products.
struct TileSums {
  int low = 0, high = 0;  // rows of the two tiles
  int depth = 0;          // bytes of a row that a product takes: 64 or 32

  TileSums() = default;
  TileSums(const TileSums &) = delete;
  ~TileSums() {
    if (low) _tile_release();
  }

  void begin(int num_rows, int wanted_depth) {
    if (num_rows != low + high || wanted_depth != depth) shape(num_rows, wanted_depth);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  // X: what the rows are of. `following`: what is read of each block's place afterwards; the prefetchers
  // alone bring less than memory gives, and wait for the first lines of every block.
  template <class X, class W>
  void add(const Rows &x, const W *const *blocks, const W *const *following, int64_t count) const {
    constexpr bool IS_WHOLE = sizeof(X) > 1;  // floats always take 64 bytes
    const int64_t step = (IS_WHOLE ? 64 : depth) / sizeof(X), line = 64 / sizeof(W);
    const char *rows = (const char *)x.first;
    for (int64_t k = 0; k < count; k += step, rows += x.step_bytes) {
      for (int c = 0; c < 2; c++)
        fetch(k + step < count ? blocks[c] + (k + step) * LANES : following[c],
              IS_WHOLE ? 16 : depth / 4, line);
      _tile_loadd(4, rows, x.row_bytes);
      _tile_loadd(6, blocks[0] + k * LANES, 64);
      _tile_loadd(7, blocks[1] + k * LANES, 64);
      if constexpr (std::is_same_v<X, BFloat16>) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      } else {
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
      }
      if (!high) continue;
      _tile_loadd(5, rows + x.half_bytes, x.row_bytes);
      if constexpr (std::is_same_v<X, BFloat16>) {
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      } else {
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
      }
    }
  }

  void write(void *to) const {  // [32, 32] of four bytes
    char *lanes = (char *)to;
    _tile_stored(0, lanes, WIDTH * 4);
    _tile_stored(1, lanes + 64, WIDTH * 4);
    if (!high) return;
    _tile_stored(2, lanes + MATRIX_ROWS * WIDTH * 4, WIDTH * 4);
    _tile_stored(3, lanes + MATRIX_ROWS * WIDTH * 4 + 64, WIDTH * 4);
  }

 private:
  void shape(int num_rows, int wanted_depth) {
    depth = wanted_depth;
    low = std::min(num_rows, MATRIX_ROWS), high = num_rows - low;
    const uint8_t a = uint8_t(low), b = uint8_t(std::max(high, 1)), weights = uint8_t(depth / 4);
    const uint8_t rows[8] = {a, a, b, b, a, b, weights, weights};
    const uint8_t widths[8] = {64, 64, 64, 64, uint8_t(depth), uint8_t(depth), 64, 64};
    shape_tiles(rows, widths);
  }
};
#else
struct TileSums {};
#endif

// ---------------------------------------------------------------- sums of floats by vectors

constexpr int VECTOR_ROWS = 6;  // tokens at once: their sums fit the registers

typedef int64_t Longs __attribute__((vector_size(64)));

// R tokens and C blocks of outputs.
template <class T, int R, int C>
struct VectorSums;

template <int R, int C>
struct VectorSums<BFloat16, R, C> {
  Floats sums[R][C];

  VectorSums() { memset(this, 0, sizeof *this); }

  void add(const BFloat16 *const *rows, const BFloat16 *const *blocks, int64_t count) {
    Floats acc[R][C];
    memcpy(acc, sums, sizeof acc);
    for (int64_t k = 0; k < count; k += 2)
      for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) multiply_add(acc[r][c], blocks[c] + k * LANES, rows[r] + k);
    memcpy(sums, acc, sizeof acc);
  }

  void write(float (*to)[WIDTH]) const {
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) store(sums[r][c], to[r] + c * LANES);
  }
};

// A lane has every other input of an output.
template <int R, int C>
struct VectorSums<float, R, C> {
  Floats sums[R][2 * C];

  VectorSums() { memset(this, 0, sizeof *this); }

  void add(const float *const *rows, const float *const *blocks, int64_t count) {
    Floats acc[R][2 * C];
    memcpy(acc, sums, sizeof acc);
    for (int64_t k = 0; k < count; k += 2)
      for (int r = 0; r < R; r++) {
        int64_t two;
        memcpy(&two, rows[r] + k, 8);
        const Floats pair = (Floats)(two - Longs{});
        for (int c = 0; c < 2 * C; c++)
          acc[r][c] += load(blocks[c / 2] + k * LANES + c % 2 * LANES) * pair;
      }
    memcpy(sums, acc, sizeof acc);
  }

  void write(float (*to)[WIDTH]) const {
    for (int r = 0; r < R; r++)
      for (int c = 0; c < 2 * C; c++)
        for (int o = 0; o < LANES / 2; o++)
          to[r][c * LANES / 2 + o] = sums[r][c][2 * o] + sums[r][c][2 * o + 1];
  }
};

// ---------------------------------------------------------------- results

// Of some tokens and a panel: their sums, plus the bias, as they are stored.
template <class T>
struct Results {
  const Product &p;

  int64_t num_panels() const { return (p.by.num_outputs + WIDTH - 1) / WIDTH; }
  // Panels whose results are stored: of gated ones the first half, each with its other.
  int64_t num_stored() const { return p.is_gated ? num_panels() / 2 : num_panels(); }

  Floats result(int64_t panel, const float *sums, int c) const {
    Floats value = load(sums + c * LANES);
    if (p.by.bias) value += load((const T *)p.by.bias + panel * WIDTH + c * LANES);
    return as_stored(value, (const T *)nullptr);
  }

  void finish(int64_t panel, int64_t first_row, int num_rows, const Totals &sums) const {
    const int64_t first = panel * WIDTH, count = std::min<int64_t>(WIDTH, p.by.num_outputs - first);
    T *to = (T *)p.out + first_row * p.by.num_outputs + first;
    for (int r = 0; r < num_rows; r++, to += p.by.num_outputs) {
      int64_t o = 0;
      for (; o + LANES <= count; o += LANES) store(result(panel, sums[r], int(o / LANES)), to + o);
      for (; o < count; o++)
        store(sums[r][o] + (p.by.bias ? to_float(((const T *)p.by.bias)[first + o]) : 0.f), to + o);
    }
  }

  void finish_gated(int64_t panel, int64_t first_row, int num_rows, const Totals &gates,
                    const Totals &ups) const {
    const int64_t width = p.by.num_outputs / 2, other = panel + width / WIDTH;
    T *to = (T *)p.out + first_row * width + panel * WIDTH;
    for (int r = 0; r < num_rows; r++, to += width)
      for (int c = 0; c < 2; c++)
        store(gated<T>(result(panel, gates[r], c), result(other, ups[r], c)), to + c * LANES);
  }

  // Where the results of some rows go: nobody has written there, so it is not in the first cache.
  void fetch_places(int64_t panel, int64_t first_row, int num_rows) const {
    const int64_t width = p.is_gated ? p.by.num_outputs / 2 : p.by.num_outputs;
    const T *to = (const T *)p.out + first_row * width + panel * WIDTH;
    for (int r = 0; r < num_rows; r++) __builtin_prefetch(to + r * width, 1);
  }
};

// ---------------------------------------------------------------- tokens and panels

// What kind of sums a product is made of says `Sums`:
//   rows(): tokens that are summed up at once; panel_bytes(): of a panel in the cache;
//   token_bytes(): likewise; scratch_bytes(is_kept): what it wants for each panel of a span, where more
//   tokens follow (is_kept) and where none do;
//   add_up(tiles, panel, next_panel, first_row, num_rows, scratch, is_kept, is_there, totals): `next_panel`
//   is what this thread most likely reads next, and `scratch` is as earlier tokens left it (is_there).
template <class T, class Sums>
void by_panels(const Product &p, const Sums &sums) {
  // Tokens and panels that meet each other while both are in the second cache. Few tokens: every
  // panel is read once, and by whichever thread is free.
  const Results<T> results{p};
  const int64_t rows = sums.rows(), num_stored = results.num_stored();
  int64_t span_tokens = p.num_tokens, span_panels = 1;
  if (p.num_tokens > rows) {
    const int64_t most = std::max<int64_t>(SPAN_BYTES / sums.token_bytes() / rows, 2) * rows;
    const int64_t num_spans = (p.num_tokens + most - 1) / most;
    span_tokens = ((p.num_tokens + num_spans - 1) / num_spans + rows - 1) / rows * rows;
    const int64_t fit = std::max<int64_t>(SPAN_BYTES / (p.is_gated ? 4 : 2) / sums.panel_bytes(), 1);
    const int64_t even = num_stored * num_spans / (4 * p.num_threads);
    span_panels = std::clamp<int64_t>(even, 1, fit);
  }
  const bool is_kept = p.num_tokens > rows;
  const int64_t kept = sums.scratch_bytes(is_kept), half = results.num_panels() / 2;
  // The panel after this one of a span: another one of it, or the first of one that nobody has begun.
  const auto next_of = [&](int64_t panel, int64_t end_panel) {
    if (panel + 1 < end_panel) return panel + 1;
    const int64_t next = end_panel + (p.num_threads - 1) * span_panels;
    return next < num_stored ? next : panel;
  };
  TileSums tiles;
  Aligned memory;
  if (kept) memory.reserve(kept * span_panels * 2);
  alignas(64) Totals totals, ups;
#pragma omp for collapse(2) schedule(dynamic, 1)
  for (int64_t first = 0; first < p.num_tokens; first += span_tokens)
    for (int64_t panel = 0; panel < num_stored; panel += span_panels) {
      const int64_t end = std::min(first + span_tokens, p.num_tokens);
      const int64_t end_panel = std::min(panel + span_panels, num_stored);
      for (int64_t row = first; row < end; row += rows)
        for (int64_t b = panel; b < end_panel; b++) {
          const int count = int(std::min<int64_t>(rows, end - row));
          char *scratch = memory.as<char>() + (b - panel) * 2 * kept;
          results.fetch_places(b, row, count);
          const int64_t next = next_of(b, end_panel);
          sums.add_up(tiles, b, p.is_gated ? b + half : next, row, count, scratch, is_kept, row > first,
                      totals);
          if (!p.is_gated) {
            results.finish(b, row, count, totals);
            continue;
          }
          sums.add_up(tiles, b + half, next, row, count, scratch + kept, is_kept, row > first, ups);
          results.finish_gated(b, row, count, totals, ups);
        }
    }
}

}  // namespace
