/* Formats with a trellis (trellis.h) with 512-bit vectors: the 64 chains of a panel's payload at once, as in trellis256.h. */
#ifndef EDGEMOE_TRELLIS512_H
#define EDGEMOE_TRELLIS512_H

#include <immintrin.h>

#include "trellis.h"

#define INLINE static inline __attribute__((always_inline))

enum { TRELLIS_QUADS = EM_GROUP_COLUMNS / 4 /* of a group */ };

/* Both tables of each weight of a step. */
typedef struct trellis_tables {
    __m512i first[EM_TRELLIS_WEIGHTS], second[EM_TRELLIS_WEIGHTS];
} trellis_tables;

INLINE trellis_tables trellis_load_tables(const uint8_t *head, int format) {
    trellis_tables tables;
    for (int v = 0; v < em_trellis_weights(format); v++) {
        const __m128i *both = (const __m128i *)(const void *)(head + v * 2 * EM_TRELLIS_TABLE);
        const __m512i first = _mm512_broadcast_i32x4(_mm_loadu_si128(both));
        tables.first[v] = _mm512_add_epi8(first, _mm512_set1_epi8((char)em_unsigned_zero(format)));
        tables.second[v] = _mm512_broadcast_i32x4(_mm_loadu_si128(both + 1));
    }
    return tables;
}

/* The planes of a payload, the last one first, and behind them the last one of the payload before. */
INLINE void trellis_planes(const uint8_t *panel, int format, size_t block, __m512i planes[EM_TRELLIS_PLANES + 1]) {
    const int bits = em_numbers(format).bits;
    const uint8_t *payload = panel + block * em_payload_bytes(format);
    for (int plane = 0; plane < bits; plane++) planes[plane] = _mm512_loadu_si512(payload + (bits - 1 - plane) * EM_LINE_BYTES);
    planes[bits] = _mm512_loadu_si512(em_trellis_last_plane(panel, format, block));
}

/* The nibbles after a step, with anything between their highest bit and that of the byte. Across two bytes of the stream
 * one operation (0xca: bits of the second where those of the first are set, else of the third) takes the bits of each. */
INLINE __m512i trellis_nibble(const __m512i planes[EM_TRELLIS_PLANES + 1], int format, int step) {
    const int shift = em_trellis_shift(format, step), plane = shift / 8, from = shift % 8, low_bits = 8 - from;
    const __m512i nibbles = _mm512_set1_epi8(15), moved = _mm512_srli_epi16(planes[plane], (unsigned)from);
    if (low_bits >= 4) return _mm512_and_si512(from ? moved : planes[plane], nibbles);
    const __m512i low = _mm512_set1_epi8((char)((1 << low_bits) - 1));
    const __m512i high = _mm512_slli_epi16(_mm512_and_si512(planes[plane + 1], nibbles), (unsigned)low_bits);
    return _mm512_ternarylogic_epi64(low, moved, high, 0xca);
}

/* The weights of quad `quad` of a payload. */
INLINE __m512i trellis_quad(const trellis_tables *tables, const __m512i planes[EM_TRELLIS_PLANES + 1], int format, int quad) {
    const int each = em_trellis_weights(format), step = quad / each, v = quad % each;
    const __m512i last = trellis_nibble(planes, format, step);
    const __m512i before = trellis_nibble(planes, format, step - em_numbers(format).lag);
    const __m512i first = _mm512_shuffle_epi8(tables->first[v], _mm512_xor_si512(last, before));
    return _mm512_add_epi8(first, _mm512_shuffle_epi8(tables->second[v], before));
}

/* The scales of 16 rows for group g, times their factors. */
INLINE __m512 trellis_scale(const uint8_t *panel, em_sections at, int32_t g, int format) {
    const uint8_t *halves = panel + at.scales + (size_t)(g >> em_numbers(format).scale_shift) * em_scales_bytes(format);
    const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)halves));
    if (em_numbers(format).factor == EM_FACTOR_NONE) return scale;
    const uint8_t *factors = em_trellis_factors(panel, at, format, g);
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)factors));
    const __m512i moved = _mm512_srl_epi32(bytes, _mm_cvtsi32_si128(em_trellis_factor_bit(g)));
    const __m512i factor = _mm512_add_epi32(_mm512_and_si512(moved, _mm512_set1_epi32(15)), _mm512_set1_epi32(1));
    return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(factor));
}

#endif
