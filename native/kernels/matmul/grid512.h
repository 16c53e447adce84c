/* Formats with a grid (grid.h) with AVX-512's VBMI: a whole group at a time, without a load for a code.
 *
 * An entry is two bytes of numbers of levels: four columns of two bits in each or, of IQ3, two columns of three. vpermi2b looks
 * up 64 codes in 128 bytes of a table, so a table of 256 takes two and a blend by the code's highest bit. vpmultishiftqb then
 * brings the bits of each column of a row into a byte of their own, whose lowest six vpermb takes for the place of a level. Signs
 * are masks, by which the level is taken from twice the zero point.
 *
 * The weights become unsigned bytes, as those of other formats do (em_unsigned_zero). */
#ifndef EDGEMOE_GRID512_H
#define EDGEMOE_GRID512_H

#include <immintrin.h>

#include "../unrolled.h"
#include "grid256.h"

enum { GRID_QUADS = 8, GRID_TABLE_BYTES = 128 /* that one look-up sees */, GRID_TABLES_MOST = 16 };

INLINE __m512i grid_load512(const uint8_t *at) { return _mm512_loadu_si512(at); }

INLINE __m512i grid_every_quad(uint32_t bytes) { return _mm512_set1_epi32((int32_t)bytes); }

/* The bytes of a grid, and how many of them a table has. */
INLINE const uint8_t *grid_bytes(int format) {
    switch (em_numbers(format).grid) {
    case EM_GRID_IQ2XXS: return em_grid_bytes_iq2xxs[0];
    case EM_GRID_IQ2XS: return em_grid_bytes_iq2xs[0];
    case EM_GRID_IQ2S: return em_grid_bytes_iq2s[0];
    case EM_GRID_IQ3XXS: return em_grid_bytes_iq3xxs[0];
    case EM_GRID_IQ3S: return em_grid_bytes_iq3s[0];
    default: return em_grid_bytes_iq1[0];
    }
}

INLINE int grid_bytes_count(int format) {
    switch (em_numbers(format).grid) {
    case EM_GRID_IQ2XXS:
    case EM_GRID_IQ3XXS: return 256;
    case EM_GRID_IQ2XS:
    case EM_GRID_IQ3S: return 512;
    case EM_GRID_IQ2S: return 1024;
    default: return 2048;
    }
}

/* The bytes of a table of `count` for codes of which `low` has 7 bits and `bits` the others, the lowest first. */
INLINE __m512i grid_look_up(const uint8_t *table, int count, __m512i low, const __mmask64 *bits) {
    __m512i found[GRID_TABLES_MOST];
    const int tables = count / GRID_TABLE_BYTES;
    EM_UNROLLED for (int i = 0; i < tables; i++) {
        const uint8_t *own = table + i * GRID_TABLE_BYTES;
        found[i] = _mm512_permutex2var_epi8(grid_load512(own), low, grid_load512(own + GRID_TABLE_BYTES / 2));
    }
    EM_UNROLLED for (int bit = 0; bit < 4; bit++) {
        /* as many steps whatever the count: of a loop with a single one gcc says that it ignores the annotation */
        EM_UNROLLED for (int i = 0; i < GRID_TABLES_MOST / 2; i++) {
            if (i < tables >> (bit + 1)) found[i] = _mm512_mask_blend_epi8(bits[bit], found[2 * i], found[2 * i + 1]);
        }
    }
    return found[0];
}

/* IQ1's nibbles: byte r * 4 + n, in its lowest bits. */
INLINE __m512i grid_nibbles512(const uint8_t *payload, int format) {
    const __m256i bytes = grid_load(em_grid_after(payload, format));
    const __m512i sides = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), _mm512_castsi256_si512(bytes));
    return _mm512_srlv_epi64(sides, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
}

/* Bits 7 and more of the codes of a line. */
INLINE void grid_code_bits(const uint8_t *payload, int format, int line, __m512i low, __mmask64 bits[4]) {
    bits[0] = _mm512_movepi8_mask(low);
    if (format == EM_IQ2XS) bits[1] = _mm512_movepi8_mask(grid_load512(em_grid_signs(payload, format)));
    if (em_grid_is_iq1(format)) {
        const __m512i nibbles = grid_nibbles512(payload, format);
        for (int bit = 0; bit < 3; bit++) bits[1 + bit] = _mm512_test_epi8_mask(nibbles, _mm512_set1_epi8((char)(1 << bit)));
    }
    if (em_numbers(format).high_bytes == 1) { /* of each row: those of a side for its four codes */
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)em_grid_after(payload, format));
        const __m512i rows = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1), _mm512_castsi128_si512(bytes));
        const int each = em_grid_is_iq3(format) ? 1 : 2;
        for (int bit = 0; bit < each; bit++) {
            const uint64_t one = (uint64_t)0x0101010101010101 << (line * 4 + bit);
            const __m256i side = _mm256_setr_epi64x((int64_t)one, (int64_t)(one << each), (int64_t)(one << 2 * each),
                                                    (int64_t)(one << 3 * each));
            bits[1 + bit] = _mm512_test_epi8_mask(rows, _mm512_inserti64x4(_mm512_castsi256_si512(side), side, 1));
        }
    }
}

/* Levels by their number, whatever stands in the higher of six bits, with the zero point added. IQ1's have 2 added, which is
 * its weights' zero point (9) less 8 for the grid's, plus 1. */
INLINE __m512i grid_levels(int format) {
    static const uint8_t of_iq2[] = {8, 25, 43, 0}, of_iq1[] = {0, 8, 16, 0}, of_iq3xxs[] = {4, 12, 20, 28, 36, 44, 52, 62},
                         of_iq3s[] = {1, 3, 5, 7, 9, 11, 13, 15};
    const int iq1 = em_grid_is_iq1(format);
    const uint8_t *levels = iq1 ? of_iq1 : format == EM_IQ3XXS ? of_iq3xxs : format == EM_IQ3S ? of_iq3s : of_iq2;
    uint64_t eight = 0;
    for (int i = 0; i < 8; i++) {
        const int level = levels[em_grid_is_iq3(format) ? i : i % 4] + (iq1 ? 2 : em_unsigned_zero(format));
        eight |= (uint64_t)level << 8 * i;
    }
    return _mm512_set1_epi64((int64_t)eight);
}

/* Bytes of signs with bit 7 as it follows from the others. */
INLINE __m512i grid_whole_signs512(__m512i signs) {
    const __m512i nibbles = _mm512_set1_epi8(15);
    const __m512i parities = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    const __m512i own = _mm512_and_si512(signs, _mm512_set1_epi8(127));
    const __m512i low = _mm512_shuffle_epi8(parities, _mm512_and_si512(own, nibbles));
    const __m512i high = _mm512_shuffle_epi8(parities, _mm512_and_si512(_mm512_srli_epi16(own, 4), nibbles));
    return _mm512_ternarylogic_epi64(own, low, high, 0xF6); /* own | (low ^ high) */
}

/* The numbers of the levels of quad `quad`, in bytes' lowest bits, from those of the codes of its line: of the columns' first
 * half of an entry, and of the second. */
INLINE __m512i grid_numbers_of(__m512i first, __m512i second, int format, int quad) {
    /* `two` has the first bits of four columns of a row, and of the next row, in the 8 bytes that both stand in. */
    if (em_grid_is_iq3(format)) {
        const __m512i pairs = quad % 2 ? _mm512_unpackhi_epi8(first, second) : _mm512_unpacklo_epi8(first, second);
        const __m512i rows = quad % 4 < 2 ? _mm512_permutex_epi64(pairs, 0x50) : _mm512_permutex_epi64(pairs, 0xFA);
        const int64_t two = 0x1B1813100B080300;
        const __m128i places = _mm_set_epi64x(two + 0x2020202020202020, two);
        return _mm512_multishift_epi64_epi8(_mm512_broadcast_i32x4(places), rows);
    }
    const __m512i own = quad % 2 ? second : first;
    const int64_t two = em_grid_is_iq1(format) ? 0x2624222006040200 : 0x0E0C0A0806040200;
    if (em_grid_is_iq1(format)) return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(two + quad / 2 * 0x0808080808080808), own);
    const int64_t next = 0x1010101010101010; /* 16 bits */
    const __m256i places = _mm256_setr_epi64x(two, two + next, two + 2 * next, two + 3 * next);
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(places), places, 1);
    switch (quad / 2) {
    case 0: return _mm512_multishift_epi64_epi8(both, _mm512_permutex_epi64(own, 0x00));
    case 1: return _mm512_multishift_epi64_epi8(both, _mm512_permutex_epi64(own, 0x55));
    case 2: return _mm512_multishift_epi64_epi8(both, _mm512_permutex_epi64(own, 0xAA));
    default: return _mm512_multishift_epi64_epi8(both, _mm512_permutex_epi64(own, 0xFF));
    }
}

/* The byte of marks that each byte of a block's quads has: byte r * 4 + block, for all columns of row r. */
INLINE __m512i grid_marks512(__m512i marks, int block) {
    const __m128i first = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm512_shuffle_epi8(marks, _mm512_broadcast_i32x4(_mm_add_epi8(first, _mm_set1_epi8((char)block))));
}

/* The weights of 16 rows x 32 columns as unsigned bytes, one vector per quad of columns. */
INLINE void unpack_grid(const uint8_t *payload, int format, __m512i weights[GRID_QUADS]) {
    const int count = grid_bytes_count(format), lines = em_grid_is_iq3(format) ? 2 : 1, quads = GRID_QUADS / lines;
    const uint8_t *table = grid_bytes(format);
    const __m512i levels = grid_levels(format), twice_zero = _mm512_set1_epi8((char)(2 * em_unsigned_zero(format)));
    __m512i marks = em_grid_is_iq1(format) ? grid_nibbles512(payload, format) : grid_load512(em_grid_signs(payload, format));
    if (em_grid_has_parity(format)) marks = grid_whole_signs512(marks);
    EM_UNROLLED for (int line = 0; line < lines; line++) {
        const __m512i low = grid_load512(payload + line * EM_LINE_BYTES);
        __mmask64 bits[4] = {0};
        grid_code_bits(payload, format, line, low, bits);
        const __m512i first = grid_look_up(table, count, low, bits), second = grid_look_up(table + count, count, low, bits);
        EM_UNROLLED for (int i = 0; i < quads; i++) {
            const int quad = line * quads + i;
            const __m512i sizes = _mm512_permutexvar_epi8(grid_numbers_of(first, second, format, i), levels);
            if (em_grid_is_iq1(format)) {
                const __m512i own = grid_marks512(marks, format == EM_IQ1S ? 3 : quad / 2);
                const __mmask64 taken = _mm512_test_epi8_mask(own, _mm512_set1_epi8(8));
                weights[quad] = _mm512_mask_sub_epi8(sizes, taken, sizes, _mm512_set1_epi8(2));
                continue;
            }
            const __m512i bytes = grid_marks512(marks, quad / 2);
            const __mmask64 negative = _mm512_test_epi8_mask(bytes, grid_every_quad(quad % 2 ? 0x80402010u : 0x08040201u));
            weights[quad] = _mm512_mask_sub_epi8(sizes, negative, twice_zero, sizes);
        }
    }
}

#endif
