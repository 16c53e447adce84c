/* Activations, keys and values to groups of 32 int8 with AVX2: four vectors of 8 floats are one group. */
#include <immintrin.h>
#include <string.h>

#include "../half.h"
#include "../kernels.h"
#include "cache_scale.h"

enum { VECTORS = EM_GROUP_COLUMNS / EM_LANES };

static inline uint32_t largest_bits(__m256i bits) {
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, _MM_SHUFFLE(1, 0, 3, 2)));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, _MM_SHUFFLE(2, 3, 0, 1)));
    return (uint32_t)_mm_cvtsi128_si32(most);
}

/* The sums of the first and of the last 16 bytes. */
static inline void sum_halves(__m256i values, int32_t sums[2]) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), values);
    __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    quads = _mm256_add_epi32(quads, _mm256_shuffle_epi32(quads, _MM_SHUFFLE(1, 0, 3, 2)));
    quads = _mm256_add_epi32(quads, _mm256_shuffle_epi32(quads, _MM_SHUFFLE(2, 3, 0, 1)));
    sums[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(quads));
    sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(quads, 1));
}

/* A NaN becomes -127: both minimum and maximum give their second operand then. */
static inline __m256i scaled(__m256 input, __m256 factor) {
    const __m256 limit = _mm256_set1_ps(127.0f), lowest = _mm256_set1_ps(-127.0f);
    const __m256 value = _mm256_max_ps(_mm256_mul_ps(input, factor), lowest);
    return _mm256_cvtps_epi32(_mm256_min_ps(value, limit));
}

/* A group, and its largest magnitude; a NaN where there is one. */
static inline float load_group(const float *input, __m256 in[VECTORS]) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < VECTORS; i++) {
        in[i] = _mm256_loadu_ps(input + EM_LANES * i);
        most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(in[i]), magnitude));
    }
    return em_from_bits(largest_bits(most));
}

static inline __m256i rounded(const __m256 in[VECTORS], float factor) {
    const __m256 factors = _mm256_set1_ps(factor);
    /* Packing works on 128-bit halves; the permutation puts the groups of four back in order. */
    const __m256i first = _mm256_packs_epi32(scaled(in[0], factors), scaled(in[1], factors));
    const __m256i second = _mm256_packs_epi32(scaled(in[2], factors), scaled(in[3], factors));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order);
}

static void quantise_group(const float *input, int8_t *values, em_group *group) {
    __m256 in[VECTORS];
    const float found = load_group(input, in);
    const float largest = found < EM_SMALLEST_ACTIVATION ? 0.0f : found;
    const __m256i bytes = rounded(in, largest > 0 ? 127.0f / largest : 0.0f);
    _mm256_storeu_si256((__m256i *)(void *)values, bytes);
    const float scale = largest / 127.0f;
    int32_t sums[2];
    sum_halves(bytes, sums);
    const int32_t sum = sums[0] + sums[1];
    *group = (em_group){
        .scale = scale, .scaled_sum = scale * (float)sum, .q4_start = -8 * sum, .half_sums = {(int16_t)sums[0], (int16_t)sums[1]},
    };
}

void em_quantise_avx2(const float *input, int32_t columns, int8_t *values, em_group *groups) {
    int32_t start = 0;
    for (; start + EM_GROUP_COLUMNS <= columns; start += EM_GROUP_COLUMNS) {
        quantise_group(input + start, values + start, groups++);
    }
    if (start < columns) {
        float last[EM_GROUP_COLUMNS] = {0};
        memcpy(last, input + start, (size_t)(columns - start) * sizeof *last);
        quantise_group(last, values + start, groups);
    }
}

/* A group of a cache; returns its scale. */
static inline uint16_t store_group(const float *input, int8_t *values) {
    __m256 in[VECTORS];
    const em_cache_scale scale = em_scale_for(load_group(input, in));
    const __m256i bytes = em_is_finite_half(scale.half) ? rounded(in, scale.factor) : _mm256_setzero_si256();
    _mm256_storeu_si256((__m256i *)(void *)values, bytes);
    return scale.half;
}

void em_to_q8_avx2(const float *input, int8_t *values, uint16_t *scales, int32_t count) {
    int32_t start = 0;
    for (; start + EM_GROUP_COLUMNS <= count; start += EM_GROUP_COLUMNS) {
        *scales++ = store_group(input + start, values + start);
    }
    if (start < count) {
        float last[EM_GROUP_COLUMNS] = {0};
        int8_t bytes[EM_GROUP_COLUMNS];
        memcpy(last, input + start, (size_t)(count - start) * sizeof *last);
        *scales = store_group(last, bytes);
        memcpy(values + start, bytes, (size_t)(count - start));
    }
}
