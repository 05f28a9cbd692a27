// Cache sizes of a core, in bytes.
#pragma once

#include <unistd.h>

#include <cstdint>

static inline int64_t cache_bytes(int level, int64_t otherwise) {
  long bytes = 0;
#ifdef _SC_LEVEL1_DCACHE_SIZE
  bytes = sysconf(level == 1 ? _SC_LEVEL1_DCACHE_SIZE : _SC_LEVEL2_CACHE_SIZE);
#endif
  return bytes > 0 ? bytes : otherwise;
}

static inline int64_t l1_bytes() { return cache_bytes(1, 32 * 1024); }
static inline int64_t l2_bytes() { return cache_bytes(2, 256 * 1024); }
