// Max-pooling of NCHW planes. Wider networks pool wider activations, and a
// pass that is limited by memory, not by instructions, is what they need.
#include <algorithm>
#include <cmath>
#include <vector>

#include "memory.h"

struct Pool {
  int64_t planes, in_h, in_w, out_h, out_w, kernel_h, kernel_w, stride_h,
      stride_w, top, left, threads;
};

namespace {

// to[i] = from[step * i]; a step that is known makes it vectors.
template <int STEP>
void take(const float* __restrict from, int64_t step, int64_t count,
          float* __restrict to) {
  if (STEP) step = STEP;
  for (int64_t i = 0; i < count; ++i) to[i] = from[step * i];
}

// As torch: the first of equals wins, and a NaN wins.
template <bool WINNERS>
void meet(const float* __restrict c, int64_t count, int32_t tap,
          float* __restrict y, int32_t* __restrict winner) {
  for (int64_t k = 0; k < count; ++k) {
    if (WINNERS) {
      const int32_t w = c[k] > y[k] ? tap : winner[k];
      winner[k] = c[k] != c[k] ? tap : w;
    }
    const float v = c[k] > y[k] ? c[k] : y[k];
    y[k] = c[k] != c[k] ? c[k] : v;
  }
}

// One row, padded, with the columns of each phase (x mod stride) side by
// side: a tap then reads neighbours, as vectors do.
void split(const Pool& p, const float* row, int64_t length, float* phases) {
  for (int64_t phase = 0; phase < p.stride_w; ++phase, phases += length) {
    const int64_t first = phase - p.left;
    // Columns first + stride * i that lie inside.
    const int64_t begin =
        first < 0 ? (-first + p.stride_w - 1) / p.stride_w : 0;
    const int64_t end = std::clamp<int64_t>(
        (p.in_w - first + p.stride_w - 1) / p.stride_w, begin, length);
    std::fill(phases, phases + begin, -INFINITY);
    const auto copy = p.stride_w == 1   ? take<1>
                      : p.stride_w == 2 ? take<2>
                                        : take<0>;
    copy(row + first + p.stride_w * begin, p.stride_w, end - begin,
         phases + begin);
    std::fill(phases + end, phases + length, -INFINITY);
  }
}

template <bool WINNERS>
void pool_plane(const Pool& p, const float* x, float* y, uint8_t* winners) {
  const int64_t length = p.out_w + (p.kernel_w - 1) / p.stride_w;
  std::vector<float> phases(length * p.stride_w);
  std::vector<int32_t> winner(WINNERS ? p.out_w : 0);
  for (int64_t o = 0; o < p.out_h; ++o, y += p.out_w) {
    std::fill(y, y + p.out_w, -INFINITY);
    const int64_t top = o * p.stride_h - p.top;
    std::fill(winner.begin(), winner.end(),
              int32_t(std::max<int64_t>(0, -top) * p.kernel_w));
    for (int64_t i = 0; i < p.kernel_h; ++i) {
      if (top + i < 0 || top + i >= p.in_h) continue;
      split(p, x + (top + i) * p.in_w, length, phases.data());
      for (int64_t j = 0; j < p.kernel_w; ++j) {
        const float* c =
            phases.data() + j % p.stride_w * length + j / p.stride_w;
        meet<WINNERS>(c, p.out_w, int32_t(i * p.kernel_w + j), y,
                      winner.data());
      }
    }
    if (WINNERS) {
      for (int64_t k = 0; k < p.out_w; ++k) winners[k] = uint8_t(winner[k]);
      winners += p.out_w;
    }
  }
}

}  // namespace

// `winners`, a tap a value, is for the gradient; it may be null.
extern "C" void sift_max_pool(const Pool* pool, const float* x, float* y,
                              uint8_t* winners) {
  const Pool& p = *pool;
  use_huge_pages(y, p.planes * p.out_h * p.out_w * sizeof(float));
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t n = 0; n < p.planes; ++n) {
    const float* from = x + n * p.in_h * p.in_w;
    const int64_t to = n * p.out_h * p.out_w;
    if (winners)
      pool_plane<true>(p, from, y + to, winners + to);
    else
      pool_plane<false>(p, from, y + to, nullptr);
  }
}

extern "C" void sift_max_pool_gradient(const Pool* pool, const float* dy,
                                       const uint8_t* winners, float* dx) {
  const Pool& p = *pool;
  use_huge_pages(dx, p.planes * p.in_h * p.in_w * sizeof(float));
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t n = 0; n < p.planes; ++n) {
    float* to = dx + n * p.in_h * p.in_w;
    std::fill(to, to + p.in_h * p.in_w, 0.f);
    int64_t i = n * p.out_h * p.out_w;
    for (int64_t o = 0; o < p.out_h; ++o)
      for (int64_t k = 0; k < p.out_w; ++k, ++i) {
        const int64_t row = o * p.stride_h - p.top + winners[i] / p.kernel_w;
        const int64_t col = k * p.stride_w - p.left + winners[i] % p.kernel_w;
        to[row * p.in_w + col] += dy[i];
      }
  }
}
