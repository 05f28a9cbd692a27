// Max-pooling of NCHW planes, limited by memory bandwidth.
#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

struct Pool {
  int64_t planes, in_h, in_w, out_h, out_w, kernel_h, kernel_w, stride_h,
      stride_w, top, left, threads;
};

namespace {

// Copies from[step * i] to to[i]; a compile-time STEP allows vector code.
template <int STEP>
void copy_strided(const float* __restrict from, int64_t step, int64_t count,
                  float* __restrict to) {
  if (STEP) step = STEP;
  for (int64_t i = 0; i < count; ++i) to[i] = from[step * i];
}

// Splits a padded row into phases (x mod stride), so that a tap reads
// neighbouring columns as one vector.
void split(const Pool& p, const float* row, int64_t length, float* phases) {
  for (int64_t phase = 0; phase < p.stride_w; ++phase, phases += length) {
    const int64_t first = phase - p.left;
    // Range of i with column first + stride * i inside the row.
    const int64_t begin =
        first < 0 ? (-first + p.stride_w - 1) / p.stride_w : 0;
    const int64_t end = std::clamp<int64_t>(
        (p.in_w - first + p.stride_w - 1) / p.stride_w, begin, length);
    std::fill(phases, phases + begin, -INFINITY);
    const auto copy = p.stride_w == 1   ? copy_strided<1>
                      : p.stride_w == 2 ? copy_strided<2>
                                        : copy_strided<0>;
    copy(row + first + p.stride_w * begin, p.stride_w, end - begin,
         phases + begin);
    std::fill(phases + end, phases + length, -INFINITY);
  }
}

// Maxima of LANES neighbouring windows stay in registers over all taps, and
// every input row is split once. As in torch, the first of equals wins, and a
// NaN wins.
template <bool WINNERS>
void pool_plane(const Pool& p, float* rows, int64_t length, const float* x,
                float* y, uint8_t* winners) {
  const int64_t row_floats = length * p.stride_w;
  int64_t column[256];  // of a tap in a split row
  for (int64_t j = 0; j < p.kernel_w; ++j)
    column[j] = j % p.stride_w * length + j / p.stride_w;
  int64_t ready = 0;  // number of split rows
  for (int64_t o = 0; o < p.out_h; ++o) {
    const int64_t top = o * p.stride_h - p.top;
    const int64_t begin = std::max<int64_t>(top, 0);
    const int64_t end = std::min(top + p.kernel_h, p.in_h);
    for (ready = std::max(ready, begin); ready < end; ++ready)
      split(p, x + ready * p.in_w, length,
            rows + ready % p.kernel_h * row_floats);
    for (int64_t k = 0; k < p.out_w; k += LANES) {
      vec best = -INFINITY - vec{};
      // The first tap inside wins if all values are minus infinity.
      lanes winner = int32_t((begin - top) * p.kernel_w) - lanes{};
      for (int64_t l = 0; l < LANES && (k + l) * p.stride_w < p.left; ++l)
        winner[l] += int32_t(p.left - (k + l) * p.stride_w);
      for (int64_t i = begin; i < end; ++i) {
        const float* row = rows + i % p.kernel_h * row_floats + k;
        for (int64_t j = 0; j < p.kernel_w; ++j) {
          const vec c = load_any<vec>(row + column[j]);
          const lanes wins = (c > best) | (c != c);
          best = wins ? c : best;
          if (WINNERS)
            winner =
                wins ? int32_t((i - top) * p.kernel_w + j) - lanes{} : winner;
        }
      }
      const int64_t count = std::min<int64_t>(LANES, p.out_w - k);
      memcpy(y + o * p.out_w + k, &best, count * sizeof(float));
      if (WINNERS) {
        const bytes taps = __builtin_convertvector(winner, bytes);
        memcpy(winners + o * p.out_w + k, &taps, count);
      }
    }
  }
}

}  // namespace

// Writes the winning tap of each output to `winners`, unless it is null.
extern "C" void sift_max_pool(const Pool* pool, const float* x, float* y,
                              uint8_t* winners) {
  const Pool& p = *pool;
  // Length of a phase, with room for vectors that read past the end.
  const int64_t length =
      (p.out_w + LANES - 1) / LANES * LANES + (p.kernel_w - 1) / p.stride_w;
#pragma omp parallel num_threads(p.threads)
  {
    std::vector<float> rows(p.kernel_h * p.stride_w * length);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < p.planes; ++n) {
      const float* from = x + n * p.in_h * p.in_w;
      const int64_t to = n * p.out_h * p.out_w;
      if (winners)
        pool_plane<true>(p, rows.data(), length, from, y + to, winners + to);
      else
        pool_plane<false>(p, rows.data(), length, from, y + to, nullptr);
    }
  }
}

extern "C" void sift_max_pool_gradient(const Pool* pool, const float* dy,
                                       const uint8_t* winners, float* dx) {
  const Pool& p = *pool;
  // Offset of each tap from the window's corner: a division per output would
  // dominate the time.
  std::vector<int64_t> place(p.kernel_h * p.kernel_w);
  for (size_t tap = 0; tap < place.size(); ++tap)
    place[tap] = tap / p.kernel_w * p.in_w + tap % p.kernel_w;
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t n = 0; n < p.planes; ++n) {
    float* to = dx + n * p.in_h * p.in_w;
    std::fill(to, to + p.in_h * p.in_w, 0.f);
    int64_t i = n * p.out_h * p.out_w;
    for (int64_t o = 0; o < p.out_h; ++o) {
      int64_t corner = (o * p.stride_h - p.top) * p.in_w - p.left;
      for (int64_t k = 0; k < p.out_w; ++k, ++i, corner += p.stride_w)
        to[corner + place[winners[i]]] += dy[i];
    }
  }
}
