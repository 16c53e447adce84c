/* Panel products with AVX-512 and its VNNI, for files that have defined how a grid's weights are unpacked (unpack_grid); the
 * same bits as matmul/generic.c.
 *
 * A 64-byte vector of a quantised payload holds 16 rows x 4 columns, a whole panel wide. vpdpbusd multiplies its 64
 * unsigned bytes with the 4 activations of those columns, which it broadcasts from memory by itself, and adds the four
 * products of each row to that row's 32-bit sum. So a group of 32 columns is eight of them:
 *
 *   codes     are unsigned already; the sums start at -zero * sum(x), which takes their zero point off
 *   tables    have values that are unsigned, with a zero point of their own (em_unsigned_zero); one shuffle looks up 64
 *   8 bits    w ^ 0x80 is w + 128 as unsigned
 *
 * With one activation row the panels are one stream of bytes, and prefetches run ahead of it. With several, a group's
 * weights of two panels are unpacked once into 16 registers for up to ROWS_TOGETHER rows: two, so that a quad of
 * activations is loaded once for both, and the two load ports keep up with the two of the products. The sums lie in
 * memory: a load and a store beside eleven vector instructions cost nothing, and any number of rows is as good as any
 * other. */
#ifndef EDGEMOE_VECTORS512_H
#define EDGEMOE_VECTORS512_H

#include <immintrin.h>
#include <string.h>

#include "../kernels.h"
#include "grid256.h"
#include "lookahead.h"
#include "trellis512.h"

enum {
    QUADS = 8, /* of a group */
    ROWS_TOGETHER = 32,
    PANELS_TOGETHER = 2,
    FLOAT_ROWS_TOGETHER = 8,
    /* Prefetches go this far ahead: somewhat more than memory delivers to a core in the time of one miss. */
    GROUPS_AHEAD = 16,
    FLOAT_BYTES_AHEAD = 4096,
    LINE_BYTES = 64,
    TRELLIS_BYTES_AHEAD = 4096, /* of payloads */
};

#define INLINE static inline __attribute__((always_inline))

INLINE __m512i load(const uint8_t *at) { return _mm512_loadu_si512(at); }

INLINE __m512i broadcast_quad(const int8_t *x) {
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return _mm512_set1_epi32(quad);
}

INLINE __m512 load_halves(const uint8_t *at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
}

/* 16 bytes of e4m3 as floats divided by 256 (em_e4m3_half_bits). */
INLINE __m512 load_e4m3(const uint8_t *at) {
    const __m256i words = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)at)), 8);
    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_srai_epi16(words, 1), _mm256_set1_epi16((short)0xbfff)));
}

INLINE __m512i load_bytes(const uint8_t *at) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)at));
}

/* The scales of 16 rows. */
INLINE __m512 load_scales(const uint8_t *at, int format) {
    if (em_numbers(format).scale == EM_SCALE_F16) return load_halves(at);
    if (em_numbers(format).scale == EM_SCALE_F32) return _mm512_loadu_ps(at);
    const __m512i e = load_bytes(at); /* em_e8m0_half_bits */
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __m512i below_normal = _mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(1)), 21);
    return _mm512_castsi512_ps(_mm512_max_epi32(normal, below_normal));
}

/* The numbers of 16 rows for one group. */
typedef struct row_numbers {
    __m512 scales[2], minimum; /* the second scale is that of the second half, where factors are e4m3 */
    __m512 factors[2], offsets[2]; /* of both halves (em_has_half_factors) */
} row_numbers;

/* The factors of IQ1, two for each row, or its scales times the factor of a group. */
INLINE row_numbers iq1_numbers(const uint8_t *panel, em_sections at, int32_t g, int format) {
    __m256 scales[2];
    __m256i factors[2];
    for (int side = 0; side < 2; side++) {
        scales[side] = grid_scale(panel, at, g, side, format);
        if (em_numbers(format).halves == 2) factors[side] = grid_half_factors(panel, at, g, side, format);
        else scales[side] = grid_times_factors(scales[side], panel, at, g, side, format);
    }
    const __m512 scale = _mm512_insertf32x8(_mm512_castps256_ps512(scales[0]), scales[1], 1);
    row_numbers rows = {.scales = {scale, scale}, .minimum = scale};
    if (em_numbers(format).halves == 2) {
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(factors[0]), factors[1], 1);
        rows.factors[0] = _mm512_cvtepi32_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff)));
        rows.factors[1] = _mm512_cvtepi32_ps(_mm512_srli_epi32(both, 16));
    }
    return rows;
}

/* 2k + 1 as floats. */
INLINE __m512 grid_factors(__m512i k) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_add_epi32(k, k), _mm512_set1_epi32(1)));
}

/* The numbers of a format with a grid. */
INLINE row_numbers grid_numbers(const uint8_t *panel, em_sections at, int32_t g, int format) {
    const em_format_numbers numbers = em_numbers(format);
    if (numbers.grid == EM_GRID_IQ1) return iq1_numbers(panel, at, g, format);
    const __m512 given = load_halves(panel + at.scales + (size_t)(g >> numbers.scale_shift) * em_scales_bytes(format));
    const __m512 scale = _mm512_mul_ps(given, _mm512_set1_ps(1.0f / (float)(1 << numbers.unit_shift)));
    row_numbers rows = {.scales = {scale, scale}, .minimum = scale};
    if (numbers.factor == EM_FACTOR_INNER) {
        const __m512i signs = load(em_grid_signs(panel + (size_t)g * em_payload_bytes(format), format));
        const __m512i bits = _mm512_and_si512(_mm512_srli_epi16(signs, 7), _mm512_set1_epi8(1));
        const __m512i twos = _mm512_maddubs_epi16(bits, _mm512_set1_epi32(0x08040201));
        rows.scales[0] = _mm512_mul_ps(scale, grid_factors(_mm512_madd_epi16(twos, _mm512_set1_epi16(1))));
        return rows;
    }
    const __m512i pairs = load_bytes(panel + at.factors + (size_t)(g * numbers.halves / 2) * EM_PANEL_ROWS);
    const __m512 first = grid_factors(_mm512_and_si512(pairs, _mm512_set1_epi32(15)));
    const __m512 second = grid_factors(_mm512_srli_epi32(pairs, 4));
    if (numbers.halves == 2) rows.factors[0] = first, rows.factors[1] = second;
    else rows.scales[0] = _mm512_mul_ps(scale, g % 2 ? second : first);
    return rows;
}

INLINE row_numbers load_numbers(const uint8_t *panel, em_sections at, int32_t g, int format) {
    const em_format_numbers numbers = em_numbers(format);
    if (numbers.grid != EM_GRID_NONE) return grid_numbers(panel, at, g, format);
    if (em_is_trellis(format)) {
        const __m512 of_trellis = trellis_scale(panel, at, g, format);
        return (row_numbers){.scales = {of_trellis, of_trellis}, .minimum = of_trellis};
    }
    const size_t shared = (size_t)(g >> numbers.scale_shift), number = (size_t)g * numbers.halves * EM_PANEL_ROWS;
    const uint8_t *factors = panel + at.factors + number, *offsets = panel + at.offsets + number;
    const __m512 scale = load_scales(panel + at.scales + shared * em_scales_bytes(format), format);
    row_numbers rows = {.scales = {scale, scale}, .minimum = scale};
    if (numbers.has_minimums) rows.minimum = load_halves(panel + at.minimums + shared * em_minimums_bytes(format));
    for (int half = 0; half < numbers.halves; half++, factors += EM_PANEL_ROWS) {
        const __m512i byte = numbers.factor == EM_FACTOR_NONE ? _mm512_setzero_si512() : load_bytes(factors);
        if (numbers.factor == EM_FACTOR_NIBBLE) {
            rows.factors[half] = _mm512_cvtepi32_ps(_mm512_and_si512(byte, _mm512_set1_epi32(15)));
            rows.offsets[half] = _mm512_cvtepi32_ps(_mm512_srli_epi32(byte, 4));
        } else if (numbers.factor == EM_FACTOR_INT8) {
            const __m512 factor = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(byte, 24), 24));
            if (em_has_half_factors(format)) rows.factors[half] = factor;
            else rows.scales[half] = _mm512_mul_ps(scale, factor);
        } else if (numbers.factor == EM_FACTOR_E4M3) {
            const __m512 factor = _mm512_mul_ps(load_e4m3(factors), _mm512_set1_ps(EM_E4M3_HALVED));
            rows.scales[half] = _mm512_mul_ps(scale, factor);
        }
    }
    if (numbers.has_offsets && numbers.halves == 1) {
        rows.minimum = _mm512_mul_ps(rows.minimum, _mm512_cvtepi32_ps(load_bytes(offsets)));
    }
    return rows;
}

/* Quad `quad` of a plane of `bits` bits, moved to the bits from `to` on. */
INLINE __m512i plane_quad(const uint8_t *payload, int bits, int quad, int to) {
    const int from = quad / bits * bits;
    const __m512i line = load(payload + quad % bits * EM_LINE_BYTES);
    const __m512i moved = from > to   ? _mm512_srli_epi16(line, (unsigned)(from - to))
                          : from < to ? _mm512_slli_epi16(line, (unsigned)(to - from))
                                      : line;
    return _mm512_and_si512(moved, _mm512_set1_epi8((char)(((1 << bits) - 1) << to)));
}

/* The weights of 16 rows x 32 columns as unsigned bytes, one vector per quad of columns. */
INLINE void unpack(const uint8_t *payload, int format, __m512i weights[QUADS]) {
    const int bits = em_numbers(format).bits, low_bits = bits > 4 ? 4 : bits == 3 ? 2 : bits, high_bits = bits - low_bits;
    if (em_numbers(format).grid != EM_GRID_NONE) {
        unpack_grid(payload, format, weights);
        return;
    }
    if (bits == 8) {
        const __m512i sign = _mm512_set1_epi8((char)0x80);
        for (int quad = 0; quad < QUADS; quad++) {
            weights[quad] = _mm512_xor_si512(load(payload + quad * EM_LINE_BYTES), sign);
        }
        return;
    }
    for (int quad = 0; quad < QUADS; quad++) { /* the planes of formats.PLANES; codes of 1 bit are doubled */
        weights[quad] = plane_quad(payload, low_bits, quad, bits == 1);
        if (high_bits) {
            const __m512i high = plane_quad(payload + low_bits * EM_LINE_BYTES, high_bits, quad, low_bits);
            weights[quad] = _mm512_or_si512(weights[quad], high);
        }
    }
    if (em_numbers(format).table != EM_TABLE_E2M1 && em_numbers(format).table != EM_TABLE_IQ4) return;
    const __m128i table = em_numbers(format).table == EM_TABLE_E2M1 ? _mm_setr_epi8(EM_E2M1_UNSIGNED)
                                                                     : _mm_setr_epi8(EM_IQ4_UNSIGNED);
    const __m512i values = _mm512_broadcast_i32x4(table);
    for (int quad = 0; quad < QUADS; quad++) weights[quad] = _mm512_shuffle_epi8(values, weights[quad]);
}

/* Those of group g of a trellis. Where it is the first of a payload, `unpacked` gets the values of all its groups. */
INLINE void unpack_trellis(const uint8_t *head, const uint8_t *panel, int format, int32_t g, uint8_t *unpacked,
                           __m512i weights[QUADS]) {
    const int each = em_trellis_weights(format), within = g % each;
    if (within == 0) {
        const trellis_tables tables = trellis_load_tables(head, format);
        __m512i planes[EM_TRELLIS_PLANES + 1];
        trellis_planes(panel, format, (size_t)(g / each), planes);
        EM_UNROLLED for (int quad = 0; quad < each * QUADS; quad++) {
            _mm512_storeu_si512(unpacked + quad * EM_LINE_BYTES, trellis_quad(&tables, planes, format, quad));
        }
    }
    for (int quad = 0; quad < QUADS; quad++) weights[quad] = load(unpacked + (within * QUADS + quad) * EM_LINE_BYTES);
}

/* Where the integer sums of a group, or of one of its halves, begin, so that they end as the dots with the signed weights. */
INLINE __m512i first_sums(const em_group *group, int half, int format) {
    const int32_t zero = em_unsigned_zero(format);
    if (zero == 0) return _mm512_setzero_si512();
    return _mm512_set1_epi32(em_numbers(format).halves == 2 ? em_half_start(group, half, zero) : em_start(group, zero));
}

/* `sum` and the share of one group, in which products of whole numbers below 2^24 are exact as floats. */
INLINE __m512 add_group(__m512 sum, const __m512i dots[2], const em_group *group, const row_numbers *rows, int format) {
    const em_format_numbers numbers = em_numbers(format);
    const __m512 scale = _mm512_set1_ps(group->scale);
    if (em_has_half_factors(format)) {
        const __m512 first = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[0]), rows->factors[0]);
        const __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[1]), rows->factors[1], first);
        sum = _mm512_fmadd_ps(both, _mm512_mul_ps(rows->scales[0], scale), sum);
        if (!numbers.has_offsets) return sum;
        const __m512 one = _mm512_mul_ps(rows->offsets[0], _mm512_set1_ps((float)group->half_sums[0]));
        const __m512 offset = _mm512_fmadd_ps(rows->offsets[1], _mm512_set1_ps((float)group->half_sums[1]), one);
        return _mm512_fnmadd_ps(offset, _mm512_mul_ps(rows->minimum, scale), sum);
    }
    for (int half = 0; half < numbers.halves; half++) {
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[half]), _mm512_mul_ps(rows->scales[half], scale), sum);
    }
    const __m512 scaled_sum = _mm512_set1_ps(group->scaled_sum);
    if (numbers.has_offsets) return _mm512_fnmadd_ps(rows->minimum, scaled_sum, sum);
    return numbers.has_minimums ? _mm512_fmadd_ps(rows->minimum, scaled_sum, sum) : sum;
}

/* One activation row times one panel, with prefetches ahead in the stream of panels. */
INLINE void quantised_row(const uint8_t *panel, const em_activations *x, int32_t row, float *out, int format) {
    const size_t payload_bytes = em_payload_bytes(format), panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count, quads = QUADS / em_numbers(format).halves;
    const em_sections at = em_sections_of(format, group_count);
    const em_group *groups = x->groups + (size_t)row * group_count;
    const int8_t *values = x->values + (size_t)row * group_count * EM_GROUP_COLUMNS;
    em_lookahead next = em_look_ahead(panel, group_count, 0, group_count, format, panel_bytes, GROUPS_AHEAD);
    __m512 sum = _mm512_setzero_ps();
    for (int32_t g = 0; g < group_count; g++) {
        em_prefetch_group(&next, format);
        __m512i weights[QUADS], dots[2];
        unpack(panel + (size_t)g * payload_bytes, format, weights);
        const row_numbers numbers = load_numbers(panel, at, g, format);
        for (int half = 0; half < em_numbers(format).halves; half++) dots[half] = first_sums(groups + g, half, format);
        for (int quad = 0; quad < QUADS; quad++) {
            const int8_t *x_quad = values + (size_t)g * EM_GROUP_COLUMNS + 4 * quad;
            dots[quad / quads] = _mm512_dpbusd_epi32(dots[quad / quads], weights[quad], broadcast_quad(x_quad));
        }
        sum = add_group(sum, dots, groups + g, &numbers, format);
    }
    _mm512_storeu_ps(out, sum);
}

/* The same with a trellis. A payload's groups follow one another while its planes are at hand. */
INLINE void trellis_row(const uint8_t *head, const uint8_t *panel, const em_activations *x, int32_t row, float *out,
                        int format) {
    const int32_t group_count = x->group_count;
    const int each = em_trellis_weights(format), ahead = TRELLIS_BYTES_AHEAD / (int)em_payload_bytes(format) * each;
    const em_sections at = em_sections_of(format, group_count);
    const em_group *groups = x->groups + (size_t)row * group_count;
    const int8_t *values = x->values + (size_t)row * group_count * EM_GROUP_COLUMNS;
    const trellis_tables tables = trellis_load_tables(head, format);
    em_lookahead next = em_look_ahead(panel, group_count, 0, group_count, format, em_panel_bytes(format, x->columns), ahead);
    __m512 sum = _mm512_setzero_ps();
    for (int32_t first = 0; first < group_count; first += each) {
        const int32_t left = group_count - first, count = left < each ? left : each;
        __m512i planes[EM_TRELLIS_PLANES + 1];
        trellis_planes(panel, format, (size_t)(first / each), planes);
        EM_UNROLLED for (int i = 0; i < each; i++) {
            if (i >= count) break;
            const int32_t g = first + i;
            em_prefetch_group(&next, format);
            const row_numbers numbers = load_numbers(panel, at, g, format);
            __m512i dots[2] = {first_sums(groups + g, 0, format), _mm512_setzero_si512()};
            EM_UNROLLED for (int quad = 0; quad < QUADS; quad++) {
                const __m512i weights = trellis_quad(&tables, planes, format, i * QUADS + quad);
                dots[0] = _mm512_dpbusd_epi32(dots[0], weights, broadcast_quad(values + (size_t)g * EM_GROUP_COLUMNS + 4 * quad));
            }
            sum = add_group(sum, dots, groups + g, &numbers, format);
        }
    }
    _mm512_storeu_ps(out, sum);
}

/* `count` activation rows, at most ROWS_TOGETHER, times `panel_count` panels, one or two; `head` is their matrix's. */
INLINE void quantised_rows(const uint8_t *head, const uint8_t *panels, int panel_count, const em_activations *x,
                           const int32_t *rows, int32_t count, float *out, size_t out_stride, int format) {
    const size_t payload_bytes = em_payload_bytes(format), panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count, quads = QUADS / em_numbers(format).halves;
    const em_sections at = em_sections_of(format, group_count);
    uint8_t unpacked[PANELS_TOGETHER][EM_TRELLIS_WEIGHTS * EM_PANEL_ROWS * EM_GROUP_COLUMNS]; /* a payload of a trellis */
    const em_group *groups[ROWS_TOGETHER] = {0};
    const int8_t *values[ROWS_TOGETHER] = {0};
    em_lookahead next[PANELS_TOGETHER];
    for (int p = 0; p < panel_count; p++) {
        const uint8_t *panel = panels + (size_t)p * panel_bytes;
        next[p] = em_look_ahead(panel, group_count, 0, group_count, format, panel_bytes, GROUPS_AHEAD);
    }
    for (int32_t i = 0; i < count; i++) {
        groups[i] = x->groups + (size_t)rows[i] * group_count;
        values[i] = x->values + (size_t)rows[i] * group_count * EM_GROUP_COLUMNS;
        for (int p = 0; p < panel_count; p++) {
            _mm512_storeu_ps(out + (size_t)i * out_stride + p * EM_PANEL_ROWS, _mm512_setzero_ps());
        }
    }
    for (int32_t g = 0; g < group_count; g++) {
        __m512i weights[PANELS_TOGETHER][QUADS];
        row_numbers numbers[PANELS_TOGETHER];
        for (int p = 0; p < panel_count; p++) {
            const uint8_t *panel = panels + (size_t)p * panel_bytes;
            em_prefetch_group(&next[p], format);
            if (em_is_trellis(format)) unpack_trellis(head, panel, format, g, unpacked[p], weights[p]);
            else unpack(panel + (size_t)g * payload_bytes, format, weights[p]);
            numbers[p] = load_numbers(panel, at, g, format);
        }
        for (int32_t i = 0; i < count; i++) {
            const em_group *group = groups[i] + g;
            const int8_t *x_group = values[i] + (size_t)g * EM_GROUP_COLUMNS;
            __m512i dots[PANELS_TOGETHER][2];
            for (int p = 0; p < panel_count; p++) {
                for (int half = 0; half < em_numbers(format).halves; half++) dots[p][half] = first_sums(group, half, format);
            }
            for (int quad = 0; quad < QUADS; quad++) {
                const __m512i x_quad = broadcast_quad(x_group + 4 * quad);
                for (int p = 0; p < panel_count; p++) {
                    dots[p][quad / quads] = _mm512_dpbusd_epi32(dots[p][quad / quads], weights[p][quad], x_quad);
                }
            }
            for (int p = 0; p < panel_count; p++) {
                float *sum = out + (size_t)i * out_stride + p * EM_PANEL_ROWS;
                _mm512_storeu_ps(sum, add_group(_mm512_loadu_ps(sum), dots[p], group, &numbers[p], format));
            }
        }
    }
}

/* Any number of activation rows times `panel_count` panels, one or two. */
INLINE void all_quantised_rows(const uint8_t *head, const uint8_t *panels, int panel_count, const em_activations *x,
                               const int32_t *rows, int32_t count, float *out, size_t out_stride, int format) {
    for (; count > 0; count -= ROWS_TOGETHER, rows += ROWS_TOGETHER, out += ROWS_TOGETHER * out_stride) {
        const int32_t now = count < ROWS_TOGETHER ? count : ROWS_TOGETHER;
        quantised_rows(head, panels, panel_count, x, rows, now, out, out_stride, format);
    }
}

INLINE void quantised_panels(const uint8_t *head, const uint8_t *panels, int32_t panel_count, const em_activations *x,
                             const int32_t *rows, int32_t count, float *out, size_t out_stride, int format) {
    const size_t panel_bytes = em_panel_bytes(format, x->columns);
    int32_t p = 0;
    if (count == 1) {
        for (; p < panel_count; p++) {
            if (em_is_trellis(format)) {
                trellis_row(head, panels + (size_t)p * panel_bytes, x, rows[0], out + (size_t)p * EM_PANEL_ROWS, format);
                continue;
            }
            quantised_row(panels + (size_t)p * panel_bytes, x, rows[0], out + (size_t)p * EM_PANEL_ROWS, format);
        }
        return;
    }
    for (; p + PANELS_TOGETHER <= panel_count; p += PANELS_TOGETHER) {
        all_quantised_rows(head, panels + (size_t)p * panel_bytes, PANELS_TOGETHER, x, rows, count,
                           out + (size_t)p * EM_PANEL_ROWS, out_stride, format);
    }
    if (p < panel_count) {
        all_quantised_rows(head, panels + (size_t)p * panel_bytes, 1, x, rows, count,
                           out + (size_t)p * EM_PANEL_ROWS, out_stride, format);
    }
}

/* 16 rows of one column of f32, f16 or bf16 weights. */
INLINE __m512 load_weights(const uint8_t *panel, size_t index, int format) {
    if (format == EM_F16) return load_halves(panel + 2 * index);
    if (format == EM_BF16) {
        const __m256i upper = _mm256_loadu_si256((const __m256i *)(const void *)(panel + 2 * index));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
    }
    return _mm512_loadu_ps(panel + 4 * index);
}

/* `count` activation rows, at most FLOAT_ROWS_TOGETHER, times one panel. */
INLINE void float_rows(const uint8_t *panel, const em_activations *x, const int32_t *rows, int count, float *out,
                       size_t out_stride, int format) {
    const float *inputs[FLOAT_ROWS_TOGETHER];
    __m512 sums[FLOAT_ROWS_TOGETHER];
    for (int t = 0; t < count; t++) {
        inputs[t] = x->floats + (size_t)rows[t] * x->columns;
        sums[t] = _mm512_setzero_ps();
    }
    for (int32_t column = 0; column < x->columns; column++) {
        if (count == 1) {
            const size_t column_bytes = format == EM_F32 ? 64 : 32;
            _mm_prefetch((const char *)panel + (size_t)column * column_bytes + FLOAT_BYTES_AHEAD, _MM_HINT_T0);
        }
        const __m512 weights = load_weights(panel, (size_t)column * EM_PANEL_ROWS, format);
        for (int t = 0; t < count; t++) sums[t] = _mm512_fmadd_ps(weights, _mm512_set1_ps(inputs[t][column]), sums[t]);
    }
    for (int t = 0; t < count; t++) _mm512_storeu_ps(out + t * out_stride, sums[t]);
}

/* The same with e4m3 weights, whose scales multiply the sums of whole groups. */
INLINE void e4m3_rows(const uint8_t *panel, const em_activations *x, const int32_t *rows, int count, float *out,
                      size_t out_stride, int format) {
    const em_format_numbers numbers = em_numbers(format);
    const uint8_t *scales = panel + em_sections_of(format, em_group_count(x->columns)).scales;
    const float *inputs[FLOAT_ROWS_TOGETHER];
    __m512 sums[FLOAT_ROWS_TOGETHER];
    for (int t = 0; t < count; t++) {
        inputs[t] = x->floats + (size_t)rows[t] * x->columns;
        sums[t] = _mm512_setzero_ps();
    }
    for (int32_t first = 0; first < x->columns; first += EM_GROUP_COLUMNS) {
        const int32_t end = x->columns - first < EM_GROUP_COLUMNS ? x->columns : first + EM_GROUP_COLUMNS;
        const size_t shared = (size_t)(first / EM_GROUP_COLUMNS >> numbers.scale_shift);
        __m512 partial[FLOAT_ROWS_TOGETHER];
        for (int t = 0; t < count; t++) partial[t] = _mm512_setzero_ps();
        for (int32_t column = first; column < end; column++) {
            const uint8_t *codes = panel + (size_t)column * EM_PANEL_ROWS;
            if (count == 1 && column % 4 == 0) __builtin_prefetch(codes + FLOAT_BYTES_AHEAD);
            const __m512 weights = load_e4m3(codes);
            for (int t = 0; t < count; t++) {
                partial[t] = _mm512_fmadd_ps(weights, _mm512_set1_ps(inputs[t][column]), partial[t]);
            }
        }
        const __m512 given = load_scales(scales + shared * em_scales_bytes(format), format);
        const __m512 scale = _mm512_mul_ps(given, _mm512_set1_ps(em_e4m3_unit(format)));
        for (int t = 0; t < count; t++) sums[t] = _mm512_fmadd_ps(partial[t], scale, sums[t]);
    }
    for (int t = 0; t < count; t++) _mm512_storeu_ps(out + t * out_stride, sums[t]);
}

INLINE void some_float_rows(const uint8_t *panel, const em_activations *x, const int32_t *rows, int count, float *out,
                            size_t out_stride, int format) {
    (format == EM_F8 || format == EM_M8 ? e4m3_rows : float_rows)(panel, x, rows, count, out, out_stride, format);
}

INLINE void float_panels(const uint8_t *head, const uint8_t *panels, int32_t panel_count, const em_activations *x,
                         const int32_t *rows, int32_t count, float *out, size_t out_stride, int format) {
    enum { STEP = FLOAT_ROWS_TOGETHER };
    (void)head;
    for (int32_t p = 0; p < panel_count; p++) {
        const uint8_t *panel = panels + (size_t)p * em_panel_bytes(format, x->columns);
        float *panel_out = out + (size_t)p * EM_PANEL_ROWS;
        int32_t i = 0;
        for (; i + STEP <= count; i += STEP) {
            some_float_rows(panel, x, rows + i, STEP, panel_out + (size_t)i * out_stride, out_stride, format);
        }
        for (; i < count; i++) {
            some_float_rows(panel, x, rows + i, 1, panel_out + (size_t)i * out_stride, out_stride, format);
        }
    }
}

#endif
