// Weight gradient at the nonzeros: SDDMM of packed inputs and packed output
// gradients.
//
// Eight nonzeros of a filter share each load of the output gradient, and two
// filters of the same places share each load of the input. Every
// thread sums its groups into its own buffer, and the buffers are added in the
// order of the threads: one number of threads always gives the same bits.
#include <omp.h>

#include "caches.h"
#include "dispatch.h"

namespace {

constexpr int64_t MAX_BUFFERS = 8;  // more threads divide the filters

// Places at once. Sixteen sums of two filters need 32 registers.
template <int F>
constexpr int AT_ONCE = F == 1 || REGISTERS == 32 ? 8 : 4;

// sums[F j + f] += <dy of filter f, inputs of place j>, for F filters and
// Q <= 8 places.
template <class View, int F, int Q>
inline void dot(const float* tile, const float* dy, const uint16_t* position,
                float* sums) {
  constexpr int T = View::T;
  vec acc[(F * Q + 7) / 8 * 8] = {};
  const float* x[Q];
#pragma GCC unroll 8
  for (int j = 0; j < Q; ++j) x[j] = tile + size_t(position[F * j]) * LANES;
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    vec d[F];
#pragma GCC unroll 2
    for (int f = 0; f < F; ++f) d[f] = load(dy + (f * T + t) * LANES);
#pragma GCC unroll 8
    for (int j = 0; j < Q; ++j) {
      vec v = load(x[j] +
                   (t / View::COLS * View::STRIDE + t % View::COLS) * LANES);
      if (F > 1) keep(v);
#pragma GCC unroll 2
      for (int f = 0; f < F; ++f) acc[F * j + f] += d[f] * v;
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < F * Q; i += 8)
    add_sums(acc + i, sums + i, std::min(8, F * Q - i));
}

// Dispatches a count < AT_ONCE to the code compiled for it.
template <class View, int F, int Q>
inline void dot_some(const float* tile, const float* dy,
                     const uint16_t* position, int64_t count, float* sums) {
  if constexpr (Q > 0) {
    if (count == Q)
      dot<View, F, Q>(tile, dy, position, sums);
    else
      dot_some<View, F, Q - 1>(tile, dy, position, count, sums);
  }
}

template <class View, int F>
inline void dots(const float* tile, const float* dy, const uint16_t* position,
                 int64_t count, float* sums) {
  constexpr int Q = AT_ONCE<F>;
  for (; count >= Q; count -= Q, position += F * Q, sums += F * Q)
    dot<View, F, Q>(tile, dy, position, sums);
  dot_some<View, F, Q - 1>(tile, dy, position, count, sums);
}

struct WeightGradient {
  const Sizes& s;
  Walk walk;
  const float *x, *dy;
  const Nonzeros& a;
  float* gradient;  // of the nonzeros; added to

  template <class View>
  int run() const {
    constexpr int64_t T = View::T;
    const int64_t groups = View::groups(s, walk), planes = s.planes(walk);
    const int64_t blocks = (planes + s.block - 1) / s.block;
    const int64_t nonzeros = a.row[blocks * s.filters];
    const int64_t parts = (s.threads + MAX_BUFFERS - 1) / MAX_BUFFERS;
    const int64_t teams = std::max<int64_t>(1, s.threads / parts);
    const int64_t share = s.whole_pairs((s.filters + parts - 1) / parts);
    // Packed gradients of this many filters fill half of L2.
    const int64_t filters = std::min(
        share, s.whole_pairs(l2_bytes() * 7 / 16 / (T * sizeof(vec))));
    const Buffers tiles(s.threads, s.block * View(s, walk).tile() * LANES);
    const Buffers gradients(s.threads, filters * T * LANES);
    const Buffers sums(teams, nonzeros);
    if (!tiles.data || !gradients.data || !sums.data) return -1;
#pragma omp parallel num_threads(s.threads)
    {
      View view(s, walk);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < teams; ++i)
        memset(sums.of(i), 0, nonzeros * sizeof(float));
      // A loop over workers is correct with fewer threads too.
#pragma omp for schedule(static, 1)
      for (int64_t worker = 0; worker < teams * parts; ++worker) {
        float* tile = tiles.of(omp_get_thread_num());
        float* dys = gradients.of(omp_get_thread_num());
        float* sum = sums.of(worker / parts);
        const int64_t team = worker / parts, part = worker % parts;
        const int64_t stop = std::min(s.filters, (part + 1) * share);
        for (int64_t g = groups * team / teams;
             g < groups * (team + 1) / teams; ++g) {
          view.move(g);
          for (int64_t k0 = part * share; k0 < stop; k0 += filters) {
            const int64_t k1 = std::min(stop, k0 + filters);
            view.pack_outputs(dy, k0, k1, dys);
            for (int64_t b = 0; b < blocks; ++b) {
              const int64_t end = std::min(planes, (b + 1) * s.block);
              if (!view.reads_inputs(b * s.block, end)) continue;
              view.pack_inputs(x, b * s.block, end, tile);
              const int32_t* row = a.row + b * s.filters;
              for (int64_t k = k0, next; k < k1; k = next) {
                next = k + s.together(k);
                const auto add = next == k + 2 ? dots<View, 2> : dots<View, 1>;
                add(tile, dys + (k - k0) * T * LANES, a.position + row[k],
                    row[k + 1] - row[k], sum + row[k]);
              }
            }
          }
        }
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < nonzeros; ++i)
        for (int64_t t = 0; t < teams; ++t) gradient[i] += sums.of(t)[i];
    }
    return 0;
  }
};

}  // namespace

extern "C" int sift_weight_gradient(const Sizes* sizes, const Walk* walk,
                                    int64_t stride, const float* x,
                                    const float* dy, const int32_t* row,
                                    const uint16_t* position,
                                    float* gradient) {
  const Nonzeros a = {row, position, nullptr};
  return dispatch(stride, WeightGradient{*sizes, *walk, x, dy, a, gradient});
}
