/* CRC-32C by the instructions that 64-bit ARM has from version 8.1 on, so before dot products. No speed was measured on
 * any processor. */
#include <arm_acle.h>

#define TAKE_WORD(r, word) __crc32cd(r, word)
#define TAKE_BYTE(r, byte) __crc32cb(r, byte)
#include "lanes.h"

uint32_t em_crc32c_neon(uint32_t crc, const uint8_t *data, uint64_t bytes) { return take(crc, data, bytes); }
