// Float32 loops over the vector primitives of one instruction set. Included through isa_table-inl.h
// by every isa_*.cc, whose struct Vec makes them other code in each.
#pragma once

#include <cstdint>

#include "isa.h"
#include "thresholds.h"

namespace shoal {
namespace {

// e^x for x in -87..88 (clamped), within about two units in the last place; NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, where eight terms of the series for e^r suffice.
Vec::F exp_of(Vec::F x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2 = 0.693359375f, kLn2Rest = -2.12194440e-4f;  // n * kLn2 is exact
  x = Vec::min(Vec::set(88.0f), Vec::max(Vec::set(-87.0f), x));
  const Vec::F n = Vec::round(Vec::mul(x, Vec::set(kLog2E)));
  Vec::F r = Vec::fma(n, Vec::set(-kLn2), x);
  r = Vec::fma(n, Vec::set(-kLn2Rest), r);
  Vec::F sum = Vec::set(1.0f / 5040);
  for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    sum = Vec::fma(sum, r, Vec::set(factor));
  }
  return Vec::scale_by_power_of_two(sum, n);
}

void swiglu(const float* gate_up, int64_t count, float* hidden) {
  const int64_t width = Vec::kWidth;
  for (int64_t i = 0; i < count; i += width) {
    const int64_t rest = count - i;
    Vec::F low, high, gate, up;
    if (rest >= width) {
      low = Vec::load(gate_up + 2 * i);
      high = Vec::load(gate_up + 2 * i + width);
    } else {
      const int64_t values = 2 * rest;
      low = Vec::load_part(gate_up + 2 * i, values < width ? values : width);
      high = values > width ? Vec::load_part(gate_up + 2 * i + width, values - width) : Vec::zero();
    }
    Vec::unzip(low, high, &gate, &up);
    const Vec::F divisor = Vec::add(Vec::set(1), exp_of(Vec::sub(Vec::zero(), gate)));
    const Vec::F y = Vec::mul(Vec::div(gate, divisor), up);
    if (rest >= width) {
      Vec::store(hidden + i, y);
    } else {
      Vec::store_part(hidden + i, y, rest);
    }
  }
}

void dequantize(const uint8_t* codes, const float* scales, int64_t count, int64_t block,
                float* floats) {
  for (int64_t b = 0; b < count / block; ++b) {
    const Vec::F scale = Vec::set(scales[b]);
    for (int64_t i = b * block; i < (b + 1) * block; i += Vec::kWidth) {
      Vec::store(floats + i, Vec::mul(Vec::from_codes(codes + i), scale));
    }
  }
}

void widen_halves(const uint16_t* halves, int64_t count, float* floats) {
  int64_t i = 0;
  for (; i + Vec::kWidth <= count; i += Vec::kWidth) {
    Vec::store(floats + i, Vec::from_halves(halves + i));
  }
  if (i < count) {
    uint16_t last[Vec::kWidth] = {};
    for (int64_t j = i; j < count; ++j) last[j - i] = halves[j];
    Vec::store_part(floats + i, Vec::from_halves(last), count - i);
  }
}

// One register tile of dot_rows. Rows past the end repeat the last and are not stored. Fetch:
// prefetch the columns `ahead` values further, which come from memory.
template <int Rows, bool Fetch>
void dot_tile(const float* const a[Rows], const float* const b[kDotColumns], int64_t k,
              int64_t ahead, float* out, int64_t out_stride, int64_t valid_rows,
              int64_t valid_columns) {
  Vec::F sums[Rows][kDotColumns];
  for (auto& row : sums) {
    for (auto& each : row) each = Vec::zero();
  }
  const auto step = [&](const auto& load) {
    Vec::F columns[kDotColumns];
    for (int c = 0; c < kDotColumns; ++c) columns[c] = load(b[c]);
    for (int r = 0; r < Rows; ++r) {
      const Vec::F row = load(a[r]);
      for (int c = 0; c < kDotColumns; ++c) sums[r][c] = Vec::fma(row, columns[c], sums[r][c]);
    }
  };
  int64_t i = 0;
  for (; i + Vec::kWidth <= k; i += Vec::kWidth) {
    if constexpr (Fetch) {
      if (i % kCacheLineFloats == 0) {
        for (int c = 0; c < kDotColumns; ++c) __builtin_prefetch(b[c] + ahead + i, 0, 2);
      }
    }
    step([&](const float* p) { return Vec::load(p + i); });
  }
  if (i < k) step([&](const float* p) { return Vec::load_part(p + i, k - i); });
  for (int r = 0; r < valid_rows; ++r) {
    Vec::store4(out + r * out_stride, Vec::sum4(sums[r]), valid_columns);
  }
}

void dot_rows(const float* a, int64_t a_stride, int64_t m, const float* b, int64_t b_stride,
              int64_t n, int64_t k, float* out, int64_t out_stride) {
  constexpr int kRows = Vec::kTiles.dot_rows;
  // Rows of a that stay in the first-level cache while all of b passes by.
  const int64_t fitting = kDotBlockFloats / (k + 1) / kRows * kRows;
  const int64_t block = fitting < kRows ? kRows : fitting;
  for (int64_t first = 0; first < m; first += block) {
    const int64_t end = first + block < m ? first + block : m;
    for (int64_t c = 0; c < n; c += kDotColumns) {
      const int64_t columns = n - c < kDotColumns ? n - c : kDotColumns;
      const float* b_rows[kDotColumns];
      for (int i = 0; i < kDotColumns; ++i) {
        b_rows[i] = b + (c + (i < columns ? i : columns - 1)) * b_stride;
      }
      for (int64_t r = first; r < end; r += kRows) {
        const int64_t rows = end - r < kRows ? end - r : kRows;
        const float* a_rows[kRows];
        for (int i = 0; i < kRows; ++i) a_rows[i] = a + (r + (i < rows ? i : rows - 1)) * a_stride;
        float* to = out + r * out_stride + c;
        if (r == 0) {
          dot_tile<kRows, true>(a_rows, b_rows, k, kDotColumns * b_stride, to, out_stride, rows,
                                columns);
        } else {
          dot_tile<kRows, false>(a_rows, b_rows, k, 0, to, out_stride, rows, columns);
        }
      }
    }
  }
}

// One register tile of add_weighted_rows: Rows rows of out, Vectors vectors wide, the last of them
// `last` values.
template <int Rows, int Vectors>
void sum_tile(const float* p, int64_t p_stride, const float* v, int64_t v_stride, int64_t k,
              float* out, int64_t out_stride, int64_t last) {
  const bool is_whole = last == Vec::kWidth;
  const auto load = [&](const float* from, int i) {
    return is_whole || i < Vectors - 1 ? Vec::load(from + i * Vec::kWidth)
                                       : Vec::load_part(from + i * Vec::kWidth, last);
  };
  Vec::F sums[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Vectors; ++i) sums[r][i] = load(out + r * out_stride, i);
  }
  for (int64_t j = 0; j < k; ++j) {
    Vec::F values[Vectors];
    for (int i = 0; i < Vectors; ++i) values[i] = load(v + j * v_stride, i);
    for (int r = 0; r < Rows; ++r) {
      const Vec::F factor = Vec::set(p[r * p_stride + j]);
      for (int i = 0; i < Vectors; ++i) sums[r][i] = Vec::fma(factor, values[i], sums[r][i]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int i = 0; i < Vectors; ++i) {
      float* to = out + r * out_stride + i * Vec::kWidth;
      if (is_whole || i < Vectors - 1) {
        Vec::store(to, sums[r][i]);
      } else {
        Vec::store_part(to, sums[r][i], last);
      }
    }
  }
}

template <int Vectors>
void sum_columns(const float* p, int64_t p_stride, int64_t m, const float* v, int64_t v_stride,
                 int64_t k, float* out, int64_t out_stride, int64_t last) {
  constexpr int kRows = Vec::kTiles.sum_rows;
  int64_t r = 0;
  for (; r + kRows <= m; r += kRows) {
    sum_tile<kRows, Vectors>(p + r * p_stride, p_stride, v, v_stride, k, out + r * out_stride,
                             out_stride, last);
  }
  for (; r + 2 <= m; r += 2) {
    sum_tile<2, Vectors>(p + r * p_stride, p_stride, v, v_stride, k, out + r * out_stride,
                         out_stride, last);
  }
  for (; r < m; ++r) {
    sum_tile<1, Vectors>(p + r * p_stride, p_stride, v, v_stride, k, out + r * out_stride,
                         out_stride, last);
  }
}

void add_weighted_rows(const float* p, int64_t p_stride, int64_t m, const float* v,
                       int64_t v_stride, int64_t k, int64_t width, float* out, int64_t out_stride) {
  constexpr int kVectors = Vec::kTiles.sum_vectors;
  constexpr int64_t kWide = kVectors * Vec::kWidth;
  int64_t c = 0;
  for (; c + kWide <= width; c += kWide) {
    sum_columns<kVectors>(p, p_stride, m, v + c, v_stride, k, out + c, out_stride, Vec::kWidth);
  }
  for (; c < width; c += Vec::kWidth) {
    const int64_t last = width - c < Vec::kWidth ? width - c : Vec::kWidth;
    sum_columns<1>(p, p_stride, m, v + c, v_stride, k, out + c, out_stride, last);
  }
}

void softmax_part(float* scores, int64_t count, float* max, float* sum) {
  const int64_t whole = count / Vec::kWidth * Vec::kWidth;
  float largest = scores[0];
  if (whole > 0) {
    Vec::F most = Vec::load(scores);
    for (int64_t i = Vec::kWidth; i < whole; i += Vec::kWidth)
      most = Vec::max(most, Vec::load(scores + i));
    largest = Vec::largest(most);
  }
  for (int64_t i = whole; i < count; ++i) largest = scores[i] > largest ? scores[i] : largest;
  const Vec::F shift = Vec::set(largest);
  Vec::F sums = Vec::zero();
  for (int64_t i = 0; i < whole; i += Vec::kWidth) {
    const Vec::F share = exp_of(Vec::sub(Vec::load(scores + i), shift));
    Vec::store(scores + i, share);
    sums = Vec::add(sums, share);
  }
  float total = Vec::sum(sums);
  if (whole < count) {
    const Vec::F share = exp_of(Vec::sub(Vec::load_part(scores + whole, count - whole), shift));
    Vec::store_part(scores + whole, share, count - whole);
    for (int64_t i = whole; i < count; ++i) total += scores[i];
  }
  *max = largest;
  *sum = total;
}

void blend(float a, float* out, float b, const float* x, int64_t count) {
  const Vec::F a_all = Vec::set(a), b_all = Vec::set(b);
  int64_t i = 0;
  for (; i + Vec::kWidth <= count; i += Vec::kWidth) {
    const Vec::F kept = Vec::mul(a_all, Vec::load(out + i));
    Vec::store(out + i, Vec::fma(b_all, Vec::load(x + i), kept));
  }
  if (i < count) {
    const Vec::F kept = Vec::mul(a_all, Vec::load_part(out + i, count - i));
    Vec::store_part(out + i, Vec::fma(b_all, Vec::load_part(x + i, count - i), kept), count - i);
  }
}

}  // namespace
}  // namespace shoal
