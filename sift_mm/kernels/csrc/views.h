// Views of a group of outputs: patches; for 1 x 1 convolutions of stride 1
// runs of pixels, which need no transposition; rows for linear layers.
#pragma once

#include "pack.h"

// STRIDE is the length of a row in the packed tile, in vectors.
template <int ROWS_, int COLS_, int STRIDE_>
struct Patches {
  static constexpr bool BY_FILTER = true;  // written one by one
  static constexpr int ROWS = ROWS_, COLS = COLS_, STRIDE = STRIDE_;
  static constexpr int T = ROWS * COLS;
  const Sizes& sizes;
  const Walk& walk;
  std::vector<Window> inputs;  // one per phase
  Window outputs;
  Target target;

  Patches(const Sizes& s, const Walk& w)
      : sizes(s), walk(w), inputs(w.h.phases * w.w.phases) {}

  static int64_t groups(const Sizes& s, const Walk& w) {
    return count_groups<ROWS, COLS>(s, w);
  }

  // Vectors per plane of the tile; patches of few rows fill a part of them.
  int64_t tile() const { return sizes.tile_rows * STRIDE; }

  void move(int64_t index) {
    const Group group = group_at<ROWS, COLS>(sizes, walk, index);
    for (size_t i = 0; i < inputs.size(); ++i)
      set_window(inputs[i], group, sizes.inputs(),
                 walk.h.in_first[i / walk.w.phases], walk.h.in_step,
                 walk.w.in_first[i % walk.w.phases], walk.w.in_step,
                 sizes.tile_rows - MAX_ROWS + ROWS, STRIDE);
    set_window(outputs, group, sizes.outputs(), walk.h.out_first,
               walk.h.out_step, walk.w.out_first, walk.w.out_step, ROWS, COLS);
    target = target_of<ROWS, COLS>(sizes, walk, group);
  }

  // True if any lane reads more than padding in these planes.
  bool reads_inputs(int64_t plane, int64_t end) const {
    bool any = false;
    for (int64_t i = plane / sizes.channels; i * sizes.channels < end; ++i)
      any |= inputs[i].any;
    return any;
  }

  void pack_inputs(const float* x, int64_t plane, int64_t end,
                   float* tile_) const {
    for (; plane < end; ++plane, tile_ += tile() * LANES)
      pack<STRIDE>(x, plane % sizes.channels, inputs[plane / sizes.channels],
                   tile_);
  }

  // Prefetches the cache lines of a plane: they are far apart, so that
  // hardware prefetchers miss them. Neighbouring lanes share lines.
  void prefetch_inputs(const float* x, int64_t plane) const {
    const Window& window = inputs[plane / sizes.channels];
    x += plane % sizes.channels * window.plane;
    for (int64_t r = 0; r < window.rows; ++r, x += window.row_step)
      for (int l = 1; l < LANES; l += 2)
        __builtin_prefetch(x + window.first[l], 0, 2);
  }

  void prefetch_outputs(const float* y, int64_t filter) const {
    y += filter * target.plane;
    for (int r = 0; r < ROWS; ++r, y += target.row_step)
      for (int l = 0; l < LANES; l += 4)
        __builtin_prefetch(y + target.first[l], 1, 2);
  }

  void pack_outputs(const float* y, int64_t filter, int64_t end,
                    float* tile_) const {
    for (; filter < end; ++filter, tile_ += T * LANES)
      pack<COLS>(y, filter, outputs, tile_);
  }

  void write(const float* sums, int64_t filter, int64_t end, const Epilogue& e,
             float* y) const {
    for (; filter < end; ++filter, sums += T * LANES)
      unpack<ROWS, COLS>(sums, target, filter, e, y);
  }
};

template <int ROWS_, int COLS_>
struct Pixels {
  static constexpr bool BY_FILTER = true;
  static constexpr int ROWS = ROWS_, COLS = COLS_, STRIDE = 2;
  static constexpr int T = ROWS * COLS;
  const Sizes& sizes;
  const int64_t pixels;  // of an image
  // Offsets of every lane in the first plane: images end within vectors.
  ptrdiff_t input[T][LANES], output[T][LANES];
  int64_t live[T];
  bool together[T];  // the vector is inside one image

  Pixels(const Sizes& s, const Walk&) : sizes(s), pixels(s.out_h * s.out_w) {}

  static int64_t groups(const Sizes& s, const Walk&) {
    return (s.images * s.out_h * s.out_w + T * LANES - 1) / (T * LANES);
  }

  int64_t tile() const { return MAX_ROWS * STRIDE; }

  void move(int64_t index) {
    int64_t image = index * T * LANES / pixels;
    int64_t pixel = index * T * LANES % pixels;
    const int64_t left = (sizes.images - image) * pixels - pixel;
    for (int t = 0; t < T; ++t) {
      live[t] = std::clamp<int64_t>(left - t * LANES, 0, LANES);
      together[t] = live[t] == LANES && pixel + LANES <= pixels;
      for (int i = 0; i < LANES; ++i) {
        input[t][i] = image * sizes.channels * pixels + pixel;
        output[t][i] = image * sizes.filters * pixels + pixel;
        if (++pixel == pixels) ++image, pixel = 0;
      }
    }
  }

  vec gather(const float* x, int t, const ptrdiff_t* places) const {
    if (together[t]) return load_any<vec>(x + places[0]);
    vec v = {};
    for (int i = 0; i < live[t]; ++i) {
      v[i] = x[places[i]];
      asm volatile("");  // Keeps compilers from slower gather instructions.
    }
    return v;
  }

  bool reads_inputs(int64_t, int64_t) const { return true; }

  void pack_inputs(const float* x, int64_t plane, int64_t end,
                   float* tile_) const {
    for (; plane < end; ++plane, tile_ += tile() * LANES)
      for (int t = 0; t < T; ++t)
        store(tile_ + (t / COLS * STRIDE + t % COLS) * LANES,
              gather(x + plane * pixels, t, input[t]));
  }

  void prefetch_inputs(const float* x, int64_t plane) const {
    for (int t = 0; t < T; t += 64 / sizeof(vec))
      __builtin_prefetch(x + plane * pixels + input[t][0], 0, 2);
  }

  void prefetch_outputs(const float* y, int64_t filter) const {
    for (int t = 0; t < T; t += 64 / sizeof(vec))
      __builtin_prefetch(y + filter * pixels + output[t][0], 1, 2);
  }

  void pack_outputs(const float* y, int64_t filter, int64_t end,
                    float* tile_) const {
    for (; filter < end; ++filter, tile_ += T * LANES)
      for (int t = 0; t < T; ++t)
        store(tile_ + t * LANES, gather(y + filter * pixels, t, output[t]));
  }

  void write(const float* sums, int64_t filter, int64_t end, const Epilogue& e,
             float* y) const {
    for (; filter < end; ++filter, sums += T * LANES)
      write_filter(sums, filter, e, y);
  }

  void write_filter(const float* sums, int64_t filter, const Epilogue& e,
                    float* y) const {
    y += filter * pixels;
    const float* residual =
        e.residual ? e.residual + filter * pixels : nullptr;
    for (int t = 0; t < T; ++t) {
      vec v = load(sums + t * LANES);
      if (residual) v += gather(residual, t, output[t]);
      if (e.relu) v = relu(v);
      if (together[t])
        store_any(y + output[t][0], v);
      else
        for (int i = 0; i < live[t]; ++i) {
          y[output[t][i]] = v[i];
          asm volatile("");
        }
    }
  }
};

// Rows of features, transposed while they are packed and written.
template <int ROWS_, int COLS_>
struct Rows {
  static constexpr int ROWS = ROWS_, COLS = COLS_, STRIDE = 2;
  static constexpr int T = ROWS * COLS;
  static constexpr int LINE = 16;  // floats of a cache line
  static constexpr bool BY_FILTER = false;
  const Sizes& sizes;
  int64_t first = 0, live = 0;  // rows of the group

  Rows(const Sizes& s, const Walk&) : sizes(s) {}

  static int64_t groups(const Sizes& s, const Walk& walk) {
    return Pixels<ROWS, COLS>::groups(s, walk);
  }

  int64_t tile() const { return MAX_ROWS * STRIDE; }

  void move(int64_t index) {
    first = index * T * LANES;
    const int64_t rows = sizes.images * sizes.out_h * sizes.out_w;
    live = std::min<int64_t>(rows - first, T * LANES);
  }

  bool reads_inputs(int64_t, int64_t) const { return true; }

  // Packs features [start, end) of `width`, with zeros in idle lanes. Feature
  // i of vector t goes to tile + (i * step + place(t)) * LANES.
  template <class Place>
  void pack(const float* x, int64_t width, int64_t start, int64_t end,
            int64_t step, float* tile_, Place place) const {
    x += first * width;
    for (int t = 0; t < T; ++t)
      for (int l = 0; l < LANES; l += 8) {
        const int64_t row = t * LANES + l;
        float* to = tile_ + place(t) * LANES + l;
        for (int64_t i = start; i < end; i += 4, to += 4 * step * LANES) {
          const float* from = x + row * width + i;
          if (row + 8 <= live && i + 4 <= width) {
            vec8 v[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j)
              v[j] = join(load_any<vec4>(from + j * width),
                          load_any<vec4>(from + (j + 4) * width));
            transpose4(v);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j)
              if (i + j < end) store_any(to + j * step * LANES, v[j]);
            continue;
          }
          for (int64_t c = 0; c < std::min<int64_t>(4, end - i); ++c)
            for (int j = 0; j < 8; ++j)
              to[c * step * LANES + j] =
                  row + j < live ? from[j * width + c] : 0;
        }
      }
  }

  void pack_inputs(const float* x, int64_t plane, int64_t end,
                   float* tile_) const {
    pack(x, sizes.channels, plane, end, tile(), tile_,
         [](int t) { return t / COLS * STRIDE + t % COLS; });
  }

  void pack_outputs(const float* y, int64_t filter, int64_t end,
                    float* tile_) const {
    pack(y, sizes.filters, filter, end, T, tile_, [](int t) { return t; });
  }

  // A line holds many features: each prefetches it for some of the rows.
  void prefetch_inputs(const float* x, int64_t plane) const {
    const int64_t row = plane % LANES * T;
    x += (first + row) * sizes.channels + plane / LINE * LINE;
    for (int t = 0; t < T && row + t < live; ++t)
      __builtin_prefetch(x + t * sizes.channels, 0, 2);
  }

  void prefetch_outputs(const float*, int64_t) const {}

  // Writes all features of a few rows, along the rows: hardware prefetches.
  void write(const float* sums, int64_t filter, int64_t end, const Epilogue& e,
             float* y) const {
    const float* residual =
        e.residual ? e.residual + first * sizes.filters : nullptr;
    y += first * sizes.filters;
    for (int64_t row = 0; row < live; row += 8)
      for (int64_t i = filter; i < end; i += 4)
        write_features(sums + (i - filter) * T * LANES + row, i,
                       std::min<int64_t>(4, end - i), row, residual, e.relu,
                       y);
  }

  // Writes up to 4 features of up to 8 rows.
  void write_features(const float* sums, int64_t feature, int64_t count,
                      int64_t row, const float* residual, bool is_relu,
                      float* y) const {
    const int64_t width = sizes.filters, at = row * width + feature;
    y += at;
    if (residual) residual += at;
    if (row + 8 <= live && count == 4) {
      vec8 v[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) v[i] = load_any<vec8>(sums + i * T * LANES);
      transpose4(v);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const vec8 both = v[j % 4];
        vec4 four = j < 4 ? SHUFFLE(both, both, 0, 1, 2, 3)
                          : SHUFFLE(both, both, 4, 5, 6, 7);
        if (residual) four += load_any<vec4>(residual + j * width);
        store_any(y + j * width, is_relu ? relu(four) : four);
      }
      return;
    }
    for (int j = 0; j < std::min<int64_t>(8, live - row); ++j)
      for (int64_t i = 0; i < count; ++i) {
        float v = sums[i * T * LANES + j];
        if (residual) v += residual[j * width + i];
        y[j * width + i] = is_relu && v < 0 ? 0 : v;
      }
  }
};
