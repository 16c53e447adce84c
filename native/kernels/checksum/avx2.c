/* CRC-32C by the instruction of SSE4.2, which every processor with AVX2 has. */
#include <nmmintrin.h>

#ifdef __x86_64__
#define TAKE_WORD(r, word) ((uint32_t)_mm_crc32_u64(r, word))
#else
#define TAKE_WORD(r, word) _mm_crc32_u32(_mm_crc32_u32(r, (uint32_t)(word)), (uint32_t)((word) >> 32))
#endif
#define TAKE_BYTE(r, byte) _mm_crc32_u8(r, byte)
#include "lanes.h"

uint32_t em_crc32c_avx2(uint32_t crc, const uint8_t *data, uint64_t bytes) { return take(crc, data, bytes); }
