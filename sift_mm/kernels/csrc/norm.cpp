// Batch norm of NCHW activations by batch statistics. The three passes over a
// channel follow each other, so that its planes come from a cache if they fit.
#include <algorithm>
#include <cmath>

#include "simd.h"

struct Norm {
  int64_t images, channels, pixels, threads;

  int64_t plane(int64_t image, int64_t channel) const {
    return (image * channels + channel) * pixels;
  }
  double count() const { return double(images) * double(pixels); }
};

namespace {

// Pixels per partial sum: a float adds at most 64 numbers with 8 lanes, so
// that sums over planes of any size are as exact as PyTorch's.
constexpr int64_t PIECE = 2048;

// Sum of term(i) for the PIECE pixels from `first`, or up to `last`.
template <class Term>
double sum_piece(int64_t first, int64_t last, const Term& term) {
  constexpr int UNROLL = 4;
  vec parts[UNROLL] = {};
  int64_t i = first;
  for (; i + UNROLL * LANES <= last; i += UNROLL * LANES)
#pragma GCC unroll 4
    for (int j = 0; j < UNROLL; ++j)
      parts[j] += term.template at<vec>(i + j * LANES);
  for (; i + LANES <= last; i += LANES) parts[0] += term.template at<vec>(i);
  float rest = 0;
  for (; i < last; ++i) rest += term.template at<float>(i);
  const vec all = (parts[0] + parts[1]) + (parts[2] + parts[3]);
  double total = rest;
  for (int l = 0; l < LANES; ++l) total += all[l];
  return total;
}

// Sum of term(i) over a plane; term returns a vector or one float.
template <class Term>
double sum(int64_t pixels, const Term& term) {
  double total = 0;
  for (int64_t first = 0; first < pixels; first += PIECE)
    total += sum_piece(first, std::min(first + PIECE, pixels), term);
  return total;
}

struct Value {
  const float* x;
  template <class V>
  V at(int64_t i) const {
    return load_any<V>(x + i);
  }
};

struct Square {
  const float* x;
  float mean;
  template <class V>
  V at(int64_t i) const {
    const V d = load_any<V>(x + i) - mean;
    return d * d;
  }
};

struct Product {
  const float *x, *dy;
  float mean;
  template <class V>
  V at(int64_t i) const {
    return (load_any<V>(x + i) - mean) * load_any<V>(dy + i);
  }
};

}  // namespace

// Writes y, and mean and biased variance per channel.
extern "C" void sift_batch_norm(const Norm* norm, const float* x,
                                const float* weight, const float* bias,
                                double eps, float* y, float* mean,
                                float* variance) {
  const Norm& n = *norm;
#pragma omp parallel for schedule(static) num_threads(n.threads)
  for (int64_t c = 0; c < n.channels; ++c) {
    double total = 0, squares = 0;
    for (int64_t i = 0; i < n.images; ++i)
      total += sum(n.pixels, Value{x + n.plane(i, c)});
    mean[c] = float(total / n.count());
    for (int64_t i = 0; i < n.images; ++i)
      squares += sum(n.pixels, Square{x + n.plane(i, c), mean[c]});
    const double spread = squares / n.count();
    variance[c] = float(spread);
    const float scale = float(weight[c] / std::sqrt(spread + eps));
    const float shift = bias[c] - mean[c] * scale;
    for (int64_t i = 0; i < n.images; ++i) {
      const float* __restrict from = x + n.plane(i, c);
      float* __restrict to = y + n.plane(i, c);
      for (int64_t p = 0; p < n.pixels; ++p) to[p] = from[p] * scale + shift;
    }
  }
}

// Writes dx and the gradients of weight and bias.
extern "C" void sift_batch_norm_gradient(const Norm* norm, const float* dy,
                                         const float* x, const float* weight,
                                         double eps, const float* mean,
                                         const float* variance, float* dx,
                                         float* dweight, float* dbias) {
  const Norm& n = *norm;
#pragma omp parallel for schedule(static) num_threads(n.threads)
  for (int64_t c = 0; c < n.channels; ++c) {
    double total = 0, products = 0;
    for (int64_t i = 0; i < n.images; ++i) {
      const int64_t at = n.plane(i, c);
      total += sum(n.pixels, Value{dy + at});
      products += sum(n.pixels, Product{x + at, dy + at, mean[c]});
    }
    const double inverse = 1 / std::sqrt(variance[c] + eps);
    dweight[c] = float(products * inverse);
    dbias[c] = float(total);
    // dx = scale * (dy - mean(dy) - (x - mean) * slope)
    const float scale = float(weight[c] * inverse);
    const double share = 1 / n.count();
    const float slope = float(products * share * inverse * inverse);
    const float offset = float(total * share) - slope * mean[c];
    for (int64_t i = 0; i < n.images; ++i) {
      const float* __restrict from = x + n.plane(i, c);
      const float* __restrict grad = dy + n.plane(i, c);
      float* __restrict to = dx + n.plane(i, c);
      for (int64_t p = 0; p < n.pixels; ++p)
        to[p] = scale * (grad[p] - offset - from[p] * slope);
    }
  }
}
