/* Integer dots with AVX2, for the panel products of vectors256.h:
 *
 *   q4, q4m  vpmaddubsw(nibbles, x): two products of at most 15 * 127 in an int16; the 8 quads of a group add up to
 *            at most 8 * 2 * 15 * 127 = 30480 < 32767 there, so one vpmaddwd with ones widens the whole group.
 *   q8       vpmaddubsw takes one unsigned side: |w| and x * sign(w). |-128| is 128 as unsigned, and
 *            2 * 128 * 127 = 32512 still fits; two of those do not, so each quad is widened by itself.
 *
 * Per group of 16 rows x 32 columns q4 takes 16 vpmaddubsw and about 50 other vector instructions for 288 bytes:
 * on cores with three vector ports some 12 bytes a cycle, well above what one core gets from memory. */
#include <immintrin.h>

#include "quads256.h"

INLINE __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

/* The weights of 8 rows x 32 columns, one vector per quad of columns. */
INLINE void unpack(const uint8_t *payload, int format, __m256i weights[QUADS]) {
    if (format != EM_Q8) {
        unpack_nibbles(payload, weights);
        return;
    }
    for (int quad = 0; quad < QUADS; quad++) weights[quad] = load_quad(payload, quad);
}

INLINE __m256i dot_group(const __m256i weights[QUADS], const int8_t *x, const em_group *group, int format) {
    if (format == EM_Q8) {
        __m256i sum = _mm256_setzero_si256();
        for (int quad = 0; quad < QUADS; quad++) {
            const __m256i w = weights[quad];
            const __m256i signed_x = _mm256_sign_epi8(broadcast_quad(x, quad), w);
            sum = _mm256_add_epi32(sum, widen(_mm256_maddubs_epi16(_mm256_abs_epi8(w), signed_x)));
        }
        return sum;
    }
    __m256i pairs = _mm256_maddubs_epi16(weights[0], broadcast_quad(x, 0));
    for (int quad = 1; quad < QUADS; quad++) {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights[quad], broadcast_quad(x, quad)));
    }
    if (format == EM_Q4M) return widen(pairs);
    return _mm256_add_epi32(widen(pairs), _mm256_set1_epi32(group->q4_start));
}

#include "vectors256.h"

DEFINE_PANELS(em_panels_f32_avx2, EM_F32, float_panel)
DEFINE_PANELS(em_panels_f16_avx2, EM_F16, float_panel)
DEFINE_PANELS(em_panels_q8_avx2, EM_Q8, quantised_panel)
DEFINE_PANELS(em_panels_q4_avx2, EM_Q4, quantised_panel)
DEFINE_PANELS(em_panels_q4m_avx2, EM_Q4M, quantised_panel)
