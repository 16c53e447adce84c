/* Attention's scores and mixtures (rows.h) with AVX2, FMA and F16C. */
#include <immintrin.h>

#include "element.h"

#define INLINE static inline __attribute__((always_inline))

enum { KEYS_TOGETHER = 4 };

typedef __m256 em_lanes;

INLINE em_lanes em_load_lanes(const float *at) { return _mm256_loadu_ps(at); }
INLINE void em_store_lanes(float *at, em_lanes lanes) { _mm256_storeu_ps(at, lanes); }
INLINE em_lanes broadcast(float number) { return _mm256_set1_ps(number); }
INLINE em_lanes times(em_lanes a, em_lanes b) { return _mm256_mul_ps(a, b); }
INLINE em_lanes add_products(em_lanes sums, em_lanes a, em_lanes b) { return _mm256_fmadd_ps(a, b, sums); }

INLINE em_lanes load8(em_cached rows, size_t at, em_lanes scale, int format) {
    if (format == EM_F32) return _mm256_loadu_ps((const float *)rows.elements + at);
    if (format == EM_F16) {
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)rows.elements + at)));
    }
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)((const int8_t *)rows.elements + at));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), scale);
}

/* The scale of the group that a column lies in; nothing that is used where there are none. */
INLINE em_lanes load_scale(em_cached rows, size_t row, int32_t column, int format) {
    if (format != EM_Q8) return _mm256_setzero_ps();
    return _mm256_cvtph_ps(_mm_set1_epi16((int16_t)rows.scales[em_scale_index(rows, row, column)]));
}

/* Halves added: lanes l0 + l4, l1 + l5, l2 + l6, l3 + l7. */
INLINE __m128 fold_once(__m256 lanes) {
    return _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
}

/* Folds four vectors together, transposed. */
INLINE void store_folded(float *at, const em_lanes lanes[KEYS_TOGETHER], float scale) {
    const __m128 a = fold_once(lanes[0]), b = fold_once(lanes[1]), c = fold_once(lanes[2]), d = fold_once(lanes[3]);
    const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b)); /* a0 + a2, b0 + b2, a1 + a3, b1 + b3 */
    const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    const __m128 folded = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
    _mm_storeu_ps(at, _mm_mul_ps(folded, _mm_set1_ps(scale)));
}

#include "rows.h"

DEFINE_ATTENTION(avx2, f32, EM_F32)
DEFINE_ATTENTION(avx2, f16, EM_F16)
DEFINE_ATTENTION(avx2, q8, EM_Q8)
