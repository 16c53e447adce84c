/* Quads of a quantised payload as 256-bit vectors: 8 rows x 4 columns. */
#ifndef EDGEMOE_QUADS256_H
#define EDGEMOE_QUADS256_H

#include <immintrin.h>
#include <string.h>

#include "../kernels.h"

enum {
    QUAD_BYTES = 64, /* 16 rows x 4 columns of int8 */
    QUADS = 8,       /* of a group */
    QUADS_TOGETHER = 4, /* half of a group: the low or the high nibbles of its payload */
};

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i load_quad(const uint8_t *payload, int quad) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(payload + quad * QUAD_BYTES));
}

/* The activations of a quad's columns, for each of 8 rows. */
INLINE __m256i broadcast_quad(const int8_t *x, int quad) {
    int32_t four;
    memcpy(&four, x + 4 * quad, sizeof four);
    return _mm256_set1_epi32(four);
}

/* The nibbles of four quads, from quad `first` (0 or 4) on. */
INLINE void unpack_nibbles(const uint8_t *payload, int first, __m256i weights[QUADS_TOGETHER]) {
    const __m256i low_nibbles = _mm256_set1_epi8(15);
    for (int quad = 0; quad < QUADS_TOGETHER; quad++) {
        const __m256i bytes = load_quad(payload, quad);
        weights[quad] = _mm256_and_si256(first ? _mm256_srli_epi16(bytes, 4) : bytes, low_nibbles);
    }
}

/* The same for m4, whose values are unsigned bytes then: one shuffle looks up 32 of them. */
INLINE void unpack_m4(const uint8_t *payload, int first, __m256i weights[QUADS_TOGETHER]) {
    const __m256i values = _mm256_broadcastsi128_si256(_mm_setr_epi8(EM_M4_UNSIGNED));
    unpack_nibbles(payload, first, weights);
    for (int quad = 0; quad < QUADS_TOGETHER; quad++) weights[quad] = _mm256_shuffle_epi8(values, weights[quad]);
}

#endif
