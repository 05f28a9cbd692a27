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

// Sums in registers, beside a weight of each of F filters and an input. Two
// filters run 28 sums with AVX-512; with AVX2 they read their nonzeros three
// times, for 10, 10 and 8 sums: 14 would spill.
template <int F, int T>
constexpr int sums_at_once() {
  constexpr int most = F == 1 ? T : (REGISTERS - 1 - F) / F;
  constexpr int parts = (T + most - 1) / most;
  return (T + parts - 1) / parts;
}

// Adds the nonzeros of F filters at `count` places to the accumulators of
// their outputs FIRST and later, of ROWS x COLS for each filter. Every load of
// an input serves all F filters.
template <class View, int F, int FIRST = 0>
inline void accumulate(const float* tile, const uint16_t* position,
                       const float* value, int64_t count, const float* bias,
                       float* sums) {
  constexpr int T = View::T;
  constexpr int N = std::min(sums_at_once<F, T>(), T - FIRST);
  if (!count && !bias) return;
  vec acc[F][N];
#pragma GCC unroll 2
  for (int f = 0; f < F; ++f)
    if (bias) {
#pragma GCC unroll 16
      for (int t = 0; t < N; ++t) acc[f][t] = bias[f] - vec{};
    } else {
#pragma GCC unroll 16
      for (int t = 0; t < N; ++t)
        acc[f][t] = load(sums + (f * T + FIRST + t) * LANES);
    }
  const auto weights = [&](int64_t place) {
    std::array<vec, F> w;
#pragma GCC unroll 2
    for (int f = 0; f < F; ++f) w[f] = value[F * place + f] - vec{};
    return w;
  };
  const auto multiply = [&](const float* x, const std::array<vec, F>& w) {
#pragma GCC unroll 16
    for (int t = FIRST; t < FIRST + N; ++t) {
      vec v =
          load(x + (t / View::COLS * View::STRIDE + t % View::COLS) * LANES);
      if (F > 1) keep(v);
#pragma GCC unroll 2
      for (int f = 0; f < F; ++f) acc[f][t - FIRST] += w[f] * v;
    }
  };
  if (count) {
    // The loads of the next place start before this multiplication. The sums
    // of two filters leave no registers for the next weights.
    const float* x = tile + size_t(position[0]) * LANES;
    std::array<vec, F> w = weights(0);
    for (int64_t i = 1; i < count; ++i) {
      const float* next_x = tile + size_t(position[F * i]) * LANES;
      const std::array<vec, F> now = F == 1 ? w : weights(i - 1);
      if (F == 1) w = weights(i);
      multiply(x, now);
      x = next_x;
    }
    multiply(x, F == 1 ? w : weights(count - 1));
  }
#pragma GCC unroll 2
  for (int f = 0; f < F; ++f)
#pragma GCC unroll 16
    for (int t = 0; t < N; ++t)
      store(sums + (f * T + FIRST + t) * LANES, acc[f][t]);
  if constexpr (FIRST + N < T)
    accumulate<View, F, FIRST + N>(tile, position, value, count, bias, sums);
}

// Number of filters of a work item. With few groups, as for one image, threads
// divide the filters too, and each packs its own inputs.
int64_t filters_at_once(const Sizes& s, int64_t groups, int64_t bytes) {
  constexpr int64_t PACKING = 64;  // in filters: packing costs as much
  // Accumulators of the filters that share a packed input fill most of L2.
  const int64_t most =
      std::min(s.filters, s.whole_pairs(l2_bytes() * 7 / 8 / bytes));
  int64_t best = most, least = INT64_MAX;
  for (int64_t parts = 1; parts <= 4 * s.threads; ++parts) {
    const int64_t filters =
        std::min(most, s.whole_pairs((s.filters + parts - 1) / parts));
    const int64_t items = groups * ((s.filters + filters - 1) / filters);
    const int64_t rounds = (items + s.threads - 1) / s.threads;
    if (rounds * (filters + PACKING) < least) {
      least = rounds * (filters + PACKING);
      best = filters;
    }
  }
  return best;
}

constexpr std::integral_constant<int, 1> ONE;
constexpr std::integral_constant<int, 2> TWO;

struct Convolve {
  const Sizes& s;
  Walk walk;
  const float* x;
  const Nonzeros& a;
  const Epilogue& epilogue;
  float* y;

  // Without pairs, the loop over filters is as short as it can be.
  template <class View>
  int run() const {
    return s.paired ? run<View, true>() : run<View, false>();
  }

  template <class View, bool PAIRED>
  int run() const {
    constexpr int64_t T = View::T;
    const int64_t groups = View::groups(s, walk), planes = s.planes(walk);
    const int64_t filters = filters_at_once(s, groups, T * sizeof(vec));
    const int64_t parts = (s.filters + filters - 1) / filters;
    const Buffers tiles(s.threads, s.block * View(s, walk).tile() * LANES);
    const Buffers sums(s.threads, filters * T * LANES);
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
          const auto prefetch = [&](int64_t k) {
            const int64_t next = end + (k - first) / pace;
            if ((k - first) % pace == 0 && next < planes)
              view.prefetch_inputs(x, next);
            if (end == planes && k + 2 < last) {
              view.prefetch_outputs(y, k + 2);
              if (epilogue.residual)
                view.prefetch_outputs(epilogue.residual, k + 2);
            }
          };
          for (int64_t k = first, next; k < last; k = next) {
            const bool both = PAIRED && s.together(k) == 2;
            next = k + 1 + both;
            for (int64_t i = k; i < next; ++i) prefetch(i);
            static const float zeros[2] = {};
            const float* bias = epilogue.bias ? epilogue.bias + k : zeros;
            float* out = sum + (k - first) * T * LANES;
            const auto add = [&](auto filters) {
              accumulate<View, filters>(tile, a.position + row[k],
                                        a.value + row[k],
                                        seen ? row[k + 1] - row[k] : 0,
                                        b == 0 ? bias : nullptr, out);
            };
            both ? add(TWO) : add(ONE);
            if (View::BY_FILTER && end == planes)
              view.write(out, k, next, epilogue, y);
          }
          if (!View::BY_FILTER && end == planes)
            view.write(sum, first, last, epilogue, y);
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
