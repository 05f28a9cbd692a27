// Outputs of one walk: SpMM of the nonzeros with packed tiles of inputs.
//
// Loops, outermost first: groups of patches, in parallel; blocks of filters,
// whose accumulators stay in L2; blocks of planes, whose packed inputs stay
// in L1 because every multiplication loads one vector of them; filters; the
// nonzeros of a filter in a block.
#include <omp.h>

#include <cstdlib>

#include "caches.h"
#include "dispatch.h"

namespace {

// Adds the nonzeros of a filter in a block to its ROWS x COLS accumulators.
template <class View>
inline void accumulate(const float* tile, const uint16_t* position,
                       const float* value, int64_t count, const float* bias,
                       float* sums) {
  constexpr int T = View::T;
  if (!count && !bias) return;
  vec acc[T];
  if (bias) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[t] = *bias - vec{};
  } else {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[t] = load(sums + t * LANES);
  }
  const auto multiply = [&](const float* x, vec w) {
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t)
      acc[t] += w * load(x + (t / View::COLS * View::STRIDE + t % View::COLS) *
                                 LANES);
  };
  if (count) {
    // The loads of the next nonzero start before this multiplication.
    const float* x = tile + size_t(position[0]) * LANES;
    vec w = value[0] - vec{};
    for (int64_t i = 1; i < count; ++i) {
      const float* next_x = tile + size_t(position[i]) * LANES;
      const vec next_w = value[i] - vec{};
      multiply(x, w);
      x = next_x;
      w = next_w;
    }
    multiply(x, w);
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) store(sums + t * LANES, acc[t]);
}

// Number of filters of a work item. With few groups, as for one image, threads
// divide the filters too, and each packs its own inputs.
int64_t filters_at_once(const Sizes& s, int64_t groups, int64_t bytes) {
  constexpr int64_t PACKING = 64;  // in filters: packing costs as much
  // Accumulators of the filters that share a packed input fill most of L2.
  const int64_t most = std::min(s.filters, l2_bytes() * 7 / 8 / bytes);
  int64_t best = most, least = INT64_MAX;
  for (int64_t parts = 1; parts <= 4 * s.threads; ++parts) {
    const int64_t filters = std::min(most, (s.filters + parts - 1) / parts);
    const int64_t items = groups * ((s.filters + filters - 1) / filters);
    const int64_t rounds = (items + s.threads - 1) / s.threads;
    if (rounds * (filters + PACKING) < least) {
      least = rounds * (filters + PACKING);
      best = filters;
    }
  }
  return best;
}

struct Convolve {
  const Sizes& s;
  Walk walk;
  const float* x;
  const Nonzeros& a;
  const Epilogue& epilogue;
  float* y;

  template <class View>
  int run() const {
    constexpr int64_t BYTES = View::T * LANES * sizeof(float);
    const int64_t groups = View::groups(s, walk), planes = s.planes(walk);
    const int64_t filters = filters_at_once(s, groups, BYTES);
    const int64_t parts = (s.filters + filters - 1) / filters;
    const Buffers tiles(s.threads, s.block * View(s, walk).tile() * LANES);
    const Buffers sums(s.threads, filters * BYTES / sizeof(float));
    if (!tiles.data || !sums.data) return -1;
#pragma omp parallel num_threads(s.threads)
    {
      View view(s, walk);
      float* tile = tiles.of(omp_get_thread_num());
      float* sum = sums.of(omp_get_thread_num());
#pragma omp for schedule(dynamic, 1)
      for (int64_t item = 0; item < groups * parts; ++item) {
        view.move(item / parts);
        const int64_t first = item % parts * filters;
        const int64_t last = std::min(s.filters, first + filters);
        for (int64_t b = 0; b * s.block < planes; ++b) {
          const int64_t end = std::min(planes, (b + 1) * s.block);
          // With a large dilation many taps read only padding.
          const bool seen = view.reads_inputs(b * s.block, end);
          if (!seen && b && end < planes) continue;
          if (seen) view.pack_inputs(x, b * s.block, end, tile);
          const int32_t* row = a.row + b * s.filters;
          const int64_t pace = std::max<int64_t>(1, (last - first) / s.block);
          for (int64_t k = first; k < last; ++k) {
            const int64_t next = end + (k - first) / pace;
            if ((k - first) % pace == 0 && next < planes)
              view.prefetch_inputs(x, next);
            if (end == planes && k + 2 < last) {
              view.prefetch_outputs(y, k + 2);
              if (epilogue.residual)
                view.prefetch_outputs(epilogue.residual, k + 2);
            }
            static const float zero = 0;
            const float* bias = epilogue.bias ? epilogue.bias + k : &zero;
            float* out = sum + (k - first) * BYTES / sizeof(float);
            accumulate<View>(tile, a.position + row[k], a.value + row[k],
                             seen ? row[k + 1] - row[k] : 0,
                             b == 0 ? bias : nullptr, out);
            if (end == planes) view.write(out, k, epilogue, y);
          }
        }
      }
    }
    return 0;
  }
};

}  // namespace

extern "C" int sift_convolve(const Sizes* sizes, const Walk* walk,
                             int64_t stride, const float* x,
                             const int32_t* row, const uint16_t* position,
                             const float* value, const float* bias,
                             const float* residual, int64_t relu, float* y) {
  const Nonzeros a = {row, position, value};
  const Epilogue e = {bias, residual, relu != 0};
  return dispatch(stride, Convolve{*sizes, *walk, x, a, e, y});
}
