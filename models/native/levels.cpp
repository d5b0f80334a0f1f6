// Products of a step's activations with matrices of levels: 8 bits or 4, each less a zero and times a
// scale, which the inputs of a group share.
//
// Activations become integers, too, by a scale of each token's own: of 7 bits where the product is one of
// int8 by int8, else of 14 (bfloat16) or 21 (float32), in parts of 7 bits. So levels need no work before
// they are multiplied, but for taking two of 4 bits apart; every sum over a group is an integer, which
// is the same in any order, and floats begin where groups are added up, in their order. 14 bits below
// a token's largest activation are finer than bfloat16's 8, but for activations below 1/64 of that.
//
// Sums of many groups cost the more the more tokens there are. Where these are many, and nobody was promised
// that a token's results have the same bits whatever the others, levels become bfloat16 numbers instead.
//
// Shapes: T = tokens, P = parts of an activation, O = outputs, K = the matrix's width, G = groups.
//
// Layouts: see `matmul.cpp`. Levels are bytes without a sign; int8's have 128 added. Of 8 inputs of 4 bits
// there is one vector: byte 4 o + j has output o's input j in its low half and input 4 + j in the other.
// Scales and zeros: [O / 16, G, 16].

#include "panels.h"

namespace {

constexpr int PART_BITS = 7;
constexpr int MOST_TOGETHER = 512;  // inputs: sums of two parts of them are integers of 32 bits together
constexpr int STRETCH = 256;  // inputs whose 4-bit levels are taken apart at once
#ifdef __AVX512F__
constexpr int LEVEL_ROWS = 8;  // parts of tokens at once by vectors: the sums fit the registers
#else
constexpr int LEVEL_ROWS = 4;
#endif

// ---------------------------------------------------------------- integers

inline Ints rounded(Floats x) {  // to the nearest, ties to even, as torch rounds
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtps_epi32((__m512)x);
#else
  Ints to;
  for (int i = 0; i < LANES; i++) to[i] = int32_t(std::nearbyint(x[i]));
  return to;
#endif
}

inline Floats to_floats(Ints x) {
#ifdef __AVX512F__
  return (Floats)_mm512_cvtepi32_ps((__m512i)x);
#else
  return __builtin_convertvector(x, Floats);
#endif
}

inline Ints to_ints(const uint8_t *sixteen) {
#ifdef __AVX512F__
  return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)sixteen));
#else
  Ints to;
  for (int i = 0; i < LANES; i++) to[i] = sixteen[i];
  return to;
#endif
}

inline void store_bytes(Ints x, int8_t *to) {
#ifdef __AVX512F__
  _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)x));
#else
  for (int i = 0; i < LANES; i++) to[i] = int8_t(x[i]);
#endif
}

// 64 levels: four inputs of 16 outputs. And 16 sums of their products with four inputs of a token.
#if defined(__AVX512BW__)
struct Levels {
  __m512i bytes;
  static Levels at(const uint8_t *from) { return {_mm512_loadu_si512(from)}; }
  Levels low() const { return {_mm512_and_si512(bytes, _mm512_set1_epi8(15))}; }
  Levels high() const { return Levels{_mm512_srli_epi16(bytes, 4)}.low(); }
};
struct Sums {
  __m512i sums = _mm512_setzero_si512();
  Ints get() const { return (Ints)sums; }
  void add(Levels levels, int32_t four, [[maybe_unused]] bool are_small) {
    const __m512i x = _mm512_set1_epi32(four);
#ifdef __AVX512VNNI__
    sums = _mm512_dpbusd_epi32(sums, levels.bytes, x);
#else
    add_pairs(levels.low().bytes, x, 1);  // sums of two products of 8 bits do not fit 16
    if (!are_small) add_pairs(levels.high().bytes, x, 16);
  }
  void add_pairs(__m512i levels, __m512i x, int16_t times) {
    const __m512i pairs = _mm512_maddubs_epi16(levels, x);
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(times)));
#endif
  }
};
#elif defined(__AVX2__)
struct Levels {
  __m256i bytes[2];
  static Levels at(const uint8_t *from) {
    return {{_mm256_loadu_si256((const __m256i *)from), _mm256_loadu_si256((const __m256i *)from + 1)}};
  }
  Levels low() const {
    const __m256i mask = _mm256_set1_epi8(15);
    return {{_mm256_and_si256(bytes[0], mask), _mm256_and_si256(bytes[1], mask)}};
  }
  Levels high() const {
    return Levels{{_mm256_srli_epi16(bytes[0], 4), _mm256_srli_epi16(bytes[1], 4)}}.low();
  }
};
struct Sums {
  __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  Ints get() const {
    Ints both;
    memcpy(&both, sums, sizeof both);
    return both;
  }
  void add(Levels levels, int32_t four, bool are_small) {
    const __m256i x = _mm256_set1_epi32(four);
    add_pairs(levels.low(), x, 1);  // sums of two products of 8 bits do not fit 16
    if (!are_small) add_pairs(levels.high(), x, 16);
  }
  void add_pairs(Levels levels, __m256i x, int16_t times) {
    for (int i = 0; i < 2; i++) {
      const __m256i pairs = _mm256_maddubs_epi16(levels.bytes[i], x);
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(times)));
    }
  }
};
#else
struct Levels {
  Words bytes;
  static Levels at(const uint8_t *from) { return {*(const WordsAt *)from}; }
  Levels low() const { return {bytes & 0x0f0f0f0fu}; }
  Levels high() const { return {(bytes >> 4) & 0x0f0f0f0fu}; }
};
struct Sums {
  Ints sums = Ints{};
  Ints get() const { return sums; }
  void add(Levels levels, int32_t four, bool) {
    for (int j = 0; j < 4; j++)
      sums += (Ints)((levels.bytes >> (8 * j)) & 255) * int32_t(int8_t(four >> (8 * j)));
  }
};
#endif

inline int32_t sum(Ints x) {
  int32_t total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}

bool has_integer_tiles() {
#ifdef __AMX_INT8__
  return has_matrix_unit();
#else
  return false;
#endif
}

// ---------------------------------------------------------------- matrices

inline int64_t groups_of(const Matrix &matrix) {
  return (matrix.width + matrix.group_size - 1) / matrix.group_size;
}

// Of all groups, where none are given.
inline int zero_of(const Matrix &matrix) { return matrix.kind == INT4 ? 0 : 128; }

// Of a block of outputs, from this input on.
inline const uint8_t *levels_at(const Matrix &matrix, int64_t block, int64_t input) {
  return (const uint8_t *)matrix.elements +
         (block * matrix.width + input) * LANES / (matrix.kind == INT4 ? 2 : 1);
}

// ---------------------------------------------------------------- activations

// A step's activations as integers. Parts of the tokens that are summed up at once are together, as the
// matrix unit takes them: what a product takes of each, one part after the other.
struct Activations {
  int num_parts;
  int64_t num_tokens, width, group_size, num_groups;
  int64_t tokens_at_once, area;  // area: so many parts are together
  int64_t depth;                 // inputs that a product takes
  float *scales;      // [T]
  int32_t *part_sums; // [T, G, P]: of each group's inputs
  int8_t *parts;      // [T / at once, K / depth, area, depth]; of a token the highest first

  Activations(int num_parts, const Matrix &by, int64_t num_tokens, void *scratch)
      : num_parts(num_parts), num_tokens(num_tokens), width(by.width), group_size(by.group_size),
        num_groups(groups_of(by)),
        tokens_at_once((has_integer_tiles() ? TILE_ROWS : LEVEL_ROWS) / num_parts),
        area(has_integer_tiles() ? TILE_ROWS : LEVEL_ROWS), depth(by.group_size % 64 ? 32 : 64),
        scales((float *)scratch), part_sums((int32_t *)(scales + num_tokens)),
        parts((int8_t *)scratch + scale_bytes()) {
    if (num_tokens < tokens_at_once) area = num_tokens * num_parts;
  }

  // Of scales and sums: parts begin with a line of the cache.
  int64_t scale_bytes() const { return (num_tokens * 4 * (1 + num_parts * num_groups) + 63) / 64 * 64; }

  int64_t num_bytes() const {
    const int64_t num_areas = (num_tokens + tokens_at_once - 1) / tokens_at_once;
    return scale_bytes() + num_areas * area * width;
  }

  // Of the tokens from this one on, the first of an area: the first part's inputs, from one that begins
  // a product.
  const int8_t *from(int64_t token, int64_t input) const {
    return parts + (token / tokens_at_once * width + input) * area;
  }

  template <class T>
  void set(int64_t t, const T *x, int64_t count) const {
    Floats tops = Floats{}, rests = Floats{};
    const int64_t whole = count / LANES * LANES;
    T tail[LANES] = {};
    memcpy((void *)tail, x + whole, (count - whole) * sizeof(T));
    const auto sixteen = [&](int64_t i) { return i < whole ? load(x + i) : load(tail); };
    for (int64_t i = 0; i < count; i += LANES) {
      const Floats value = sixteen(i);
      tops = larger((Floats)((Words)value & 0x7fffffffu), tops);
      rests += value * 0.f;  // NaN for what is not finite: the results are not, either
    }
    const float top = std::max(largest(tops), 1e-30f);
    const float most = 127 << (PART_BITS * (num_parts - 1)), factor = most / top;
    scales[t] = top / most + sum(rests);
    int8_t *to = (int8_t *)from(t, 0) + t % tokens_at_once * num_parts * depth;
    int32_t *sums = part_sums + t * num_parts * num_groups;
    for (int64_t group = 0, i = 0; group < num_groups; group++, sums += num_parts) {
      Ints totals[3] = {};
      for (const int64_t end = std::min(i + group_size, width); i < end; i += LANES) {
        Ints left = i < count ? rounded(sixteen(i) * factor) : Ints{};
        int8_t *here = to + i / depth * depth * area + i % depth;
        for (int part = num_parts - 1; part >= 0; part--) {
          constexpr int HALF = 1 << (PART_BITS - 1);
          const Ints low = part ? ((left + HALF) & (2 * HALF - 1)) - HALF : left;
          left = (left - low) >> PART_BITS;
          store_bytes(low, here + part * depth);
          totals[part] += low;
        }
      }
      for (int part = 0; part < num_parts; part++) sums[part] = sum(totals[part]);
    }
  }
};

template <class T>
int parts_of(const Matrix &matrix) {
  if (matrix.kind == INT8_DYNAMIC) return 1;
  return std::is_same_v<T, float> ? 3 : 2;
}

// ---------------------------------------------------------------- sums

// See `by_panels`.
struct LevelSums {
  const Product &p;
  const Activations &x;

  bool is_int4() const { return p.by.kind == INT4; }
  int64_t rows() const { return x.tokens_at_once; }
  int64_t token_bytes() const { return x.num_parts * x.width; }
  int64_t panel_bytes() const { return x.width * WIDTH; }
  int64_t scratch_bytes(bool is_kept) const {
    return is_int4() && has_integer_tiles() ? WIDTH * (is_kept ? x.width : STRETCH) : 0;
  }

  void add_up([[maybe_unused]] TileSums &tiles, int64_t panel, int64_t next_panel, int64_t first_row,
              int num_rows, [[maybe_unused]] char *scratch, [[maybe_unused]] bool is_kept,
              [[maybe_unused]] bool is_there, Totals &totals) const {
    const int num_parts = num_rows * x.num_parts;
#ifdef __AMX_INT8__
    if (has_matrix_unit() && num_parts > LEVEL_ROWS)
      by_tiles(tiles, panel, next_panel, first_row, num_rows, (uint8_t *)scratch, is_kept, is_there, totals);
    else
#endif
      switch (num_parts) {
#define ROWS(n) case n: is_int4() ? by_vectors<n, true>(panel, next_panel, first_row, totals) \
                                  : by_vectors<n, false>(panel, next_panel, first_row, totals); break;
        ROWS(1) ROWS(2) ROWS(3) ROWS(4)
#ifdef __AVX512F__
        ROWS(5) ROWS(6) ROWS(7) ROWS(8)
#endif
#undef ROWS
      }
  }

 private:
  const uint8_t *levels(int64_t panel, int c, int64_t first = 0) const {
    return levels_at(p.by, panel * 2 + c, first);
  }

  // What a group's sums (of each token's parts) add to the totals of a block, which are done with the last
  // group.
  template <class Get>
  void add_group(int64_t panel, int c, int64_t group, int64_t first_row, int num_rows, const Get &get,
                 Totals &totals) const {
    switch (x.num_parts) {
      case 1: return add_parts<1>(panel, c, group, first_row, num_rows, get, totals);
      case 2: return add_parts<2>(panel, c, group, first_row, num_rows, get, totals);
      case 3: return add_parts<3>(panel, c, group, first_row, num_rows, get, totals);
    }
  }

  template <int P, class Get>
  void add_parts(int64_t panel, int c, int64_t group, int64_t first_row, int num_rows, const Get &get,
                 Totals &totals) const {
    const int64_t place = ((panel * 2 + c) * x.num_groups + group) * LANES;
    const Floats scales = load(p.by.scales + place);
    const int32_t *part_sums = x.part_sums + (first_row * x.num_groups + group) * P;
    const bool is_last = group + 1 == x.num_groups;
    const auto add = [&](const auto &value_of) {
      for (int r = 0; r < num_rows; r++, part_sums += x.num_groups * P) {
        float *total = totals[r] + c * LANES;
        Floats value = value_of(r);
        if (group) value += load(total);
        store(is_last ? value * x.scales[first_row + r] : value, total);
      }
    };
    if (p.by.zeros && P == 2 && x.group_size <= MOST_TOGETHER) {
      const Floats shares = to_floats(to_ints(p.by.zeros + place)) * scales;
      return add([&](int r) {
        const Ints both = (get(2 * r) << PART_BITS) + get(2 * r + 1);
        const float of_zeros = float((part_sums[0] << PART_BITS) + part_sums[1]);
        return to_floats(both) * scales - shares * of_zeros;
      });
    }
    const auto in_parts = [&](const auto &shifted) {
      Floats value = to_floats(shifted(0));
      for (int part = 1; part < P; part++) value = value * float(1 << PART_BITS) + to_floats(shifted(part));
      return value * scales;
    };
    if (p.by.zeros) {
      const Ints zeros = to_ints(p.by.zeros + place);
      return add([&](int r) {
        return in_parts([&](int part) { return get(r * P + part) - zeros * part_sums[part]; });
      });
    }
    const int zero = zero_of(p.by);
    add([&](int r) {
      return in_parts([&](int part) { return get(r * P + part) - zero * part_sums[part]; });
    });
  }

  template <int R, bool IS_INT4>
  void by_vectors(int64_t panel, int64_t next_panel, int64_t first_row, Totals &totals) const {
    constexpr int64_t INPUTS = IS_INT4 ? 8 : 4, AHEAD = 16 * INPUTS;  // of a vector; are fetched so early
    const uint8_t *blocks[2] = {levels(panel, 0), levels(panel, 1)};
    const uint8_t *following[2] = {levels(next_panel, 0), levels(next_panel, 1)};
    for (int64_t group = 0, k = 0; group < x.num_groups; group++) {
      Sums sums[R][2];
      for (const int64_t end = std::min(k + x.group_size, x.width); k < end; k += x.depth) {
        const int8_t *rows = x.from(first_row, k);
        for (int64_t i = 0; i < x.depth; i += INPUTS)
          for (int c = 0; c < 2; c++) {
            const int64_t ahead = k + i + AHEAD, beyond = ahead - x.width;
            __builtin_prefetch(beyond < 0 ? blocks[c] + ahead / INPUTS * 64 : following[c] + beyond / INPUTS * 64);
            const Levels both = Levels::at(blocks[c] + (k + i) / INPUTS * 64);
            for (int r = 0; r < R; r++) {
              int32_t four[2];
              memcpy(four, rows + r * x.depth + i, INPUTS);
              sums[r][c].add(IS_INT4 ? both.low() : both, four[0], IS_INT4);
              if (IS_INT4) sums[r][c].add(both.high(), four[1], true);
            }
          }
      }
      for (int c = 0; c < 2; c++)
        add_group(panel, c, group, first_row, R / x.num_parts, [&](int r) { return sums[r][c].get(); }, totals);
    }
  }

#ifdef __AMX_INT8__
  void by_tiles(TileSums &tiles, int64_t panel, int64_t next_panel, int64_t first_row, int num_rows,
                uint8_t *scratch, bool is_kept, bool is_there, Totals &totals) const {
    alignas(64) int32_t sums[TILE_ROWS][WIDTH];
    const int64_t size = is_kept ? x.width : STRETCH;
    for (int64_t group = 0, first = 0; group < x.num_groups; group++) {
      tiles.begin(num_rows * x.num_parts, int(x.depth));
      for (const int64_t end = std::min(first + x.group_size, x.width); first < end;) {
        const int64_t count = is_int4() ? std::min<int64_t>(end - first, STRETCH) : end - first;
        const uint8_t *blocks[2], *following[2];
        for (int c = 0; c < 2; c++) {
          blocks[c] = levels(panel, c, first);
          following[c] = end < x.width ? levels(panel, c, end) : levels(next_panel, c);
          if (!is_int4()) continue;
          uint8_t *to = scratch + (c * size + (is_kept ? first : 0)) * LANES;
          if (!is_there) take_apart(blocks[c], count, to);
          blocks[c] = following[c] = to;
        }
        const Rows rows{x.from(first_row, first), x.depth, x.area * x.depth, MATRIX_ROWS * x.depth};
        tiles.add<int8_t>(rows, blocks, following, count);
        first += count;
      }
      tiles.write(sums);
      for (int c = 0; c < 2; c++)
        add_group(panel, c, group, first_row, num_rows,
                  [&](int r) { return *(const Ints *)(sums[r] + c * LANES); }, totals);
    }
  }

  static void take_apart(const uint8_t *levels, int64_t count, uint8_t *to) {
    for (int64_t k = 0; k < count; k += 8, levels += 64, to += 128) {
      __builtin_prefetch(levels + 1024);
      const Levels both = Levels::at(levels);
      _mm512_store_si512(to, both.low().bytes);
      _mm512_store_si512(to + 64, both.high().bytes);
    }
  }
#endif
};

// ---------------------------------------------------------------- levels to numbers

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
bool become_numbers(const Matrix &matrix, int64_t num_tokens) {
  const bool has_groups = matrix.group_size < matrix.width && matrix.kind != INT8_DYNAMIC;
  return has_groups && !matrix.is_invariant && 3 * num_tokens > matrix.group_size && has_matrix_unit();
}

// See `by_panels`. The numbers lie as those of a matrix of floats.
struct NumberSums {
  const Product &p;
  const BFloat16 *x;  // [T, K]

  int64_t rows() const { return TILE_ROWS; }
  int64_t token_bytes() const { return sizeof(BFloat16) * p.by.width; }
  int64_t panel_bytes() const { return token_bytes() * WIDTH; }
  int64_t scratch_bytes(bool is_kept) const {
    return sizeof(BFloat16) * WIDTH * (is_kept ? p.by.width : STRETCH);
  }

  void add_up(TileSums &tiles, int64_t panel, int64_t, int64_t first_row, int num_rows, char *scratch,
              bool is_kept, bool is_there, Totals &totals) const {
    const int64_t width = p.by.width, size = is_kept ? width : STRETCH;
    tiles.begin(num_rows, 64);
    for (int64_t first = 0, end; first < width; first = end) {
      end = std::min({first + STRETCH, width, (first / p.by.group_size + 1) * p.by.group_size});
      const BFloat16 *blocks[2];
      for (int c = 0; c < 2; c++) {
        BFloat16 *to = (BFloat16 *)scratch + (c * size + (is_kept ? first : 0)) * LANES;
        if (!is_there) dequantize(panel * 2 + c, first, end, to);
        blocks[c] = to;
      }
      const Rows rows{x + first_row * width + first, token_bytes(), 64, MATRIX_ROWS * token_bytes()};
      tiles.add<BFloat16>(rows, blocks, blocks, end - first);
    }
    tiles.write(totals);
  }

 private:
  // Inputs of one group.
  void dequantize(int64_t block, int64_t first, int64_t end, BFloat16 *to) const {
    const bool is_int4 = p.by.kind == INT4;
    const int64_t place = (block * groups_of(p.by) + first / p.by.group_size) * LANES;
    const Floats scales = load(p.by.scales + place);
    const Floats zeros = p.by.zeros ? to_floats(to_ints(p.by.zeros + place)) : splat(float(zero_of(p.by)));
    uint16_t order[WIDTH];
    for (int o = 0; o < LANES; o++) order[2 * o] = uint16_t(o), order[2 * o + 1] = uint16_t(LANES + o);
    const __m512i pairs = _mm512_loadu_si512(order);
    const int64_t step = is_int4 ? 8 : 4;
    const uint8_t *from = levels_at(p.by, block, first);
    const auto four = [&](Levels levels) {
      Floats values[4];
      for (int j = 0; j < 4; j++)
        values[j] = (to_floats((Ints)(((Words)levels.bytes >> (8 * j)) & 255)) - zeros) * scales;
      for (int j = 0; j < 4; j += 2, to += WIDTH) {
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)values[j + 1], (__m512)values[j]);
        _mm512_store_si512(to, _mm512_permutexvar_epi16(pairs, halves));
      }
    };
    for (int64_t k = first; k < end; k += step, from += 64) {
      __builtin_prefetch(from + 1024);
      const Levels levels = Levels::at(from);
      four(is_int4 ? levels.low() : levels);
      if (is_int4) four(levels.high());
    }
  }
};

void multiply_numbers(const Product &p) {
  by_panels<BFloat16>(p, NumberSums{p, widened<BFloat16>(p)});
}
#else
bool become_numbers(const Matrix &, int64_t) { return false; }
void multiply_numbers(const Product &) {}
#endif

template <class T>
void multiply_levels(const Product &p) {
  if (std::is_same_v<T, BFloat16> && become_numbers(p.by, p.num_tokens)) return multiply_numbers(p);
  const Activations x(parts_of<T>(p.by), p.by, p.num_tokens, p.scratch);
#pragma omp for schedule(static)
  for (int64_t t = 0; t < p.num_tokens; t++)
    x.set(t, (const T *)p.x + t * p.by.num_inputs, p.by.num_inputs);
  by_panels<T>(p, LevelSums{p, x});
}

}  // namespace

int64_t level_scratch(bool is_bfloat16, const Matrix &matrix, int64_t num_tokens) {
  if (is_bfloat16 && become_numbers(matrix, num_tokens)) return widened_bytes<BFloat16>(matrix, num_tokens);
  const int num_parts = is_bfloat16 ? parts_of<BFloat16>(matrix) : parts_of<float>(matrix);
  return Activations(num_parts, matrix, num_tokens, nullptr).num_bytes();
}

void multiply_levels(bool is_bfloat16, const Product &product) {
  is_bfloat16 ? multiply_levels<BFloat16>(product) : multiply_levels<float>(product);
}
