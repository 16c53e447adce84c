/* Blocks of files (edgemoe/kernels/row_types.py): where codes and factors stand in them, sixteen codes at a time.
 *
 * All functions are inlined where the type is known, so that places, shifts and masks are constants there. */
#ifndef EDGEMOE_FILE_BLOCKS_H
#define EDGEMOE_FILE_BLOCKS_H

#include <string.h>

#include "bytes16.h"
#include "edgemoe.h"

/* Bits of codes: the first byte in the block, how many bits of each code, and the bytes of a run. 0 bits: there is none. */
typedef struct em_plane {
    int32_t at, bits, run;
} em_plane;

/* A type of numbers in a file. */
typedef struct em_row_type {
    int32_t format;  /* its twin */
    int32_t columns; /* of a block; 1: plain floats */
    int32_t bytes;
    int32_t scale, minimum; /* where they stand */
    int32_t factors, factors_at;
    em_plane low, high;
} em_row_type;

#define EM_ROW_TYPE(NAME, format, columns, bytes, scale, minimum, factors, at, p, q, r, s, t, u) \
    [EM_ROWS_##NAME] = {format, columns, bytes, scale, minimum, factors, at, {p, q, r}, {s, t, u}},
static const em_row_type em_row_types[EM_ROWS_COUNT] = {EM_ROW_TYPES(EM_ROW_TYPE)};
#undef EM_ROW_TYPE

#define EM_EVERY_BYTE 0x0101010101010101u /* multiplied with a byte: eight of it */

EM_INLINE uint16_t em_load_16(const uint8_t *from) {
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

EM_INLINE uint32_t em_load_32(const uint8_t *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

EM_INLINE uint64_t em_load_64(const uint8_t *from) {
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* The lowest 8 bits, 8 pairs of bits or 8 nibbles of a number, each in a byte of its own. */
EM_INLINE uint64_t em_spread_bits(uint64_t x) {
    x = (x | x << 28) & 0x0000000F0000000Fu;
    x = (x | x << 14) & 0x0003000300030003u;
    return (x | x << 7) & EM_EVERY_BYTE;
}

EM_INLINE uint64_t em_spread_pairs(uint64_t x) {
    x = (x | x << 24) & 0x000000FF000000FFu;
    x = (x | x << 12) & 0x000F000F000F000Fu;
    return (x | x << 6) & 3 * EM_EVERY_BYTE;
}

EM_INLINE uint64_t em_spread_nibbles(uint64_t x) {
    x = (x | x << 16) & 0x0000FFFF0000FFFFu;
    x = (x | x << 8) & 0x00FF00FF00FF00FFu;
    return (x | x << 4) & 15 * EM_EVERY_BYTE;
}

/* The bits that a plane has of the codes of columns `column` to `column + 7`. */
EM_INLINE uint64_t em_plane_codes(const uint8_t *block, em_plane p, int32_t column) {
    if (p.bits == 0) return 0;
    if (p.run == 1) {
        const uint8_t *from = block + p.at + column * p.bits / 8;
        return p.bits == 1 ? em_spread_bits(*from) : em_spread_pairs(em_load_16(from));
    }
    const int32_t columns = p.run * 8 / p.bits, within = column % columns, field = within / p.run;
    const uint64_t word = em_load_64(block + p.at + column / columns * p.run + within % p.run);
    return word >> field * p.bits & ((1u << p.bits) - 1) * EM_EVERY_BYTE;
}

/* Four codes of TQ1_0, of three values, from four bytes: `power` is 3 to the number of codes before them in each byte. */
EM_INLINE uint64_t em_threes(const uint8_t *from, uint32_t power) {
    uint64_t x = em_load_32(from);
    x = (x | x << 16) & 0x0000FFFF0000FFFFu;
    x = (x | x << 8) & 0x00FF00FF00FF00FFu;
    x = (x * power & 0x00FF00FF00FF00FFu) * 3 >> 8 & 0x0003000300030003u;
    x = (x | x >> 8) & 0x0000FFFF0000FFFFu;
    return (x | x >> 16) & 0xFFFFFFFFu;
}

/* Eight codes of TQ1_0: five of them in each of 32 bytes, then of 16, then four in each of 4. */
EM_INLINE uint64_t em_codes_of_threes(const uint8_t *block, int32_t column) {
    static const uint8_t powers[] = {1, 3, 9, 27, 81};
    uint64_t codes[2];
    for (int32_t i = 0; i < 2; i++) {
        const int32_t at = column + 4 * i;
        const int32_t run = at < 160 ? 32 : at < 240 ? 16 : 4, first = at < 160 ? 0 : at < 240 ? 160 : 240;
        const int32_t begin = at < 160 ? 0 : at < 240 ? 32 : 48;
        codes[i] = em_threes(block + begin + (at - first) % run, powers[(at - first) / run]);
    }
    return codes[0] | codes[1] << 32;
}

/* The bits that a plane has of the codes of columns `column` to `column + 15`, a multiple of 16. */
EM_INLINE em_bytes16 em_plane_codes16(const uint8_t *block, em_plane p, int32_t column) {
    if (p.bits == 0) return (em_bytes16){0};
    if (p.run % 16 != 0) return (em_bytes16){em_plane_codes(block, p, column), em_plane_codes(block, p, column + 8)};
    const int32_t columns = p.run * 8 / p.bits, within = column % columns, field = within / p.run;
    const em_bytes16 word = em_load_bytes16(block + p.at + column / columns * p.run + within % p.run);
    return word >> field * p.bits & ((1u << p.bits) - 1) * EM_EVERY_BYTE;
}

/* The codes of columns `column` to `column + 15` of a block, a multiple of 16, each in a byte. */
EM_INLINE em_bytes16 em_codes16(const uint8_t *block, em_row_type type, int32_t column) {
    if (type.low.bits == 0) return (em_bytes16){em_codes_of_threes(block, column), em_codes_of_threes(block, column + 8)};
    return em_plane_codes16(block, type.low, column) | em_plane_codes16(block, type.high, column) << type.low.bits;
}

/* Bytes below 64, less 32, as signed bytes. */
EM_INLINE uint64_t em_less_32(uint64_t x) {
    return ((x | 128 * EM_EVERY_BYTE) - 32 * EM_EVERY_BYTE) ^ 128 * EM_EVERY_BYTE;
}

/* Writes the `count` factors of a block, as its format has them, and the offsets that stand beside them there. */
EM_INLINE void em_factors(const uint8_t *block, em_row_type type, int32_t count, uint8_t *factors, uint8_t *offsets) {
    const uint8_t *from = block + type.factors_at;
    if (type.factors == EM_FACTORS_BYTES || type.factors == EM_FACTORS_NIBBLES) {
        memcpy(factors, from, (size_t)count);
    } else if (type.factors == EM_FACTORS_PAIRS) {
        const uint32_t first = em_load_32(from), second = em_load_32(from + 4), third = em_load_32(from + 8);
        const uint32_t words[] = {first & 0x3F3F3F3Fu, (third & 0x0F0F0F0Fu) | (first >> 2 & 0x30303030u),
                                  second & 0x3F3F3F3Fu, (third >> 4 & 0x0F0F0F0Fu) | (second >> 2 & 0x30303030u)};
        memcpy(factors, words, 8);
        memcpy(offsets, words + 2, 8);
    } else if (type.factors == EM_FACTORS_SIXTEEN) {
        const uint64_t low = em_load_64(from), high = em_load_32(from + 8);
        const uint64_t twos = high | (high >> 2) << 32; /* of factors 0-7 in the lowest bits, of 8-15 in bits 4 and 5 */
        const uint64_t words[] = {em_less_32((low & 15 * EM_EVERY_BYTE) | (twos & 3 * EM_EVERY_BYTE) << 4),
                                  em_less_32((low >> 4 & 15 * EM_EVERY_BYTE) | (twos >> 4 & 3 * EM_EVERY_BYTE) << 4)};
        memcpy(factors, words, 16);
    } else if (type.factors == EM_FACTORS_EIGHT) {
        const uint64_t low = em_spread_nibbles(em_load_32(from + 2)), high = em_spread_pairs(em_load_16(from));
        const uint64_t word = em_less_32(low | high << 4);
        memcpy(factors, &word, 8);
    }
}

#endif
