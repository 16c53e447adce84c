/* The delta rule and the scans with AVX-512; the same bits as generic.c. */
#include <immintrin.h>
#include <stdint.h>

#define VECTOR __m512
enum { FLOATS = 16 };

static inline __m512 load(const float *at) { return _mm512_loadu_ps(at); }
static inline void store(float *at, __m512 values) { _mm512_storeu_ps(at, values); }
static inline __m512 spread(float number) { return _mm512_set1_ps(number); }
static inline __m512 mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
static inline __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
static inline __m512 sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
static inline __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
static inline __m512 fused_minus(__m512 a, __m512 b, __m512 c) { return _mm512_fnmadd_ps(a, b, c); }

#include "vectors.h"

void em_delta_avx512(float *state, const em_delta_row *rows, int32_t row_count, int32_t width) {
    delta(state, rows, row_count, width);
}

void em_scan_avx512(float *state, const em_scan_row *rows, int32_t row_count, int32_t width) {
    scan(state, rows, row_count, width);
}

void em_channels_avx512(float *state, const em_channels_row *row, const float *skip, int32_t width) {
    scan_channels(state, row, skip, width);
}
