// Sizes of a core's caches.
#pragma once

#include <unistd.h>

#include <cstdint>

static inline int64_t l1_bytes() {
  long bytes = 0;
#ifdef _SC_LEVEL1_DCACHE_SIZE
  bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
#endif
  return bytes > 0 ? bytes : 32 * 1024;
}

static inline int64_t l2_bytes() {
  long bytes = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
  bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  return bytes > 0 ? bytes : 256 * 1024;
}
