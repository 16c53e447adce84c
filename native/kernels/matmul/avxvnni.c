/* Integer dots with AVX-VNNI, for the panel products of vectors256.h: vpdpbusd multiplies unsigned weights with signed
 * activations and adds the four products of each row to that row's 32-bit sum.
 *
 *   codes     are unsigned already; the sums start at -zero * sum(x), which takes their zero point off
 *   tables    have values that are unsigned, with a zero point of their own (em_unsigned_zero)
 *   8 bits    w ^ 0x80 is w + 128 as unsigned */
#include <immintrin.h>

#include "grid256.h"
#include "quads256.h"
#include "trellis256.h"

/* The weights of 8 rows x 16 columns as unsigned bytes, one vector per quad of columns, from quad `first` (0 or 4) on. */
INLINE void unpack(const uint8_t *payload, int side, int format, int first, __m256i weights[QUADS_TOGETHER]) {
    if (em_numbers(format).grid != EM_GRID_NONE) {
        grid_unpack(payload, side, format, first, weights);
        return;
    }
    payload += side * (EM_LINE_BYTES / 2);
    if (em_is_trellis(format)) { /* unpacked before (trellis_unpack) */
        for (int quad = 0; quad < QUADS_TOGETHER; quad++) weights[quad] = load_line(payload, first + quad);
        return;
    }
    if (em_numbers(format).bits == 8) {
        const __m256i sign = _mm256_set1_epi8((char)0x80);
        for (int quad = 0; quad < QUADS_TOGETHER; quad++) {
            weights[quad] = _mm256_xor_si256(load_line(payload, first + quad), sign);
        }
        return;
    }
    unpack_codes(payload, format, first, weights);
    if (em_numbers(format).table == EM_TABLE_E2M1) look_up(_mm_setr_epi8(EM_E2M1_UNSIGNED), weights);
    if (em_numbers(format).table == EM_TABLE_IQ4) look_up(_mm_setr_epi8(EM_IQ4_UNSIGNED), weights);
}

INLINE __m256i add_quads(__m256i sums, const __m256i weights[QUADS_TOGETHER], const int8_t *x) {
    for (int quad = 0; quad < QUADS_TOGETHER; quad++) {
        sums = _mm256_dpbusd_avx_epi32(sums, weights[quad], broadcast_quad(x, quad));
    }
    return sums;
}

/* The first half of a group's dots. */
INLINE __m256i begin_dots(const __m256i weights[QUADS_TOGETHER], const int8_t *x, const em_group *group, __m256i factors,
                          int format) {
    const __m256i dots = add_quads(start_of(group, 0, em_unsigned_zero(format), format), weights, x);
    if (!em_has_half_factors(format)) return dots;
    return _mm256_mullo_epi32(dots, _mm256_srai_epi32(_mm256_slli_epi32(factors, 16), 16));
}

INLINE __m256i end_dots(__m256i begun, const __m256i weights[QUADS_TOGETHER], const int8_t *x, const em_group *group,
                        __m256i factors, int format) {
    if (em_has_half_factors(format)) {
        const __m256i dots = add_quads(_mm256_setzero_si256(), weights, x);
        return _mm256_add_epi32(begun, _mm256_mullo_epi32(dots, _mm256_srai_epi32(factors, 16)));
    }
    if (em_numbers(format).factor == EM_FACTOR_E4M3) begun = start_of(group, 1, em_unsigned_zero(format), format);
    return add_quads(begun, weights, x);
}

#include "vectors256.h"

DEFINE_PANELS(avxvnni, F32, f32, float_panels)
DEFINE_PANELS(avxvnni, F16, f16, float_panels)
DEFINE_PANELS(avxvnni, BF16, bf16, float_panels)
DEFINE_PANELS(avxvnni, F8, f8, float_panels)
DEFINE_PANELS(avxvnni, M8, m8, float_panels)
#define DEFINE_QUANTISED(NAME, name) DEFINE_PANELS(avxvnni, NAME, name, quantised_panels)
EM_QUANTISED_FORMATS(DEFINE_QUANTISED)
