// Vectors of LANES floats, by the vector extensions of GCC and Clang: one
// source for AVX2 (8 lanes), AVX-512 (16 lanes) and, slowly, any other CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#ifdef SIFT_LANES  // tests of 16 lanes without AVX-512
constexpr int LANES = SIFT_LANES;
#elif defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

#ifdef __AVX512F__
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t lanes __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef float vec4 __attribute__((vector_size(16)));
typedef float vec8 __attribute__((vector_size(32)));
typedef int32_t lanes8 __attribute__((vector_size(32)));

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE __builtin_shufflevector
#else  // older GCC takes the indices as a vector
#define SHUFFLE(a, b, ...) \
  __builtin_shuffle(a, b, decltype((a) < (b)){__VA_ARGS__})
#endif

static inline vec load(const float* p) { return *(const vec*)p; }
static inline void store(float* p, vec v) { *(vec*)p = v; }

// Keeps a vector in its register: GCC would load it again for every use.
static inline void keep(vec& v) {
#ifdef __AVX512F__
  asm("" : "+v"(v));
#elif defined(__AVX2__) && !defined(SIFT_LANES)
  asm("" : "+x"(v));
#endif
}

// Unaligned access: activations are aligned to floats only.
template <class V>
struct __attribute__((packed)) Unaligned {
  V v;
};
template <class V>
static inline V load_any(const float* p) {
  return ((const Unaligned<V>*)p)->v;
}
template <class V>
static inline void store_any(float* p, V v) {
  ((Unaligned<V>*)p)->v = v;
}

// Packs up to eight bools into bits, the first into the lowest.
static inline uint32_t bits_of(const uint8_t* bools, int64_t count) {
  uint64_t eight = 0;
  if (count >= 8)  // a constant size compiles to one load
    memcpy(&eight, bools, 8);
  else
    memcpy(&eight, bools, count);
  return uint32_t(eight * 0x0102040810204080 >> 56);
}

// The address sanitizer does not check intrinsics.
#ifdef __SANITIZE_ADDRESS__
#define SIFT_CHECKED 1
#else
#define SIFT_CHECKED 0
#endif

static inline vec8 join(vec4 low, vec4 high) {
#ifdef __AVX2__
  return (vec8)_mm256_set_m128((__m128)high, (__m128)low);
#else
  vec8 v;
  memcpy(&v, &low, 16);
  memcpy((char*)&v + 16, &high, 16);
  return v;
#endif
}

// Transposes 4 x 4 floats in both halves.
static inline void transpose4(vec8* v) {
  const vec8 p = SHUFFLE(v[0], v[1], 0, 8, 1, 9, 4, 12, 5, 13);
  const vec8 q = SHUFFLE(v[0], v[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const vec8 r = SHUFFLE(v[2], v[3], 0, 8, 1, 9, 4, 12, 5, 13);
  const vec8 s = SHUFFLE(v[2], v[3], 2, 10, 3, 11, 6, 14, 7, 15);
  v[0] = SHUFFLE(p, r, 0, 1, 8, 9, 4, 5, 12, 13);
  v[1] = SHUFFLE(p, r, 2, 3, 10, 11, 6, 7, 14, 15);
  v[2] = SHUFFLE(q, s, 0, 1, 8, 9, 4, 5, 12, 13);
  v[3] = SHUFFLE(q, s, 2, 3, 10, 11, 6, 7, 14, 15);
}

// Loads two neighbouring floats at p and two at q.
static inline vec4 load_pairs(const float* p, const float* q) {
#if defined(__SSE2__) && !SIFT_CHECKED
  return (vec4)_mm_loadh_pi(_mm_castpd_ps(_mm_load_sd((const double*)p)),
                            (const __m64*)q);
#else
  return vec4{p[0], p[1], q[0], q[1]};
#endif
}

static inline void store_pairs(float* p, float* q, vec4 v) {
#if defined(__SSE2__) && !SIFT_CHECKED
  _mm_storel_pi((__m64*)p, (__m128)v);
  _mm_storeh_pi((__m64*)q, (__m128)v);
#else
  p[0] = v[0], p[1] = v[1], q[0] = v[2], q[1] = v[3];
#endif
}

template <class V>
static inline V relu(V v) {
  return v < 0 ? V{} : v;  // a NaN stays, as in torch
}

// out[j] += sum of the lanes of a[j], for j < count <= 8.
static inline void add_sums(const vec* a, float* out, int count) {
#ifdef __AVX2__
  __m256 h[8];
  for (int j = 0; j < 8; ++j) {
#ifdef __AVX512F__
    h[j] = _mm256_add_ps(_mm512_castps512_ps256((__m512)a[j]),
                         _mm512_extractf32x8_ps((__m512)a[j], 1));
#else
    vec8 halves[LANES / 8];
    memcpy(halves, &a[j], sizeof halves);
    h[j] =
        (__m256)(LANES == 8 ? halves[0] : halves[0] + halves[LANES / 8 - 1]);
#endif
  }
  const __m256 ab = _mm256_hadd_ps(h[0], h[1]),
               cd = _mm256_hadd_ps(h[2], h[3]);
  const __m256 ef = _mm256_hadd_ps(h[4], h[5]),
               gh = _mm256_hadd_ps(h[6], h[7]);
  const __m256 x = _mm256_hadd_ps(ab, cd), y = _mm256_hadd_ps(ef, gh);
  const __m256 sums = _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20),
                                    _mm256_permute2f128_ps(x, y, 0x31));
  if (count == 8) {
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), sums));
    return;
  }
  float s[8];
  _mm256_storeu_ps(s, sums);
#else
  float s[8] = {};
  for (int j = 0; j < count; ++j)
    for (int i = 0; i < LANES; ++i) s[j] += a[j][i];
#endif
  for (int j = 0; j < count; ++j) out[j] += s[j];
}
