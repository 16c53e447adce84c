/* The delta rule and the scans with AVX2 and FMA; the same bits as generic.c. */
#include <immintrin.h>
#include <stdint.h>

#define VECTOR __m256
enum { FLOATS = 8 };

static inline __m256 load(const float *at) { return _mm256_loadu_ps(at); }
static inline void store(float *at, __m256 values) { _mm256_storeu_ps(at, values); }
static inline __m256 spread(float number) { return _mm256_set1_ps(number); }
static inline __m256 mul(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
static inline __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
static inline __m256 sub(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
static inline __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
static inline __m256 fused_minus(__m256 a, __m256 b, __m256 c) { return _mm256_fnmadd_ps(a, b, c); }

#include "vectors.h"

void em_delta_avx2(float *state, const em_delta_row *rows, int32_t row_count, int32_t width) {
    delta(state, rows, row_count, width);
}

void em_scan_avx2(float *state, const em_scan_row *rows, int32_t row_count, int32_t width) {
    scan(state, rows, row_count, width);
}

void em_channels_avx2(float *state, const em_channels_row *row, const float *skip, int32_t width) {
    scan_channels(state, row, skip, width);
}
