/* The search for codes of trellis formats, and the feedback of errors with AVX2; the same costs as generic.c. */
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct ints {
    __m256i low, high;
} INTS;

typedef struct floats {
    __m256 low, high;
} FLOATS;

#define BOTH_HALVES(type, name, instruction)                                                                          \
    static inline type name(type a, type b) { return (type){instruction(a.low, b.low), instruction(a.high, b.high)}; }

BOTH_HALVES(FLOATS, mul, _mm256_mul_ps)
BOTH_HALVES(FLOATS, add_floats, _mm256_add_ps)
BOTH_HALVES(FLOATS, sub_floats, _mm256_sub_ps)
BOTH_HALVES(FLOATS, smaller_float, _mm256_min_ps)
BOTH_HALVES(FLOATS, larger_float, _mm256_max_ps)
BOTH_HALVES(INTS, add, _mm256_add_epi32)
BOTH_HALVES(INTS, sub, _mm256_sub_epi32)
BOTH_HALVES(INTS, smaller, _mm256_min_epi32)
BOTH_HALVES(INTS, both, _mm256_and_si256)
BOTH_HALVES(INTS, either, _mm256_or_si256)

static inline bool none_larger(FLOATS a, FLOATS b) {
    const __m256 low = _mm256_cmp_ps(a.low, b.low, _CMP_NLE_UQ), high = _mm256_cmp_ps(a.high, b.high, _CMP_NLE_UQ);
    return _mm256_movemask_ps(_mm256_or_ps(low, high)) == 0;
}

static inline FLOATS load_floats(const float *at) { return (FLOATS){_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
static inline INTS load_ints(const int32_t *at) {
    return (INTS){_mm256_loadu_si256((const __m256i *)at), _mm256_loadu_si256((const __m256i *)(at + 8))};
}
static inline FLOATS spread(float number) { return (FLOATS){_mm256_set1_ps(number), _mm256_set1_ps(number)}; }
static inline INTS truncate(FLOATS a) { return (INTS){_mm256_cvttps_epi32(a.low), _mm256_cvttps_epi32(a.high)}; }
static inline INTS spread_int(int32_t number) { return (INTS){_mm256_set1_epi32(number), _mm256_set1_epi32(number)}; }

static inline INTS shift_left(INTS a, int32_t bits) {
    return (INTS){_mm256_slli_epi32(a.low, bits), _mm256_slli_epi32(a.high, bits)};
}

static inline void store_ints(int32_t *at, INTS a) {
    _mm256_storeu_si256((__m256i *)at, a.low);
    _mm256_storeu_si256((__m256i *)(at + 8), a.high);
}

static inline void store_floats(float *at, FLOATS a) {
    _mm256_storeu_ps(at, a.low);
    _mm256_storeu_ps(at + 8, a.high);
}

#include "feed.h"
#include "search.h"

void em_search_trellis_avx2(const em_trellis_panel *panel, int32_t chain) { search(panel, chain); }

void em_feed_trellis_avx2(const em_trellis_unit *unit) { feed(unit); }
