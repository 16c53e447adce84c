/* Formats with a trellis (trellis.h) with 256-bit vectors: 8 rows of a panel's payload, a side of it.
 *
 * A vector has the same step of 32 chains. Shifts of the planes give the nibbles after each step, and two shuffles a weight
 * of each chain: with the quad that the step stands for, that is the layout of other formats, 8 rows x 4 columns. Values
 * become unsigned bytes by what is added to the first table (em_unsigned_zero).
 *
 * Shuffles look at the low 4 bits of an index and at its highest one, so that the bits between may have anything. */
#ifndef EDGEMOE_TRELLIS256_H
#define EDGEMOE_TRELLIS256_H

#include <immintrin.h>

#include "quads256.h"
#include "trellis.h"

enum { TRELLIS_GROUP_BYTES = EM_PANEL_ROWS * EM_GROUP_COLUMNS /* of values */ };

/* Makes compilers have a vector here, of which they know no more: it costs no instruction. */
INLINE void trellis_settle(__m256i *vector) { __asm__ volatile("" : "+x"(*vector)); }

/* Both tables of each weight of a step. */
typedef struct trellis_tables {
    __m256i first[EM_TRELLIS_WEIGHTS], second[EM_TRELLIS_WEIGHTS];
} trellis_tables;

INLINE trellis_tables trellis_load_tables(const uint8_t *head, int format) {
    trellis_tables tables;
    for (int v = 0; v < em_trellis_weights(format); v++) {
        const __m128i *both = (const __m128i *)(const void *)(head + v * 2 * EM_TRELLIS_TABLE);
        const __m256i first = _mm256_broadcastsi128_si256(_mm_loadu_si128(both));
        tables.first[v] = _mm256_add_epi8(first, _mm256_set1_epi8((char)em_unsigned_zero(format)));
        tables.second[v] = _mm256_broadcastsi128_si256(_mm_loadu_si128(both + 1));
    }
    return tables;
}

/* One side of a payload: its planes, the last one first, behind them the last one of the payload before, and the nibbles
 * after each step so far, the last ones of that payload before them. */
typedef struct trellis_side {
    __m256i planes[EM_TRELLIS_PLANES + 1];
    __m256i nibbles[EM_TRELLIS_LAGS + EM_TRELLIS_STEPS];
} trellis_side;

/* The nibbles after a step. One that lies across two bytes of the stream has the lower one's part of it as its low bits. */
INLINE __m256i trellis_nibble(const trellis_side *at, int format, int step) {
    const int shift = em_trellis_shift(format, step), plane = shift / 8, from = shift % 8, low_bits = 8 - from;
    const __m256i mask = _mm256_set1_epi8(15), moved = _mm256_srli_epi16(at->planes[plane], from);
    __m256i nibbles = _mm256_and_si256(from ? moved : at->planes[plane], mask);
    if (low_bits < 4) {
        const __m256i low = _mm256_and_si256(moved, _mm256_set1_epi8((char)((1 << low_bits) - 1)));
        nibbles = _mm256_or_si256(low, _mm256_slli_epi16(_mm256_and_si256(at->planes[plane + 1], mask), low_bits));
    }
    /* Compilers that knew both sides of the exclusive or below to be masked would mask its result once more instead. */
    trellis_settle(&nibbles);
    return nibbles;
}

INLINE void trellis_begin(trellis_side *at, const uint8_t *payload, const uint8_t *before, int format, int side) {
    const int bits = em_numbers(format).bits, lag = em_numbers(format).lag;
    EM_UNROLLED for (int plane = 0; plane < bits; plane++) at->planes[plane] = load_line(payload + side * 32, bits - 1 - plane);
    at->planes[bits] = load_line(before + side * 32, 0);
    EM_UNROLLED for (int step = -lag; step < 0; step++) at->nibbles[EM_TRELLIS_LAGS + step] = trellis_nibble(at, format, step);
}

/* The weights of quads `first` to `first` + 3 of a payload, after all before them. */
INLINE void trellis_quads(trellis_side *at, const trellis_tables *tables, int format, int first,
                          __m256i weights[QUADS_TOGETHER]) {
    const int each = em_trellis_weights(format), lag = em_numbers(format).lag;
    EM_UNROLLED for (int i = 0; i < QUADS_TOGETHER; i++) {
        const int step = (first + i) / each, v = (first + i) % each;
        __m256i *nibbles = at->nibbles + EM_TRELLIS_LAGS;
        if (v == 0) nibbles[step] = trellis_nibble(at, format, step);
        const __m256i before = nibbles[step - lag];
        const __m256i value = _mm256_shuffle_epi8(tables->first[v], _mm256_xor_si256(nibbles[step], before));
        weights[i] = _mm256_add_epi8(value, _mm256_shuffle_epi8(tables->second[v], before));
        trellis_settle(&weights[i]); /* before the next one is begun, whose parts would go to memory */
    }
}

/* The values of `groups` groups of a panel from group `first`, with which a payload begins, in quads of 64 bytes. */
INLINE void trellis_unpack(const trellis_tables *tables, const uint8_t *panel, int format, int32_t first, int32_t groups,
                           uint8_t *values) {
    const int each = em_trellis_weights(format);
    for (int32_t g = 0; g < groups; g += each, values += each * TRELLIS_GROUP_BYTES) {
        for (int side = 0; side < 2; side++) {
            trellis_side at;
            const size_t block = (size_t)((first + g) / each);
            const uint8_t *before = em_trellis_last_plane(panel, format, block);
            trellis_begin(&at, panel + block * em_payload_bytes(format), before, format, side);
            EM_UNROLLED for (int quad = 0; quad < each * QUADS; quad += QUADS_TOGETHER) {
                __m256i weights[QUADS_TOGETHER];
                trellis_quads(&at, tables, format, quad, weights);
                for (int i = 0; i < QUADS_TOGETHER; i++) {
                    uint8_t *to = values + (quad + i) * EM_LINE_BYTES + side * (EM_LINE_BYTES / 2);
                    _mm256_storeu_si256((__m256i *)(void *)to, weights[i]);
                }
            }
        }
    }
}

/* The scales of a side for group g, times their factors: a product that is exact, and so is its sum with the scale. */
INLINE __m256 trellis_scale(const uint8_t *panel, em_sections at, int32_t g, int side, int format) {
    const size_t shared = (size_t)(g >> em_numbers(format).scale_shift) * em_scales_bytes(format);
    const uint8_t *halves = panel + at.scales + shared + side * EM_PANEL_ROWS;
    const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)halves));
    if (em_numbers(format).factor == EM_FACTOR_NONE) return scale;
    const uint8_t *factors = em_trellis_factors(panel, at, format, g) + side * (EM_PANEL_ROWS / 2);
    const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)factors));
    const __m256i moved = _mm256_srl_epi32(bytes, _mm_cvtsi32_si128(em_trellis_factor_bit(g)));
    const __m256 factor = _mm256_cvtepi32_ps(_mm256_and_si256(moved, _mm256_set1_epi32(15)));
    return _mm256_fmadd_ps(factor, scale, scale);
}

/* Those of all groups that share a scale, of which group g is the first. */
INLINE void trellis_scales(const uint8_t *panel, em_sections at, int32_t g, int side, int format,
                           __m256 scales[EM_TRELLIS_SHARE]) {
    EM_UNROLLED for (int i = 0; i < EM_TRELLIS_SHARE; i++) scales[i] = trellis_scale(panel, at, g + i, side, format);
}

#endif
