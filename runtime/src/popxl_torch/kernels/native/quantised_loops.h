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
  static_assert(C * LANES <= 64, "a prefetch brings 64 bytes");
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
        __builtin_prefetch(ahead, 0, 2);
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
  constexpr int C = R <= 2 ? 4 : LANES == 16 ? 4 : 2;
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

// The 32 codes of a group, each plus 8, in the order of the elements.
POPXL_SIMD __m256i load_nibbles(const uint8_t* p) {
  const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256i spread = _mm256_inserti128_si256(_mm256_castsi128_si256(both),
                                                 _mm_srli_epi16(both, 4), 1);
  return _mm256_and_si256(spread, _mm256_set1_epi8(15));
}

// The scales of eight groups of a row of w, or of those that are left, then zeros.
POPXL_SIMD __m256 load_scales(const uint16_t* p, int64_t left) {
  if (left >= 8) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  alignas(16) uint16_t end[8] = {};
  std::memcpy(end, p, left * sizeof(uint16_t));
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(end)));
}

POPXL_SIMD __m256 load_left(const float* p, int64_t left) {
  if (left >= 8) return _mm256_loadu_ps(p);
  alignas(32) float end[8] = {};
  std::memcpy(end, p, left * sizeof(float));
  return _mm256_load_ps(end);
}

// Adds to the sums of R rows of x with C rows of w those of the groups of one vector, which begin
// at `group`; `count` of them are there.
template <int R, int C>
POPXL_SIMD void dot4_groups(const Rows4& p, const int8_t* x, const uint8_t* w, int64_t group,
                            int64_t count, const float (*scale)[C][8], Vector (*sum)[C]) {
  Codes codes[C];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
    const uint8_t* at = w + c * p.codes_row + group * (GROUP / 2);
    codes[c] = load_groups(at, count);
    __builtin_prefetch(at + CODES_AHEAD, 0, 2);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Codes v = load_bytes(x + r * p.k + group * GROUP, count);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      sum[r][c] = multiply_add(dot_bytes(codes[c], v), each_group(scale[r][c] + group % 8),
                               sum[r][c]);
  }
}

// R rows of x with C rows of w, eight groups at a time: their scales are multiplied together.
template <int R, int C>
POPXL_ENTRY void dot4_block(const Rows4& p, int64_t row, int64_t column) {
  const int64_t groups = p.k / GROUP;
  const uint8_t* w = p.codes + column * p.codes_row;
  const int8_t* x = p.x + row * p.k;
  Vector sum[R][C];
  __m256 shift[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[r][c] = zero(), shift[r][c] = _mm256_setzero_ps();
  for (int64_t first = 0; first < groups; first += 8) {
    const int64_t left = groups - first;
    alignas(32) float scale[R][C][8];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const __m256 own = load_scales(p.scales + (column + c) * p.scales_row + first, left);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const int64_t at = (row + r) * groups + first;
        _mm256_store_ps(scale[r][c], _mm256_mul_ps(own, load_left(p.x_scale + at, left)));
        shift[r][c] = _mm256_fmadd_ps(own, load_left(p.x_shift + at, left), shift[r][c]);
      }
    }
    if (left >= 8) {
#pragma GCC unroll 8
      for (int g = 0; g < 8; g += VECTOR_GROUPS)
        dot4_groups<R, C>(p, x, w, first + g, VECTOR_GROUPS, scale, sum);
    } else {
      for (int64_t g = 0; g < left; g += VECTOR_GROUPS)
        dot4_groups<R, C>(p, x, w, first + g, left - g, scale, sum);
    }
  }
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r)
      p.y[(row + r) * p.y_row + column + c] = total(sum[r][c]) - total8(shift[r][c]);
}

template <int R>
POPXL_ENTRY void dot4_rows(const Rows4& p, int64_t row, int64_t column, int64_t end) {
  constexpr int C = R == 1 ? 1 : 2;  // one row waits for w, which is read fastest from end to end
  for (; column + C <= end; column += C) dot4_block<R, C>(p, row, column);
  for (; column < end; ++column) dot4_block<R, 1>(p, row, column);
}

void dot4(const Rows4& p) {
  using Function = void (*)(const Rows4&, int64_t, int64_t, int64_t);
  static constexpr Function BY_ROWS[MOST_ROWS] = {dot4_rows<1>, dot4_rows<2>, dot4_rows<3>,
                                                  dot4_rows<4>, dot4_rows<5>, dot4_rows<6>};
  by_pieces(p, BY_ROWS);
}

// A group of x to int8; its scale.
POPXL_SIMD float round_group(const float* from, int8_t* to, int* sum) {
  __m256 v[4], largest = _mm256_setzero_ps();
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_loadu_ps(from + 8 * i);
    largest = _mm256_max_ps(_mm256_andnot_ps(sign, v[i]), largest);
  }
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  const float size = _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
  const __m256 inverse = _mm256_set1_ps(size > 0 ? 127.0f / size : 0.0f);
  __m256i code[4], all = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    code[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    all = _mm256_add_epi32(all, code[i]);
  }
  // Packing mixes the halves of registers.
  const __m256i pairs = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]),
                                           _mm256_packs_epi32(code[2], code[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(pairs, order));
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  *sum = _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  return size / 127.0f;
}

// x (m, k) to int8 with a scale for each group.
POPXL_ENTRY void round_rows(int64_t m, int64_t k, const float* x, int64_t x_row, int8_t* out,
                            float* scale, float* shift) {
  for (int64_t r = 0; r < m; ++r)
    for (int64_t g = 0; g < k / GROUP; ++g, ++scale, ++shift) {
      int sum;
      *scale = round_group(x + r * x_row + g * GROUP, out + r * k + g * GROUP, &sum);
      *shift = 8.0f * *scale * static_cast<float>(sum);
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
    const __m256i all = _mm256_sub_epi8(load_nibbles(codes + g * (GROUP / 2)), _mm256_set1_epi8(8));
    const __m256 s = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(scales[g])));
    const __m128i half[2] = {_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)};
    for (int i = 0; i < 2; ++i) {
      uint16_t* to = out + g * GROUP + i * 16;
      store_half(to, _mm256_mul_ps(eight_codes(half[i]), s));
      store_half(to + 8, _mm256_mul_ps(eight_codes(_mm_srli_si128(half[i], 8)), s));
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
