/* Integer dots with AVX2, for the panel products of vectors256.h:
 *
 *   unsigned  vpmaddubsw(weights, x): two products of at most `most` * 127 in an int16. Of 4 bits and less the 8 quads of
 *             a group add up to at most 8 * 2 * 15 * 127 = 30480 < 32767 there, so one vpmaddwd with ones widens the
 *             whole group; tables of e2m1 (values + 12, at most 24) and 5 bits widen each half of a group, as do iq3s and
 *             IQ1; 6 bits each two quads, and the other grids each quad. Zero points are taken off at the end.
 *   signed    vpmaddubsw takes one unsigned side: |w| and x * sign(w). |-128| is 128 as unsigned, and
 *             2 * 128 * 127 = 32512 still fits; two of those do not, so each quad is widened by itself. 8 bits, and IQ4,
 *             whose table reaches from -127 to 113.
 *
 * Per group of 16 rows x 32 columns q4 takes 16 vpmaddubsw and about 50 other vector instructions for 288 bytes:
 * on cores with three vector ports some 12 bytes a cycle, well above what one core gets from memory. */
#include <immintrin.h>

#include "grid256.h"
#include "quads256.h"
#include "trellis256.h"

INLINE __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

INLINE int is_signed(int format) { return em_numbers(format).bits == 8 || em_numbers(format).table == EM_TABLE_IQ4; }

/* The weights of 8 rows x 16 columns, one vector per quad of columns, from quad `first` (0 or 4) on. */
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
        for (int quad = 0; quad < QUADS_TOGETHER; quad++) weights[quad] = load_line(payload, first + quad);
        return;
    }
    unpack_codes(payload, format, first, weights);
    if (em_numbers(format).table == EM_TABLE_E2M1) look_up(_mm_setr_epi8(EM_E2M1_UNSIGNED), weights);
    if (em_numbers(format).table == EM_TABLE_IQ4) look_up(_mm_setr_epi8(EM_IQ4_SIGNED), weights);
}

/* The products of some quads of unsigned weights, added to those in `pairs`, which are int16. */
INLINE __m256i add_quads(__m256i pairs, const __m256i *weights, const int8_t *x, int first, int count) {
    for (int quad = first; quad < first + count; quad++) {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights[quad], broadcast_quad(x, quad)));
    }
    return pairs;
}

/* Those of four quads, widened by `ones`, or by factors that each row has twice, added to `sum`. */
INLINE __m256i add_unsigned_quads(__m256i sum, const __m256i weights[QUADS_TOGETHER], const int8_t *x, __m256i ones,
                                  int format) {
    const int together = em_unsigned_most(format) > 63 ? 1 : em_unsigned_most(format) > 31 ? 2 : QUADS_TOGETHER;
    for (int quad = 0; quad < QUADS_TOGETHER; quad += together) {
        const __m256i pairs = add_quads(_mm256_setzero_si256(), weights, x, quad, together);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    return sum;
}

INLINE __m256i add_signed_quads(__m256i sum, const __m256i weights[QUADS_TOGETHER], const int8_t *x) {
    for (int quad = 0; quad < QUADS_TOGETHER; quad++) {
        const __m256i w = weights[quad];
        const __m256i signed_x = _mm256_sign_epi8(broadcast_quad(x, quad), w);
        sum = _mm256_add_epi32(sum, widen(_mm256_maddubs_epi16(_mm256_abs_epi8(w), signed_x)));
    }
    return sum;
}

/* Four quads of weights, of any kind. */
INLINE __m256i four_quads(__m256i sum, const __m256i weights[QUADS_TOGETHER], const int8_t *x, int half, __m256i factors,
                          int format) {
    if (is_signed(format)) return add_signed_quads(sum, weights, x);
    const __m256i ones = em_has_half_factors(format) ? half_factors(factors, half) : _mm256_set1_epi16(1);
    return add_unsigned_quads(sum, weights, x, ones, format);
}

/* Whether a whole group's pairs fit in an int16. */
INLINE int is_small(int format) { return em_unsigned_most(format) <= 15 && em_numbers(format).halves == 1; }

INLINE int32_t zero_of(int format) { return is_signed(format) ? em_signed_zero(format) : em_unsigned_zero(format); }

/* The first half of a group's dots; of small weights still int16. */
INLINE __m256i begin_dots(const __m256i weights[QUADS_TOGETHER], const int8_t *x, const em_group *group, __m256i factors,
                          int format) {
    if (is_small(format)) return add_quads(_mm256_setzero_si256(), weights, x, 0, QUADS_TOGETHER);
    return four_quads(start_of(group, 0, zero_of(format), format), weights, x, 0, factors, format);
}

INLINE __m256i end_dots(__m256i begun, const __m256i weights[QUADS_TOGETHER], const int8_t *x, const em_group *group,
                        __m256i factors, int format) {
    if (is_small(format)) {
        const __m256i sum = widen(add_quads(begun, weights, x, 0, QUADS_TOGETHER));
        return zero_of(format) == 0 ? sum : _mm256_add_epi32(sum, start_of(group, 0, zero_of(format), format));
    }
    if (em_numbers(format).factor == EM_FACTOR_E4M3) begun = start_of(group, 1, zero_of(format), format);
    return four_quads(begun, weights, x, 1, factors, format);
}

#include "vectors256.h"

DEFINE_PANELS(avx2, F32, f32, float_panels)
DEFINE_PANELS(avx2, F16, f16, float_panels)
DEFINE_PANELS(avx2, BF16, bf16, float_panels)
DEFINE_PANELS(avx2, F8, f8, float_panels)
DEFINE_PANELS(avx2, M8, m8, float_panels)
#define DEFINE_QUANTISED(NAME, name) DEFINE_PANELS(avx2, NAME, name, quantised_panels)
EM_QUANTISED_FORMATS(DEFINE_QUANTISED)
