/* Integer dots with AVX2, for the panel products of vectors256.h:
 *
 *   q4, q4m  vpmaddubsw(nibbles, x): two products of at most 15 * 127 in an int16; the 8 quads of a group add up to
 *            at most 8 * 2 * 15 * 127 = 30480 < 32767 there, so one vpmaddwd with ones widens the whole group.
 *   m4       the same with values + 12, unsigned bytes of at most 24, and sums that start at -12 * sum(x); 8 quads would
 *            be 48768, so each half of a group is widened by itself.
 *   q8       vpmaddubsw takes one unsigned side: |w| and x * sign(w). |-128| is 128 as unsigned, and
 *            2 * 128 * 127 = 32512 still fits; two of those do not, so each quad is widened by itself.
 *
 * Per group of 16 rows x 32 columns q4 takes 16 vpmaddubsw and about 50 other vector instructions for 288 bytes:
 * on cores with three vector ports some 12 bytes a cycle, well above what one core gets from memory. */
#include <immintrin.h>

#include "quads256.h"

INLINE __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

/* The weights of 8 rows x 16 columns, one vector per quad of columns, from quad `first` (0 or 4) on. */
INLINE void unpack(const uint8_t *payload, int format, int first, __m256i weights[QUADS_TOGETHER]) {
    if (format == EM_M4) {
        unpack_m4(payload, first, weights);
        return;
    }
    if (format != EM_Q8) {
        unpack_nibbles(payload, first, weights);
        return;
    }
    for (int quad = 0; quad < QUADS_TOGETHER; quad++) weights[quad] = load_quad(payload, first + quad);
}

/* The products of four quads of unsigned weights, added to those in `pairs`, which are int16. */
INLINE __m256i add_quads(__m256i pairs, const __m256i weights[QUADS_TOGETHER], const int8_t *x) {
    for (int quad = 0; quad < QUADS_TOGETHER; quad++) {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights[quad], broadcast_quad(x, quad)));
    }
    return pairs;
}

INLINE __m256i add_signed_quads(__m256i sum, const __m256i weights[QUADS_TOGETHER], const int8_t *x) {
    for (int quad = 0; quad < QUADS_TOGETHER; quad++) {
        const __m256i w = weights[quad];
        const __m256i signed_x = _mm256_sign_epi8(broadcast_quad(x, quad), w);
        sum = _mm256_add_epi32(sum, widen(_mm256_maddubs_epi16(_mm256_abs_epi8(w), signed_x)));
    }
    return sum;
}

/* The first half of a group's dots; of q4 and q4m still int16. */
INLINE __m256i begin_dots(const __m256i weights[QUADS_TOGETHER], const int8_t *x, const em_group *group, int format) {
    const __m256i zero = _mm256_setzero_si256();
    if (format == EM_Q8) return add_signed_quads(zero, weights, x);
    const __m256i pairs = add_quads(zero, weights, x);
    return format == EM_M4 ? _mm256_add_epi32(_mm256_set1_epi32(em_m4_start(group)), widen(pairs)) : pairs;
}

INLINE __m256i end_dots(__m256i begun, const __m256i weights[QUADS_TOGETHER], const int8_t *x, const em_group *group,
                        int format) {
    if (format == EM_Q8) return add_signed_quads(begun, weights, x);
    if (format == EM_M4) return _mm256_add_epi32(begun, widen(add_quads(_mm256_setzero_si256(), weights, x)));
    const __m256i sum = widen(add_quads(begun, weights, x));
    return format == EM_Q4M ? sum : _mm256_add_epi32(sum, _mm256_set1_epi32(group->q4_start));
}

#include "vectors256.h"

DEFINE_PANELS(em_panels_f32_avx2, EM_F32, float_panels)
DEFINE_PANELS(em_panels_f16_avx2, EM_F16, float_panels)
DEFINE_PANELS(em_panels_q8_avx2, EM_Q8, quantised_panels)
DEFINE_PANELS(em_panels_q4_avx2, EM_Q4, quantised_panels)
DEFINE_PANELS(em_panels_q4m_avx2, EM_Q4M, quantised_panels)
DEFINE_PANELS(em_panels_m4_avx2, EM_M4, quantised_panels)
