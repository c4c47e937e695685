// The loops of quantised.cpp for one instruction set. Included inside a namespace that has defined
// POPXL_SIMD, POPXL_ENTRY, Vector, LANES and the operations on vectors.

// ---- int8 -----------------------------------------------------------------------------------

constexpr int64_t STRETCH = 1024;  // columns of x that stay in the first-level cache

// Adds the products of one vector of each of R rows of x with those of C rows of w.
template <int R, int C>
POPXL_SIMD void dot8_vectors(const Rows8& p, const float* x, const int8_t* w, Vector (*sum)[C]) {
  Vector wide[C];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) wide[c] = load_codes(w + c * p.codes_row);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Vector v = load(x + r * p.x_row);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[r][c] = multiply_add(v, wide[c], sum[r][c]);
  }
}

// Adds to the sums of R rows of x with C rows of w, one vector per pair, in an order that neither
// changes. The next C rows of w come into the second-level cache meanwhile: one after another for
// one or two rows of x, which wait for w only, and memory is read fastest from end to end.
template <int R, int C>
POPXL_SIMD void dot8_block(const Rows8& p, const float* x, const int8_t* w, int64_t length,
                           bool first, float* sums) {
  Vector sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      sum[r][c] = first ? zero() : load(sums + (r * PIECE + c) * LANES);
  const int8_t* next = w + C * p.codes_row;
  if constexpr (R <= 2) {
    const int64_t part = parts(length, C * LANES) * LANES;
    for (int64_t c = 0, j = 0; c < C; ++c) {
      const int8_t* ahead = next + c * p.codes_row;
      for (const int64_t end = least(length, j + part); j < end; j += LANES, ahead += C * LANES) {
#pragma GCC unroll 8
        for (int line = 0; line < C * LANES; line += 64) __builtin_prefetch(ahead + line, 0, 2);
        dot8_vectors<R, C>(p, x + j, w + j, sum);
      }
    }
  } else {
    for (int64_t j = 0; j < length; j += LANES) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) __builtin_prefetch(next + c * p.codes_row + j, 0, 2);
      dot8_vectors<R, C>(p, x + j, w + j, sum);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(sums + (r * PIECE + c) * LANES, sum[r][c]);
}

template <int R>
POPXL_ENTRY void dot8_rows(const Rows8& p, int64_t row, int64_t column, int64_t end) {
  constexpr int C = R <= 2 ? LANES / 2 : LANES / 4;
  alignas(64) float sums[R * PIECE * LANES];
  const float* x = p.x + row * p.x_row;
  const int8_t* w = p.codes + column * p.codes_row;
  const int64_t columns = end - column, whole = p.k - p.k % LANES;
  // One or two rows wait for w only: long stretches of it are read faster.
  const int64_t stretch = R <= 2 ? most(whole, 1) : STRETCH;
  for (int64_t j = 0; j == 0 || j < whole; j += stretch) {
    const int64_t length = least(stretch, whole - j);
    int64_t c = 0;
    for (; c + C <= columns; c += C)
      dot8_block<R, C>(p, x + j, w + c * p.codes_row + j, length, j == 0, sums + c * LANES);
    for (; c < columns; ++c)
      dot8_block<R, 1>(p, x + j, w + c * p.codes_row + j, length, j == 0, sums + c * LANES);
  }
  for (int64_t c = 0; c < columns; ++c)
    for (int r = 0; r < R; ++r) {
      float rest = 0;
      for (int64_t j = whole; j < p.k; ++j)
        rest += x[r * p.x_row + j] * static_cast<float>(w[c * p.codes_row + j]);
      p.y[(row + r) * p.y_row + column + c] =
          p.scales[column + c] * (total(load(sums + (r * PIECE + c) * LANES)) + rest);
    }
}

void dot8(const Rows8& p) {
  using Function = void (*)(const Rows8&, int64_t, int64_t, int64_t);
  static constexpr Function BY_ROWS[MOST_ROWS] = {dot8_rows<1>, dot8_rows<2>, dot8_rows<3>,
                                                  dot8_rows<4>, dot8_rows<5>, dot8_rows<6>};
  by_pieces(p, BY_ROWS);
}

// ---- int4 -----------------------------------------------------------------------------------

constexpr int BLOCK = LANES;  // groups whose scales fill a vector, and whose codes fill four
constexpr int QUARTER = BLOCK / 4;
constexpr int QUARTER_BYTES = QUARTER * GROUP / 2;  // of codes; of x twice as many

// Adds to the sums of R rows of x with a row of w those of a block of groups, of which `count` are
// there. The products of their scales are made for the whole block at once.
template <int R, bool WHOLE>
POPXL_SIMD void dot4_groups(const Rows4& p, const int8_t* x, const float* x_scale,
                            const float* x_shift, const uint8_t* w, const uint16_t* scales,
                            int count, int64_t ahead, Vector* sum) {
  const Vector own = WHOLE ? load_scales(scales) : load_some_scales(scales, count);
  Vector scale[R], part[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    scale[r] = multiply(own, load(x_scale + r * p.x_groups));
    part[r] = multiply(own, load(x_shift + r * p.x_groups));
  }
#pragma GCC unroll 4
  for (int quarter = 0; quarter < 4; ++quarter) {
    const uint8_t* at = w + quarter * QUARTER_BYTES;
    const int left = count - quarter * QUARTER;
    if (!WHOLE && left <= 0) break;
    const bool all = WHOLE || left >= QUARTER;
    const Bytes codes = all ? load_bytes(at) : load_some_bytes(at, left * (GROUP / 2));
    const Bytes low = low_halves(codes), high = high_halves(codes);
    if (quarter * QUARTER_BYTES % 64 == 0) prefetch<R>(at + ahead);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int8_t* from = x + r * p.x_groups * GROUP + 2 * quarter * QUARTER_BYTES;
      const Vector dots = dot_halves(low, load_bytes(from), high, load_bytes(from + QUARTER_BYTES));
      part[r] = multiply_add(dots, each_group(scale[r], quarter), part[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = add(sum[r], part[r]);
}

// R rows of x with a row of w. What is `ahead` bytes further, the same columns of a later row, is
// asked for meanwhile.
template <int R>
POPXL_SIMD void dot4_row(const Rows4& p, int64_t row, int64_t column, int64_t ahead) {
  const int64_t groups = p.k / GROUP, whole = groups - groups % BLOCK;
  const uint8_t* w = p.codes + column * p.codes_row;
  const uint16_t* scales = p.scales + column * p.scales_row;
  const int64_t first = row * p.x_groups;
  Vector sum[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = zero();
  for (int64_t g = 0; g < whole; g += BLOCK)
    dot4_groups<R, true>(p, p.x + (first + g) * GROUP, p.x_scale + first + g, p.x_shift + first + g,
                         w + g * GROUP / 2, scales + g, BLOCK, ahead, sum);
  if (whole < groups)
    dot4_groups<R, false>(p, p.x + (first + whole) * GROUP, p.x_scale + first + whole,
                          p.x_shift + first + whole, w + whole * GROUP / 2, scales + whole,
                          static_cast<int>(groups - whole), ahead, sum);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) p.y[(row + r) * p.y_row + column] = total(sum[r]);
}

template <int R>
POPXL_ENTRY void dot4_rows(const Rows4& p, int64_t row, int64_t column, int64_t end) {
  const int64_t ahead = p.codes_row * most(CODES_AHEAD / most(p.k / 2, 1), 1);
  for (; column < end; ++column) dot4_row<R>(p, row, column, ahead);
}

void dot4(const Rows4& p) {
  using Function = void (*)(const Rows4&, int64_t, int64_t, int64_t);
  static constexpr Function BY_ROWS[MOST_ROWS] = {dot4_rows<1>, dot4_rows<2>, dot4_rows<3>,
                                                  dot4_rows<4>, dot4_rows<5>, dot4_rows<6>};
  by_pieces(p, BY_ROWS);
}

// A group of x to int8, its elements before and from the middle to two places; its scale, which is
// NaN if an element is not finite.
POPXL_SIMD float round_group(const float* from, int8_t* low, int8_t* high, int* sum) {
  __m256 v[4];
  __m256i largest = _mm256_setzero_si256();  // the bits of sizes, which have the sizes' order
  const __m256i size_bits = _mm256_set1_epi32(0x7fffffff);
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_loadu_ps(from + 8 * i);
    largest = _mm256_max_epi32(_mm256_and_si256(size_bits, _mm256_castps_si256(v[i])), largest);
  }
  __m128i most = _mm_max_epi32(_mm256_castsi256_si128(largest),
                               _mm256_extracti128_si256(largest, 1));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
  const float size = _mm_cvtss_f32(_mm_castsi128_ps(most));
  const __m256 inverse = _mm256_set1_ps(size > LEAST_SIZE ? 127.0f / size : 0.0f);
  __m256i code[4], all = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    code[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    all = _mm256_add_epi32(all, code[i]);
  }
  // Packing mixes the halves of registers.
  const __m256i pairs = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]),
                                           _mm256_packs_epi32(code[2], code[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(pairs, order);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm256_castsi256_si128(bytes));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm256_extracti128_si256(bytes, 1));
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  *sum = _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  return size - size + size / 127.0f;  // infinity less itself is NaN
}

// x (m, k) to int8 with a scale for each group, zeros behind its groups. The bytes stand as codes
// are unpacked: of as many groups as a vector has codes of first those of low halves.
POPXL_ENTRY void round_rows(int64_t m, int64_t k, const float* x, int64_t x_row, int64_t x_groups,
                            int8_t* out, float* scale, float* shift) {
  const int64_t groups = k / GROUP;
  for (int64_t r = 0; r < m; ++r, out += x_groups * GROUP, scale += x_groups, shift += x_groups) {
    for (int64_t g = 0; g < x_groups; ++g) {
      static const float NOTHING[GROUP] = {};
      const float* from = g < groups ? x + r * x_row + g * GROUP : NOTHING;
      int8_t* low = out + g / QUARTER * 2 * QUARTER_BYTES + g % QUARTER * (GROUP / 2);
      int sum;
      scale[g] = round_group(from, low, low + QUARTER_BYTES, &sum);
      shift[g] = -8.0f * scale[g] * static_cast<float>(sum);
    }
  }
}

// ---- as float16 -----------------------------------------------------------------------------

POPXL_SIMD void store_half(uint16_t* out, __m256 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

POPXL_SIMD __m256 eight_codes(__m128i bytes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

POPXL_ENTRY void widen8_row(int64_t k, const int8_t* codes, float scale, uint16_t* out) {
  const __m256 s = _mm256_set1_ps(scale);
  int64_t j = 0;
  for (; j + 8 <= k; j += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + j));
    store_half(out + j, _mm256_mul_ps(eight_codes(bytes), s));
  }
  if (const int64_t rest = k - j) {
    alignas(16) int8_t end[16] = {};
    uint16_t wide[8];
    std::memcpy(end, codes + j, rest);
    const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(end));
    store_half(wide, _mm256_mul_ps(eight_codes(bytes), s));
    std::memcpy(out + j, wide, rest * sizeof(uint16_t));
  }
}

void widen8(int64_t n, int64_t k, const int8_t* codes, int64_t codes_row, const float* scales,
            uint16_t* out, Team team) {
  parallel(team, parts(n, PIECE), [&](int64_t task, int64_t) {
    for (int64_t row = task * PIECE; row < least(n, (task + 1) * PIECE); ++row)
      widen8_row(k, codes + row * codes_row, scales[row], out + row * k);
  });
}

POPXL_ENTRY void widen4_row(int64_t k, const uint8_t* codes, const uint16_t* scales,
                            uint16_t* out) {
  for (int64_t g = 0; g < k / GROUP; ++g) {
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + g * (GROUP / 2)));
    const __m256 s = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(scales[g])));
    for (int i = 0; i < 2; ++i) {
      const __m128i shifted = i ? _mm_srli_epi16(both, 4) : both;
      const __m128i half =
          _mm_sub_epi8(_mm_and_si128(shifted, _mm_set1_epi8(15)), _mm_set1_epi8(8));
      uint16_t* to = out + g * GROUP + i * 16;
      store_half(to, _mm256_mul_ps(eight_codes(half), s));
      store_half(to + 8, _mm256_mul_ps(eight_codes(_mm_srli_si128(half, 8)), s));
    }
  }
}

void widen4(int64_t n, int64_t k, const uint8_t* codes, int64_t codes_row, const uint16_t* scales,
            int64_t scales_row, uint16_t* out, Team team) {
  parallel(team, parts(n, PIECE), [&](int64_t task, int64_t) {
    for (int64_t row = task * PIECE; row < least(n, (task + 1) * PIECE); ++row)
      widen4_row(k, codes + row * codes_row, scales + row * scales_row, out + row * k);
  });
}
