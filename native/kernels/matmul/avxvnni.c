/* Integer dots with AVX-VNNI, for the panel products of vectors256.h: vpdpbusd multiplies unsigned weights with signed
 * activations and adds the four products of each row to that row's 32-bit sum.
 *
 *   q4    nibbles are unsigned already; the sums start at -8 * sum(x), which is what the nibbles' zero point takes off
 *   q4m   the same from 0; the minimum has its own share of the group's sum
 *   m4    values + 12 are unsigned; the sums start at -12 * sum(x)
 *   q8    w ^ 0x80 is w + 128 as unsigned; the sums start at -128 * sum(x) */
#include <immintrin.h>

#include "quads256.h"

/* The weights of 8 rows x 16 columns as unsigned bytes, one vector per quad of columns, from quad `first` (0 or 4) on. */
INLINE void unpack(const uint8_t *payload, int format, int first, __m256i weights[QUADS_TOGETHER]) {
    if (format == EM_M4) {
        unpack_m4(payload, first, weights);
        return;
    }
    if (format != EM_Q8) {
        unpack_nibbles(payload, first, weights);
        return;
    }
    const __m256i sign = _mm256_set1_epi8((char)0x80);
    for (int quad = 0; quad < QUADS_TOGETHER; quad++) {
        weights[quad] = _mm256_xor_si256(load_quad(payload, first + quad), sign);
    }
}

INLINE __m256i end_dots(__m256i begun, const __m256i weights[QUADS_TOGETHER], const int8_t *x, const em_group *group,
                        int format) {
    (void)group, (void)format;
    for (int quad = 0; quad < QUADS_TOGETHER; quad++) {
        begun = _mm256_dpbusd_avx_epi32(begun, weights[quad], broadcast_quad(x, quad));
    }
    return begun;
}

/* The first half of a group's dots. */
INLINE __m256i begin_dots(const __m256i weights[QUADS_TOGETHER], const int8_t *x, const em_group *group, int format) {
    __m256i sums = _mm256_setzero_si256();
    if (format == EM_Q8) sums = _mm256_set1_epi32(group->q8_start);
    if (format == EM_Q4) sums = _mm256_set1_epi32(group->q4_start);
    if (format == EM_M4) sums = _mm256_set1_epi32(em_m4_start(group));
    return end_dots(sums, weights, x, group, format);
}

#include "vectors256.h"

DEFINE_PANELS(em_panels_f32_avxvnni, EM_F32, float_panels)
DEFINE_PANELS(em_panels_f16_avxvnni, EM_F16, float_panels)
DEFINE_PANELS(em_panels_q8_avxvnni, EM_Q8, quantised_panels)
DEFINE_PANELS(em_panels_q4_avxvnni, EM_Q4, quantised_panels)
DEFINE_PANELS(em_panels_q4m_avxvnni, EM_Q4M, quantised_panels)
DEFINE_PANELS(em_panels_m4_avxvnni, EM_M4, quantised_panels)
