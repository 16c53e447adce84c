/* Arithmetic of CRC-32C (Castagnoli): polynomials over GF(2) modulo
 *
 *   P = x^32 + x^28 + x^27 + x^26 + x^25 + x^23 + x^22 + x^20 + x^19 + x^18 + x^14 + x^13 + x^11 + x^10 + x^9 + x^8
 *       + x^6 + 1
 *
 * in reflected order: bit 31 of a word is the coefficient of x^0, bit 0 that of x^31. A register that has taken in some
 * bytes and then n zero bytes is the register before times x^(8 n). So what was computed over two halves apart becomes
 * that of the whole by one multiplication. */
#ifndef EDGEMOE_POLYNOMIAL_H
#define EDGEMOE_POLYNOMIAL_H

#include <stdint.h>
#include <string.h>

#define EM_CRC32C_POLYNOMIAL 0x82f63b78u

/* x^(8 n) for the lengths of lanes, in bytes, that the instruction sets with a checksum instruction cut data into. */
enum { EM_LANE_LEAST_BYTES = 1024, EM_LANE_MOST_BYTES = 8192 };
#define EM_SHIFT_1024 0xe4172b16u
#define EM_SHIFT_2048 0x0d65762au
#define EM_SHIFT_4096 0x35d73a62u
#define EM_SHIFT_8192 0x28461564u
#define EM_SHIFT_1 0x00800000u /* x^8 */

static inline uint32_t em_multiply_polynomials(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int i = 31; i >= 0; i--) {
        product ^= b & -(a >> i & 1);
        b = b >> 1 ^ (EM_CRC32C_POLYNOMIAL & -(b & 1));
    }
    return product;
}

static inline uint64_t em_load_word(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* The longest lane of which three fit, and its shift; 0 where three of the least do not. */
static inline uint64_t em_lane_bytes(uint64_t bytes, uint32_t *shift) {
    if (bytes >= 3 * 8192) return *shift = EM_SHIFT_8192, 8192;
    if (bytes >= 3 * 4096) return *shift = EM_SHIFT_4096, 4096;
    if (bytes >= 3 * 2048) return *shift = EM_SHIFT_2048, 2048;
    if (bytes >= 3 * 1024) return *shift = EM_SHIFT_1024, 1024;
    return 0;
}

#endif
