// Attention of few queries, for one instruction set. Included inside a namespace that has defined
// POPXL_SIMD, POPXL_ENTRY, Vector, LANES, ATTEND_VECTORS and the operations on vectors; load_some
// gives zeros behind what it loads.
//
// Keys and values are read as they are stored, each once for a query: nothing is widened in memory.
// A thread needs room for one query and its scores.

constexpr int ATTEND_KEYS = 4;  // rows of keys whose products are summed up together

inline int64_t whole_vectors(int64_t length) { return parts(length, LANES) * LANES; }

// Products of a query, which has zeros behind its end, with C rows of keys.
template <class Type, int C>
POPXL_SIMD void scores_of(const float* q, const typename Type::Stored* k, int64_t k_row, int64_t d,
                          float* scores) {
  Vector sum[C];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) sum[c] = zero();
  int64_t j = 0;
  for (; j + LANES <= d; j += LANES) {
    const Vector v = load(q + j);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[c] = multiply_add(v, load_as<Type>(k + c * k_row + j), sum[c]);
  }
  if (j < d) {
    const Vector v = load(q + j);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      sum[c] = multiply_add(v, load_some<Type>(k + c * k_row + j, d - j), sum[c]);
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) scores[c] = total(sum[c]);
}

// exp(x) for x <= 0, in a form that compilers turn into vectors; 0 below -87. Error: 2e-7 of it.
POPXL_SIMD float power_of_e(float x) {
  const float inside = x < -87.0f ? -87.0f : x;
  const auto n = static_cast<std::int32_t>(inside * 1.44269504f - 0.5f);
  const float r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;  // |r| <= log(2) / 2
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const std::int32_t bits = (n + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x < -87.0f ? 0.0f : p * scale;
}

// Scores to weights; returns the inverse of their sum.
POPXL_ENTRY inline float softmax(float* scores, int64_t t) {
  float top = scores[0];
  for (int64_t i = 1; i < t; ++i) top = scores[i] > top ? scores[i] : top;
  for (int64_t i = 0; i < t; ++i) scores[i] = power_of_e(scores[i] - top);
  for (int64_t i = t; i < whole_vectors(t); ++i) scores[i] = 0;
  Vector sum = zero();
  for (int64_t i = 0; i < t; i += LANES) sum = add(sum, load(scores + i));
  return 1 / total(sum);
}

// C vectors of the weighted sum of all rows of v, the last one maybe of `end` elements only.
template <class Type, int C>
POPXL_SIMD void weighted(const float* weights, int64_t t, const typename Type::Stored* v,
                         int64_t v_row, int64_t end, float factor, float* y) {
  Vector sum[C];
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) sum[c] = zero();
  for (int64_t i = 0; i < t; ++i) {
    if (weights[i] == 0) continue;
    const Vector w = all(weights + i);
    const auto* row = v + i * v_row;
    if (C == 1 && end < LANES) {
      sum[0] = multiply_add(w, load_some<Type>(row, end), sum[0]);
      continue;
    }
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c)
      sum[c] = multiply_add(w, load_as<Type>(row + c * LANES), sum[c]);
  }
  const Vector all_factors = all(&factor);
  float out[C * LANES];
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c)
    store(out + c * LANES, multiply_add(sum[c], all_factors, zero()));
  std::memcpy(y, out, ((C - 1) * LANES + end) * sizeof(float));
}

template <class Type>
POPXL_ENTRY void attend_query(const Attention& p, const int64_t* at, int64_t row, float* room) {
  using Stored = typename Type::Stored;
  const float* q = p.q + p.q_at.of(at) + row * p.q_at.row;
  const Stored* k = static_cast<const Stored*>(p.k) + p.k_at.of(at);
  const Stored* v = static_cast<const Stored*>(p.v) + p.v_at.of(at);
  const float* k_scales = p.k_scales + p.k_scales_at.of(at);
  const float* v_scales = p.v_scales + p.v_scales_at.of(at);
  float* y = p.y + p.y_at.of(at) + row * p.y_at.row;
  const int64_t mask_start = p.mask_at.of(at) + row * p.mask_at.row;
  const auto* flags = static_cast<const std::uint8_t*>(p.mask) + mask_start;
  const auto* added = static_cast<const float*>(p.mask) + mask_start;
  const bool chosen = p.mask_kind == VISIBLE || p.mask_kind == HIDDEN;
  const auto is_hidden = [&](int64_t i) {
    return chosen && (flags[i * p.mask_column] != 0) == (p.mask_kind == HIDDEN);
  };

  const auto scale = static_cast<float>(p.scale), fill = static_cast<float>(p.fill);
  float* scaled = room;
  float* scores = room + whole_vectors(p.d);
  for (int64_t j = 0; j < whole_vectors(p.d); ++j) scaled[j] = j < p.d ? q[j] * scale : 0;
  for (int64_t i = 0; i < p.t; i += ATTEND_KEYS) {
    const int64_t count = least(ATTEND_KEYS, p.t - i);
    bool any = false;
    for (int64_t c = 0; c < count; ++c) any = any || !is_hidden(i + c);
    if (any && count == ATTEND_KEYS)
      scores_of<Type, ATTEND_KEYS>(scaled, k + i * p.k_at.row, p.k_at.row, p.d, scores + i);
    else if (any)
      for (int64_t c = 0; c < count; ++c)
        scores_of<Type, 1>(scaled, k + (i + c) * p.k_at.row, 0, p.d, scores + i + c);
    for (int64_t c = i; c < i + count; ++c) {
      if (p.k_scales) scores[c] *= k_scales[c * p.k_scales_at.row];
      if (is_hidden(c)) scores[c] = fill;
      if (p.mask_kind == ADDED) scores[c] += added[c * p.mask_column];
    }
  }
  const float factor = softmax(scores, p.t);
  if (p.v_scales)
    for (int64_t i = 0; i < p.t; ++i) scores[i] *= v_scales[i * p.v_scales_at.row];
  constexpr int64_t WIDE = ATTEND_VECTORS * LANES;
  int64_t j = 0;
  for (; j + WIDE <= p.e; j += WIDE)
    weighted<Type, ATTEND_VECTORS>(scores, p.t, v + j, p.v_at.row, LANES, factor, y + j);
  for (; j < p.e; j += LANES)
    weighted<Type, 1>(scores, p.t, v + j, p.v_at.row, least(LANES, p.e - j), factor, y + j);
}

// Floats that a thread needs.
int64_t attend_room(int64_t d, int64_t t) { return whole_vectors(d) + whole_vectors(t); }

template <class Type>
void attend_type(const Attention& p) {
  const int64_t tasks = p.outer[0] * p.outer[1] * p.outer[2] * p.m;
  parallel(p, tasks, [&](int64_t task, int64_t worker) {
    int64_t at[3], rest = task / p.m;
    for (int axis = 2; axis >= 0; --axis) {
      at[axis] = rest % p.outer[axis];
      rest /= p.outer[axis];
    }
    attend_query<Type>(p, at, task % p.m, p.scratch + worker * attend_room(p.d, p.t));
  });
}

void attend_all(const Attention& p) {
  p.type == SINGLE  ? attend_type<Single>(p)
  : p.type == BRAIN ? attend_type<Brain>(p)
  : p.type == OCTET ? attend_type<Octet>(p)
                    : attend_type<Half>(p);
}
