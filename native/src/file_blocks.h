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
    if (p.run == 1) return em_spread_bits(block[p.at + column / 8]); /* of one bit: em_codes_in_turn has others */
    const int32_t columns = p.run * 8 / p.bits, within = column % columns, field = within / p.run;
    const uint64_t word = em_load_64(block + p.at + column / columns * p.run + within % p.run);
    return word >> field * p.bits & ((1u << p.bits) - 1) * EM_EVERY_BYTE;
}

/* Three times each byte. */
EM_INLINE em_lanes16 em_thrice(em_lanes16 x) { return x + x + x; }

/* Two bits for each code of a group of TQ1_0, of columns 8i to 8i + 7 from bit 2i on: halves to be added. The arguments have
 * the bytes of columns 0 to 15 and of 16 to 31, less 128, after as many multiplications with 3 as there are codes before
 * theirs. A code is 1 from 86 on and 2 from 171 on: the whole part of 3/256 of the byte. */
EM_INLINE em_bytes16 em_group_of_threes(em_lanes16 first, em_lanes16 second) {
    typedef int8_t numbers16 __attribute__((vector_size(16)));
    const numbers16 a = (numbers16)first, b = (numbers16)second, zeros = {0};
    const numbers16 below_one = zeros + (85 - 128), below_two = zeros + (170 - 128);
    const em_bytes16 of_a = {EM_EVERY_BYTE, 4 * EM_EVERY_BYTE}, of_b = of_a << 4;
    const em_lanes16 ones = (em_lanes16)((em_bytes16)(a > below_one) & of_a) + (em_lanes16)((em_bytes16)(b > below_one) & of_b);
    const em_lanes16 twos = (em_lanes16)((em_bytes16)(a > below_two) & of_a) + (em_lanes16)((em_bytes16)(b > below_two) & of_b);
    return (em_bytes16)(ones + twos);
}

/* The codes of groups 0 and 1 of a block of TQ1_0, of 2 and 3, of 4 and 5, and of 6 and 7, in two bits each, as their format
 * has them. Five codes are in each of 32 bytes, then in each of 16, then four in each of 4. */
EM_INLINE em_four_rows em_codes_of_threes(const uint8_t *block) {
    const em_lanes16 less = (em_lanes16){0} + 128; /* it stays: 3 times 128 is 128 more than 256 */
    em_lanes16 a = (em_lanes16)em_load_bytes16(block) - less, b = (em_lanes16)em_load_bytes16(block + 16) - less;
    em_bytes16 groups[8];
    EM_UNROLLED for (int i = 0; i < 5; i++) {
        groups[i] = em_group_of_threes(a, b);
        a = em_thrice(a), b = em_thrice(b);
    }
    const em_lanes16 c = (em_lanes16)em_load_bytes16(block + 32) - less, c3 = em_thrice(c), c9 = em_thrice(c3);
    const em_lanes16 c27 = em_thrice(c9), c81 = em_thrice(c27);
    const em_lanes4 four = (em_lanes4){0} + em_load_32(block + 48);
    const em_lanes16 d = (em_lanes16)four - less, d3 = em_thrice(d), d9 = em_thrice(d3), d27 = em_thrice(d9);
    const em_lanes4 last = EM_PICK4(EM_PICK4(d, d3, 0, 4, 0, 4), EM_PICK4(d9, d27, 0, 4, 0, 4), 0, 1, 4, 5);
    groups[5] = em_group_of_threes(c, c3);
    groups[6] = em_group_of_threes(c9, c27);
    groups[7] = em_group_of_threes(c81, (em_lanes16)last);
#define BOTH(I) (EM_PICK2(groups[I], groups[(I) + 1], 0, 2) + EM_PICK2(groups[I], groups[(I) + 1], 1, 3))
    return (em_four_rows){BOTH(0), BOTH(2), BOTH(4), BOTH(6)};
#undef BOTH
}

/* Exchanges the bits under the mask with those that are `bits` above them. */
EM_INLINE em_bytes16 em_exchange_bits(em_bytes16 x, int bits, uint64_t mask) {
    const em_bytes16 different = (x >> bits ^ x) & mask;
    return x ^ different ^ different << bits;
}

/* The codes of four groups of one bit, or of two groups of two bits, as their formats have them: code 4f + i is bit f of
 * byte i, or code 8f + i field f of byte i. Each exchange is one of two binary digits of their places. */
EM_INLINE em_bytes16 em_codes_in_turn(const uint8_t *from, int bits) {
    em_bytes16 x = em_load_bytes16(from);
    if (bits == 1) {
        x = em_exchange_bits(x, 14, 0x0000CCCC0000CCCCu);
        x = em_exchange_bits(x, 7, 0x00AA00AA00AA00AAu);
        x = em_exchange_bits(x, 2, 12 * EM_EVERY_BYTE);
        return em_exchange_bits(x, 1, 34 * EM_EVERY_BYTE);
    }
    x = em_exchange_bits(x, 24, 0x00000000FF00FF00u);
    x = em_exchange_bits(x, 12, 0x0000F0F00000F0F0u);
    x = em_exchange_bits(x, 6, 0x00CC00CC00CC00CCu);
    return em_exchange_bits(x, 2, 12 * EM_EVERY_BYTE);
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
