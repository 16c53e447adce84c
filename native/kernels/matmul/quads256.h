/* Quads of a quantised payload as 256-bit vectors: 8 rows x 4 columns. */
#ifndef EDGEMOE_QUADS256_H
#define EDGEMOE_QUADS256_H

#include <immintrin.h>
#include <string.h>

#include "../kernels.h"

enum {
    QUADS = 8,          /* of a group */
    QUADS_TOGETHER = 4, /* half of a group */
};

#define INLINE static inline __attribute__((always_inline))

/* Line `line` of a plane, of which `payload` is the first byte of these 8 rows. */
INLINE __m256i load_line(const uint8_t *payload, int line) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(payload + line * EM_LINE_BYTES));
}

/* The activations of a quad's columns, for each of 8 rows. */
INLINE __m256i broadcast_quad(const int8_t *x, int quad) {
    int32_t four;
    memcpy(&four, x + 4 * quad, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Quad `quad` of a plane of `bits` bits, moved to the bits from `to` on. */
INLINE __m256i plane_quad(const uint8_t *payload, int bits, int quad, int to) {
    const int from = quad / bits * bits;
    const __m256i line = load_line(payload, quad % bits);
    const __m256i moved = from > to   ? _mm256_srli_epi16(line, from - to)
                          : from < to ? _mm256_slli_epi16(line, to - from)
                                      : line;
    return _mm256_and_si256(moved, _mm256_set1_epi8((char)(((1 << bits) - 1) << to)));
}

/* The codes of four quads, from quad `first` (0 or 4) on, in the planes of formats.PLANES; those of 1 bit doubled. */
INLINE void unpack_codes(const uint8_t *payload, int format, int first, __m256i codes[QUADS_TOGETHER]) {
    const int bits = em_numbers(format).bits, low_bits = bits > 4 ? 4 : bits == 3 ? 2 : bits, high_bits = bits - low_bits;
    for (int i = 0; i < QUADS_TOGETHER; i++) {
        codes[i] = plane_quad(payload, low_bits, first + i, bits == 1);
        if (high_bits) {
            const __m256i high = plane_quad(payload + low_bits * EM_LINE_BYTES, high_bits, first + i, low_bits);
            codes[i] = _mm256_or_si256(codes[i], high);
        }
    }
}

/* Looks up the values of codes: one shuffle for 32 of them. */
INLINE void look_up(__m128i table, __m256i codes[QUADS_TOGETHER]) {
    const __m256i values = _mm256_broadcastsi128_si256(table);
    for (int quad = 0; quad < QUADS_TOGETHER; quad++) codes[quad] = _mm256_shuffle_epi8(values, codes[quad]);
}

/* The factors of the first (0) or the second half of each row, twice. */
INLINE __m256i half_factors(__m256i factors, int half) {
    const __m256i from = half ? _mm256_set1_epi32(0x03020302) : _mm256_set1_epi32(0x01000100);
    const __m256i rows = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    return _mm256_shuffle_epi8(factors, _mm256_add_epi8(from, rows));
}

/* Where the sums of a group begin, or of half `half` of it where each has its own, so that `zero` is taken off. */
INLINE __m256i start_of(const em_group *group, int half, int32_t zero, int format) {
    if (zero == 0 || em_has_half_factors(format)) return _mm256_setzero_si256();
    return _mm256_set1_epi32(em_numbers(format).halves == 2 ? em_half_start(group, half, zero) : em_start(group, zero));
}

#endif
