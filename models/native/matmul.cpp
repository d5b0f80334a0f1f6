// Products of a step's activations with matrices of floats, of int8 and of 4-bit levels. Plain C
// interface.
//
// Every result is summed up input by input in an order that depends on the matrix's width alone, and
// how it is computed on the CPU and the types alone: a token's results have the same bits whatever
// other tokens are in the step. Levels become numbers of the activations' type, a few inputs at a
// time, in the cache; sums are float32, or integers where activations are int8 as well.
//
// Shapes: T = tokens, O = outputs, I = inputs, K = inputs with those that fill the matrix up to a
// multiple of 64, G = groups of inputs. Outputs come in blocks of 16, filled up with zeros.
//
// The layout of a matrix, by blocks of outputs: with P = 2 for products of floats and 4 for those of
// int8, an element (output o, input k) of a block stands at
//   ((k / P) * 16 + o) * P + k % P
// so that P inputs of 16 outputs are a vector (two for float32 elements), and 16 of these a tile of
// the matrix unit. 4-bit levels: of 8 inputs (4 pairs) 16 words, in which bits 8 p … 8 p + 3 of word w
// are the level of output w / 2 and input 2 p + w % 2, and bits 8 p + 4 … of output 8 + w / 2.
// Scales and zeros of groups: [O / 16, G, 16]; scales of whole outputs: [O].

#include <algorithm>
#include <vector>

#include "team.h"
#include "vectors.h"

namespace {

constexpr int WIDTH = 2 * LANES;       // outputs that are computed together: a panel
constexpr int STRETCH = 128;           // inputs that become floats at once
constexpr int VECTOR_ROWS = 6;         // tokens at once by vectors: the sums fit the registers
constexpr int64_t SPAN_BYTES = 512 << 10;  // of the tokens that panels meet one after the other
constexpr int TILE_ROWS = 2 * MATRIX_ROWS;  // and by the matrix unit

typedef int64_t Longs __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef int8_t BytesAt __attribute__((vector_size(16), aligned(1)));
typedef uint8_t Zeros __attribute__((vector_size(16)));
typedef uint8_t ZerosAt __attribute__((vector_size(16), aligned(1)));

inline Floats shuffle(Floats x, int first) {  // each of eight lanes twice
#ifdef __clang__
  return first ? __builtin_shufflevector(x, x, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15)
               : __builtin_shufflevector(x, x, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
#else
  const Ints lanes = Ints{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7} + first;
  return __builtin_shuffle(x, lanes);
#endif
}

// Of a vector of bytes, compilers make a loop.
inline Floats to_floats(Bytes levels) {
#ifdef __AVX512F__
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)levels));
#else
  return __builtin_convertvector(levels, Floats);
#endif
}
inline Floats to_floats(Zeros zeros) {
#ifdef __AVX512F__
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)zeros));
#else
  return __builtin_convertvector(zeros, Floats);
#endif
}

// ---------------------------------------------------------------- levels to numbers

// `to`: [inputs / 2, 16, 2] of block b, inputs first … end - 1, all of one group.
template <class T>
void dequantize(const Product &p, Kind kind, int64_t b, int64_t first, int64_t end, T *to) {
  Floats scale_low, scale_high, zero_low, zero_high;
  if (kind != INT8) {
    const int64_t num_groups = (p.by.width + p.by.group_size - 1) / p.by.group_size;
    const int64_t place = (b * num_groups + first / p.by.group_size) * LANES;
    const Floats scales = load(p.by.scales + place);
    Floats zeros = Floats{};
    if (p.by.zeros) {
      zeros = to_floats(*(const ZerosAt *)(p.by.zeros + place));
      if (kind == INT8_GROUPS) zeros -= 128.f;
    }
    scale_low = shuffle(scales, 0), scale_high = shuffle(scales, 8);
    zero_low = shuffle(zeros, 0), zero_high = shuffle(zeros, 8);
  }
  if (kind == INT4_GROUPS) {
    const uint32_t *words = (const uint32_t *)p.by.elements + (b * p.by.width + first) / 8 * LANES;
    for (int64_t k = first; k < end; k += 8, words += LANES) {
      const Words eight = *(const WordsAt *)words;
      for (int pair = 0; pair < 4; pair++, to += WIDTH) {
        const Ints low = (Ints)(eight >> (8 * pair)) & 15, high = (Ints)(eight >> (8 * pair + 4)) & 15;
        store((__builtin_convertvector(low, Floats) - zero_low) * scale_low, to);
        store((__builtin_convertvector(high, Floats) - zero_high) * scale_high, to + LANES);
      }
    }
    return;
  }
  const int8_t *levels = (const int8_t *)p.by.elements + b * p.by.width * LANES + first * LANES;
  for (int64_t k = first; k < end; k += 2, levels += WIDTH, to += WIDTH) {
    const Floats low = to_floats(*(const BytesAt *)levels);
    const Floats high = to_floats(*(const BytesAt *)(levels + LANES));
    store(kind == INT8 ? low : (low - zero_low) * scale_low, to);
    store(kind == INT8 ? high : (high - zero_high) * scale_high, to + LANES);
  }
}

// ---------------------------------------------------------------- sums of float products, by vectors

// R tokens and the two blocks of a panel.
template <class T, int R>
struct VectorSums;

template <int R>
struct VectorSums<BFloat16, R> {
  Floats sums[R][2];

  VectorSums() { memset(this, 0, sizeof *this); }

  void add(const BFloat16 *const *rows, const BFloat16 *const *blocks, int64_t count) {
    Floats acc[R][2];
    memcpy(acc, sums, sizeof acc);
    for (int64_t k = 0; k < count; k += 2)
      for (int r = 0; r < R; r++)
        for (int c = 0; c < 2; c++) multiply_add(acc[r][c], blocks[c] + k * LANES, rows[r] + k);
    memcpy(sums, acc, sizeof acc);
  }

  void write(float (*to)[WIDTH]) const {
    for (int r = 0; r < R; r++)
      for (int c = 0; c < 2; c++) store(sums[r][c], to[r] + c * LANES);
  }
};

// A lane has every other input of an output.
template <int R>
struct VectorSums<float, R> {
  Floats sums[R][4];

  VectorSums() { memset(this, 0, sizeof *this); }

  void add(const float *const *rows, const float *const *blocks, int64_t count) {
    Floats acc[R][4];
    memcpy(acc, sums, sizeof acc);
    for (int64_t k = 0; k < count; k += 2)
      for (int r = 0; r < R; r++) {
        int64_t two;
        memcpy(&two, rows[r] + k, 8);
        const Floats pair = (Floats)(two - Longs{});
        for (int c = 0; c < 4; c++) acc[r][c] += load(blocks[c / 2] + k * LANES + c % 2 * LANES) * pair;
      }
    memcpy(sums, acc, sizeof acc);
  }

  void write(float (*to)[WIDTH]) const {
    for (int r = 0; r < R; r++)
      for (int c = 0; c < 4; c++)
        for (int o = 0; o < LANES / 2; o++)
          to[r][c * LANES / 2 + o] = sums[r][c][2 * o] + sums[r][c][2 * o + 1];
  }
};

// ---------------------------------------------------------------- and by the matrix unit

#ifdef __AMX_TILE__
// Up to 32 tokens (tiles 4 and 5) times the two blocks (6 and 7): sums in tiles 0 to 3. A thread has
// one of these for all of its panels: giving the unit its shapes takes as long as ten products.
struct TileSums {
  int low = 0, high = 0;  // tokens of the two tiles

  TileSums() = default;
  TileSums(const TileSums &) = delete;
  ~TileSums() {
    if (low) _tile_release();
  }

  void begin(int num_rows) {
    if (num_rows != low + high) shape(num_rows);
    clear();
  }

  // `x`: the first token's inputs; a tile holds 64 bytes of each token's. `following`: what is read of
  // each block's place afterwards. The prefetchers alone bring less than memory gives, and wait for
  // the first lines of every block.
  template <class T>
  void add(const T *x, int64_t row_bytes, const T *const *blocks, const T *const *following,
           int64_t count) const {
    constexpr int64_t STEP = 64 / sizeof(T);
    const T *second = x + MATRIX_ROWS * (row_bytes / sizeof(T));
    for (int64_t k = 0; k < count; k += STEP) {
      for (int c = 0; c < 2; c++)
        fetch(k + STEP < count ? blocks[c] + (k + STEP) * LANES : following[c], 16, STEP);
      _tile_loadd(4, x + k, row_bytes);
      _tile_loadd(6, blocks[0] + k * LANES, 64);
      _tile_loadd(7, blocks[1] + k * LANES, 64);
      if constexpr (std::is_same_v<T, BFloat16>) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      } else {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
      }
      if (!high) continue;
      _tile_loadd(5, second + k, row_bytes);
      if constexpr (std::is_same_v<T, BFloat16>) {
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      } else {
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
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
  void shape(int num_rows) {
    low = std::min(num_rows, MATRIX_ROWS), high = num_rows - low;
    const uint8_t a = uint8_t(low), b = uint8_t(std::max(high, 1));
    shape_tiles({a, a, b, b, a, b, 16, 16});
  }

  void clear() const {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
};
#else
struct TileSums {};
#endif

// ---------------------------------------------------------------- results

// Sums times their scales (where they have them here), plus the bias.
template <class T>
void finish(const Product &p, int64_t panel, int64_t row, const float *sums, const float *scales,
            float row_scale) {
  const int64_t first = panel * WIDTH, count = std::min<int64_t>(WIDTH, p.by.num_outputs - first);
  T *to = (T *)p.out + row * p.by.num_outputs + first;
  const T *bias = p.by.bias ? (const T *)p.by.bias + first : nullptr;
  int64_t o = 0;
  for (; o + LANES <= count; o += LANES) {
    Floats value = load(sums + o);
    if (scales) value = value * load(scales + first + o) * row_scale;
    if (bias) value += load(bias + o);
    store(value, to + o);
  }
  for (; o < count; o++) {
    float value = sums[o];
    if (scales) value = value * scales[first + o] * row_scale;
    if (bias) value += to_float(bias[o]);
    store(value, to + o);
  }
}

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

// ---------------------------------------------------------------- activations of floats

template <class T>
struct FloatProduct {
  const Product &p;
  const Kind kind;
  const T *x;  // [T, K]

  int64_t num_panels() const { return (p.by.num_outputs + WIDTH - 1) / WIDTH; }

  // Calls use(blocks, following, first, end) for stretches of inputs, in order; `numbers` holds those of
  // all of them when there is another round with the same panel, and those of one otherwise.
  template <class Use>
  void stretches(int64_t panel, int64_t next_panel, T *numbers, bool is_kept, bool is_there,
                 const Use &use) const {
    const int64_t size = is_kept ? p.by.width : STRETCH;
    for (int64_t first = 0, end; first < p.by.width; first = end) {
      end = std::min(first + STRETCH, p.by.width);
      if (kind == INT8_GROUPS || kind == INT4_GROUPS)
        end = std::min(end, (first / p.by.group_size + 1) * p.by.group_size);
      const T *blocks[2], *following[2];
      for (int c = 0; c < 2; c++) {
        if (kind == FLOATS) {
          blocks[c] = block(panel, c) + first * LANES;
          following[c] = end < p.by.width ? block(panel, c) + end * LANES : block(next_panel, c);
          continue;
        }
        T *to = numbers + (c * size + (is_kept ? first : 0)) * LANES;
        if (!is_there) dequantize(p, kind, panel * 2 + c, first, end, to);
        blocks[c] = following[c] = to;
      }
      use(blocks, following, first, end);
    }
  }

  // Of a matrix of floats.
  const T *block(int64_t panel, int c) const {
    return (const T *)p.by.elements + (panel * 2 + c) * p.by.width * LANES;
  }

  typedef float Totals[TILE_ROWS][WIDTH];  // of some rows and a panel

  // A vector of a row's results as it is stored: with its scales and the bias.
  Floats result(int64_t panel, const float *sums, int c) const {
    const int64_t first = panel * WIDTH + c * LANES;
    Floats value = load(sums + c * LANES);
    if (kind == INT8) value = value * load(p.by.scales + first);
    if (p.by.bias) value += load((const T *)p.by.bias + first);
    return as_stored(value, x);
  }

  void finish_rows(int64_t panel, int64_t first_row, int num_rows, const Totals &sums) const {
    if ((panel + 1) * WIDTH > p.by.num_outputs) {
      const float *scales = kind == INT8 ? p.by.scales : nullptr;
      for (int r = 0; r < num_rows; r++) finish<T>(p, panel, first_row + r, sums[r], scales, 1.f);
      return;
    }
    T *to = (T *)p.out + first_row * p.by.num_outputs + panel * WIDTH;
    for (int r = 0; r < num_rows; r++, to += p.by.num_outputs)
      for (int c = 0; c < 2; c++) store(result(panel, sums[r], c), to + c * LANES);
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
  void fetch_results(int64_t panel, int64_t first_row, int num_rows) const {
    const int64_t width = p.is_gated ? p.by.num_outputs / 2 : p.by.num_outputs;
    const T *to = (const T *)p.out + first_row * width + panel * WIDTH;
    for (int r = 0; r < num_rows; r++) __builtin_prefetch(to + r * width, 1);
  }

  template <int R>
  void by_vectors(int64_t panel, int64_t first_row, T *numbers, bool is_kept, bool is_there,
                  Totals &totals) const {
    VectorSums<T, R> sums;
    const auto add = [&](const T *const *blocks, const T *const *, int64_t first, int64_t end) {
      const T *rows[R];
      for (int r = 0; r < R; r++) rows[r] = x + (first_row + r) * p.by.width + first;
      sums.add(rows, blocks, end - first);
    };
    stretches(panel, panel, numbers, is_kept, is_there, add);
    sums.write(totals);
  }

  // `next_panel`: what this thread most likely reads next.
  void sum_up([[maybe_unused]] TileSums &tiles, int64_t panel, [[maybe_unused]] int64_t next_panel,
              int64_t first_row, int num_rows, T *numbers, bool is_kept, bool is_there,
              Totals &totals) const {
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (has_matrix_unit()) {
        tiles.begin(num_rows);
        const auto add = [&](const T *const *blocks, const T *const *following, int64_t first, int64_t end) {
          const T *from = x + first_row * p.by.width + first;
          tiles.add(from, p.by.width * sizeof(T), blocks, following, end - first);
        };
        stretches(panel, next_panel, numbers, is_kept, is_there, add);
        return tiles.write(totals);
      }
    }
#endif
    switch (num_rows) {
#define ROWS(n) case n: return by_vectors<n>(panel, first_row, numbers, is_kept, is_there, totals);
      ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#undef ROWS
    }
  }

  // Panels whose results are stored: of gated ones the first half, each with its other.
  int64_t num_stored() const { return p.is_gated ? num_panels() / 2 : num_panels(); }

  // Tokens and panels that meet each other while both are in the second cache. Few tokens: every
  // panel is read once, and by whichever thread is free.
  struct Spans {
    int64_t tokens, panels;
  };

  Spans spans(int rows) const {
    const int64_t row_bytes = sizeof(T) * p.by.width;
    if (p.num_tokens <= rows) return {p.num_tokens, 1};
    const int64_t most = std::max<int64_t>(SPAN_BYTES / row_bytes / rows, 2) * rows;
    const int64_t num_spans = (p.num_tokens + most - 1) / most;
    const int64_t tokens = ((p.num_tokens + num_spans - 1) / num_spans + rows - 1) / rows * rows;
    const int64_t fit = std::max<int64_t>(SPAN_BYTES / (p.is_gated ? 4 : 2) / (row_bytes * WIDTH), 1);
    const int64_t even = num_stored() * num_spans / (4 * p.num_threads);
    return {tokens, std::clamp<int64_t>(even, 1, fit)};
  }

  // The panel after this one of a span: another one of it, or the first of one that nobody has begun.
  int64_t next_of(int64_t panel, int64_t end_panel, const Spans &span) const {
    if (panel + 1 < end_panel) return panel + 1;
    const int64_t next = end_panel + (p.num_threads - 1) * span.panels;
    return next < num_stored() ? next : panel;
  }

  void run() const {
    const bool has_tiles = std::is_same_v<T, BFloat16> && has_matrix_unit();
    const int rows = has_tiles ? TILE_ROWS : VECTOR_ROWS;
    const bool is_kept = p.num_tokens > rows;
    const Spans span = spans(rows);
    TileSums tiles;
    Aligned memory;
    const int64_t kept = WIDTH * (is_kept ? p.by.width : STRETCH), half = num_panels() / 2;
    if (kind != FLOATS) memory.reserve(sizeof(T) * kept * span.panels * 2);
    alignas(64) Totals totals, ups;
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int64_t first = 0; first < p.num_tokens; first += span.tokens)
      for (int64_t panel = 0; panel < num_stored(); panel += span.panels) {
        const int64_t end = std::min(first + span.tokens, p.num_tokens);
        const int64_t end_panel = std::min(panel + span.panels, num_stored());
        for (int64_t row = first; row < end; row += rows)
          for (int64_t b = panel; b < end_panel; b++) {
            const int count = int(std::min<int64_t>(rows, end - row));
            T *numbers = memory.as<T>() + (b - panel) * 2 * kept;
            fetch_results(b, row, count);
            const int64_t next = next_of(b, end_panel, span);
            sum_up(tiles, b, p.is_gated ? b + half : next, row, count, numbers, is_kept, row > first, totals);
            if (!p.is_gated) {
              finish_rows(b, row, count, totals);
              continue;
            }
            sum_up(tiles, b + half, next, row, count, numbers + kept, is_kept, row > first, ups);
            finish_gated(b, row, count, totals, ups);
          }
      }
  }
};

// ---------------------------------------------------------------- activations of int8

// Levels of a token by its own scale: to the nearest, ties to even, as torch rounds.
template <class T>
float quantize_row(const T *x, int64_t count, int8_t *to) {
  float largest = 1e-30f;
  for (int64_t i = 0; i < count; i++) largest = std::max(largest, std::fabs(to_float(x[i])));
  const float factor = 127.f / largest;
  for (int64_t i = 0; i < count; i++) to[i] = int8_t(std::nearbyint(to_float(x[i]) * factor));
  return largest / 127.f;
}

template <int R>
void integer_sums(const int8_t *const *rows, const int8_t *const *blocks, int64_t width,
                  int32_t (*to)[WIDTH]) {
  Ints acc[R][2];
  memset(acc, 0, sizeof acc);
#ifdef __AVX512VNNI__
  // The instruction takes one side without sign: 128 is added to it, and its share subtracted.
  Ints shares[2] = {};
  for (int64_t k = 0; k < width; k += 4) {
    for (int c = 0; c < 2; c++) {
      const __m512i levels = _mm512_loadu_si512(blocks[c] + k * LANES);
      shares[c] = (Ints)_mm512_dpbusd_epi32((__m512i)shares[c], _mm512_set1_epi32(int(0x80808080u)), levels);
      for (int r = 0; r < R; r++) {
        uint32_t four;
        memcpy(&four, rows[r] + k, 4);
        const __m512i x = _mm512_set1_epi32(int(four ^ 0x80808080u));
        acc[r][c] = (Ints)_mm512_dpbusd_epi32((__m512i)acc[r][c], x, levels);
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < 2; c++) acc[r][c] -= shares[c];
#else
  for (int64_t k = 0; k < width; k += 4)
    for (int c = 0; c < 2; c++) {
      const Words levels = *(const WordsAt *)(blocks[c] + k * LANES);
      for (int j = 0; j < 4; j++) {
        const Ints column = (Ints)(levels << (24 - 8 * j)) >> 24;
        for (int r = 0; r < R; r++) acc[r][c] += column * int(rows[r][k + j]);
      }
    }
#endif
  for (int r = 0; r < R; r++)
    for (int c = 0; c < 2; c++) memcpy(to[r] + c * LANES, &acc[r][c], sizeof(Ints));
}

template <class T>
struct IntegerProduct {
  const Product &p;

  void some_rows([[maybe_unused]] TileSums &tiles, int64_t panel, int64_t first_row, int num_rows,
                 const int8_t *x, const float *row_scales) const {
    alignas(64) int32_t totals[TILE_ROWS][WIDTH];
    const int8_t *blocks[2];
    for (int c = 0; c < 2; c++) blocks[c] = (const int8_t *)p.by.elements + (panel * 2 + c) * p.by.width * LANES;
    const int8_t *rows[VECTOR_ROWS];
    for (int r = 0; r < std::min(num_rows, VECTOR_ROWS); r++) rows[r] = x + (first_row + r) * p.by.width;
#ifdef __AMX_INT8__
    if (has_matrix_unit()) {
      tiles.begin(num_rows);
      tiles.add(rows[0], p.by.width, blocks, blocks, p.by.width);
      tiles.write(totals);
    } else
#endif
      switch (num_rows) {
#define ROWS(n) case n: integer_sums<n>(rows, blocks, p.by.width, totals); break;
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#undef ROWS
      }
    float sums[WIDTH];
    for (int r = 0; r < num_rows; r++) {
      for (int o = 0; o < WIDTH; o++) sums[o] = float(totals[r][o]);
      finish<T>(p, panel, first_row + r, sums, p.by.scales, row_scales[first_row + r]);
    }
  }

  // Of the team: a scale for every token, and its levels.
  static int64_t scratch_bytes(const Matrix &matrix, int64_t num_tokens) {
    return num_tokens * (matrix.width + int64_t(sizeof(float)));
  }

  void run() const {
    float *row_scales = (float *)p.scratch;
    int8_t *x = (int8_t *)(row_scales + p.num_tokens);
#ifdef __AMX_INT8__
    const int rows = has_matrix_unit() ? TILE_ROWS : VECTOR_ROWS;
#else
    const int rows = VECTOR_ROWS;
#endif
    const int64_t num_panels = (p.by.num_outputs + WIDTH - 1) / WIDTH;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < p.num_tokens; t++) {
      int8_t *to = x + t * p.by.width;
      row_scales[t] = quantize_row((const T *)p.x + t * p.by.num_inputs, p.by.num_inputs, to);
      memset(to + p.by.num_inputs, 0, p.by.width - p.by.num_inputs);
    }
    TileSums tiles;
#pragma omp for schedule(dynamic, 1)
    for (int64_t panel = 0; panel < num_panels; panel++)
      for (int64_t row = 0; row < p.num_tokens; row += rows)
        some_rows(tiles, panel, row, int(std::min<int64_t>(rows, p.num_tokens - row)), x, row_scales);
  }
};

template <class T>
void multiply(const Product &p) {
  if (p.by.kind == INT8_ACTIVATIONS) return IntegerProduct<T>{p}.run();
  FloatProduct<T>{p, Kind(p.by.kind), widened<T>(p)}.run();
}

}  // namespace

bool can_gate(const Matrix &matrix) {
  return matrix.kind != INT8_ACTIVATIONS && matrix.num_outputs % (2 * WIDTH) == 0;
}

int64_t product_scratch(bool is_bfloat16, const Matrix &matrix, int64_t num_tokens) {
  if (matrix.kind == INT8_ACTIVATIONS) return IntegerProduct<float>::scratch_bytes(matrix, num_tokens);
  if (matrix.num_inputs == matrix.width) return 0;
  return num_tokens * matrix.width * int64_t(is_bfloat16 ? sizeof(BFloat16) : sizeof(float));
}

void multiply(bool is_bfloat16, const Product &product) {
  is_bfloat16 ? multiply<BFloat16>(product) : multiply<float>(product);
}

extern "C" {

// out = x Wᵀ + bias; see the top of the file. is_bfloat16: activations, bias and results, and the
// matrix where it is one of floats; else float32.
void shoal_multiply(int is_bfloat16, const Matrix *matrix, const void *bias, const void *x, void *out,
                    int64_t num_tokens, int32_t num_threads) {
  Aligned scratch;
  scratch.reserve(product_scratch(is_bfloat16, *matrix, num_tokens));
  Product product{*matrix, x, out, num_tokens, scratch.as<void>(), num_threads, false};
  product.by.bias = bias;
  const bool is_worth_it = matrix->width * matrix->num_outputs * (num_tokens + 8) > 1 << 19;
#pragma omp parallel num_threads(num_threads) if (is_worth_it)
  multiply(is_bfloat16, product);
}
}
