/* Panel products with 256-bit vectors; the same bits as matmul/generic.c. An including file says before what one group's
 * integer dots are, in two halves of four quads each (`weights` and `x` are those of the half):
 *
 *   static inline void unpack(const uint8_t *payload, int side, int format, int first, __m256i weights[QUADS_TOGETHER]);
 *   static inline __m256i begin_dots(const __m256i weights[QUADS_TOGETHER], const int8_t *x, const em_group *group,
 *                                    __m256i factors, int format);
 *   static inline __m256i end_dots(__m256i begun, const __m256i weights[QUADS_TOGETHER], const int8_t *x,
 *                                  const em_group *group, __m256i factors, int format);
 *
 * What a group has is end_dots's result. Of formats with half factors (em_has_half_factors), `factors` has those of both
 * halves for each row, as int16, and multiplies dots from which zero points have not been taken off. Where factors are
 * e4m3, begin_dots has the first half's dots, and end_dots those of the second half alone.
 *
 * A 32-byte vector of a quantised payload holds 8 rows x 4 columns, so a panel has two sides of 8 rows; the 4 activations
 * of those columns are broadcast to every row (vpbroadcastd from memory, a load port only).
 *
 * With one activation row the panel is read once, and prefetches run ahead of it.
 *
 * With several, loads are what is scarce: two a cycle, beside four vector instructions. So half a group of all 16 rows
 * stays in eight registers while up to ROWS_TOGETHER activation rows pass, each broadcast serves both sides, and what a
 * row has then (`begun`) waits in memory for the other half. Activations are copied before, group by group, for a call's
 * panels: read where they lie, 2048 bytes apart in a common width, they would all fall on the same few lines of the
 * first-level cache. Measured on Zen 3, 32 rows: 65 billion multiply-adds a second became 112. */
#ifndef EDGEMOE_VECTORS256_H
#define EDGEMOE_VECTORS256_H

#include "grid256.h"
#include "grid_row256.h"
#include "lookahead.h"
#include "trellis256.h"

enum {
    SIDE_ROWS = 8,
    ROWS_TOGETHER = 32,
    GROUPS_TOGETHER = 32, /* as many fit the second-level cache well, with their weights; 48 KiB of stack */
    SIDES = 2,
    FLOAT_ROWS_TOGETHER = 4,
    /* Prefetches go this many groups ahead: somewhat more than memory delivers to a core in the time of one miss. */
    GROUPS_AHEAD = 16,
    FLOAT_BYTES_AHEAD = 4096,
    TRELLIS_BYTES_AHEAD = 4096, /* of payloads */
};

INLINE __m256 load_halves(const uint8_t *at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
}

/* 16 bytes of e4m3 of which these are the first or the last 8, as floats divided by 256 (em_e4m3_half_bits). */
INLINE __m256 load_e4m3(const uint8_t *at) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)at);
    const __m128i words = _mm_srai_epi16(_mm_unpacklo_epi8(_mm_setzero_si128(), bytes), 1);
    return _mm256_cvtph_ps(_mm_and_si128(words, _mm_set1_epi16((short)0xbfff)));
}

INLINE __m256i load_bytes(const uint8_t *at) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)at));
}

/* The scales of 8 rows. */
INLINE __m256 load_scales(const uint8_t *at, int format) {
    if (em_numbers(format).scale == EM_SCALE_F16) return load_halves(at);
    if (em_numbers(format).scale == EM_SCALE_F32) return _mm256_loadu_ps((const float *)(const void *)at);
    const __m256i e = load_bytes(at); /* em_e8m0_half_bits */
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i below_normal = _mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(1)), 21);
    return _mm256_castsi256_ps(_mm256_max_epi32(normal, below_normal));
}

/* Bytes of both halves for 8 rows, those of a row beside each other, as int16. */
INLINE __m256i load_pairs(const uint8_t *at, int is_signed) {
    const __m128i first = _mm_loadl_epi64((const __m128i *)(const void *)at);
    const __m128i second = _mm_loadl_epi64((const __m128i *)(const void *)(at + EM_PANEL_ROWS));
    const __m128i pairs = _mm_unpacklo_epi8(first, second);
    return is_signed ? _mm256_cvtepi8_epi16(pairs) : _mm256_cvtepu8_epi16(pairs);
}

/* The numbers of 8 rows for one group. */
typedef struct row_numbers {
    __m256 scales[2], minimum; /* the second scale is that of the second half, where factors are e4m3 */
    __m256i factors, offsets;  /* of both halves (load_pairs) */
} row_numbers;

INLINE row_numbers load_numbers(const uint8_t *panel, em_sections at, int32_t g, int side, int format) {
    const em_format_numbers numbers = em_numbers(format);
    const size_t shared = (size_t)(g >> numbers.scale_shift), scales_bytes = em_scales_bytes(format);
    const size_t number = (size_t)g * numbers.halves * EM_PANEL_ROWS + (size_t)side * SIDE_ROWS;
    const uint8_t *factors = panel + at.factors + number, *offsets = panel + at.offsets + number;
    row_numbers rows;
    rows.factors = rows.offsets = _mm256_setzero_si256();
    if (em_is_trellis(format)) {
        rows.scales[0] = rows.scales[1] = rows.minimum = trellis_scale(panel, at, g, side, format);
        return rows;
    }
    if (numbers.grid != EM_GRID_NONE) {
        const __m256 of_grid = grid_scale(panel, at, g, side, format);
        if (numbers.halves == 2) rows.factors = grid_half_factors(panel, at, g, side, format);
        rows.scales[0] = numbers.halves == 2 ? of_grid : grid_times_factors(of_grid, panel, at, g, side, format);
        rows.scales[1] = rows.minimum = rows.scales[0];
        return rows;
    }
    const __m256 scale = load_scales(panel + at.scales + shared * scales_bytes + side * (scales_bytes / 2), format);
    rows.scales[0] = rows.scales[1] = rows.minimum = scale;
    if (numbers.has_minimums) rows.minimum = load_halves(panel + at.minimums + shared * 32 + (size_t)side * 16);
    if (numbers.factor == EM_FACTOR_NIBBLE) {
        const __m256i both = load_pairs(factors, 0);
        rows.factors = _mm256_and_si256(both, _mm256_set1_epi16(15));
        rows.offsets = _mm256_srli_epi16(both, 4);
    } else if (em_has_half_factors(format)) {
        rows.factors = load_pairs(factors, 1);
    } else if (numbers.factor == EM_FACTOR_E4M3) {
        for (int half = 0; half < 2; half++) {
            const __m256 factor = _mm256_mul_ps(load_e4m3(factors + half * EM_PANEL_ROWS), _mm256_set1_ps(EM_E4M3_HALVED));
            rows.scales[half] = _mm256_mul_ps(scale, factor);
        }
    } else if (numbers.factor == EM_FACTOR_INT8) {
        const __m256i factor = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)factors));
        rows.scales[0] = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(factor));
    }
    if (numbers.has_offsets && numbers.halves == 1) {
        rows.minimum = _mm256_mul_ps(rows.minimum, _mm256_cvtepi32_ps(load_bytes(offsets)));
    }
    return rows;
}

/* The share of a group in formats with half factors. */
INLINE __m256 add_halves(__m256 sum, __m256i dots, const em_group *group, const row_numbers *rows, int format) {
    const em_format_numbers numbers = em_numbers(format);
    const __m256 scale = _mm256_set1_ps(group->scale);
    int32_t both;
    memcpy(&both, group->half_sums, sizeof both);
    const __m256i half_sums = _mm256_set1_epi32(both);
    const int32_t zero = em_unsigned_zero(format);
    if (zero) {
        const __m256i times = _mm256_set1_epi16((int16_t)zero); /* at most 32 * 128 */
        const __m256i zeros = _mm256_madd_epi16(_mm256_mullo_epi16(rows->factors, times), half_sums);
        dots = _mm256_sub_epi32(dots, zeros);
    }
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_mul_ps(rows->scales[0], scale), sum);
    if (!numbers.has_offsets) return sum;
    const __m256 offset = _mm256_cvtepi32_ps(_mm256_madd_epi16(rows->offsets, half_sums));
    return _mm256_fnmadd_ps(offset, _mm256_mul_ps(rows->minimum, scale), sum);
}

/* `sum` and the share of one group. */
INLINE __m256 add_group(__m256 sum, __m256i begun, __m256i dots, const em_group *group, const row_numbers *rows, int format) {
    const em_format_numbers numbers = em_numbers(format);
    if (em_has_half_factors(format)) return add_halves(sum, dots, group, rows, format);
    const __m256 scale = _mm256_set1_ps(group->scale);
    const int last = numbers.halves - 1;
    if (last) sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(begun), _mm256_mul_ps(rows->scales[0], scale), sum);
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_mul_ps(rows->scales[last], scale), sum);
    const __m256 scaled_sum = _mm256_set1_ps(group->scaled_sum);
    if (numbers.has_offsets) return _mm256_fnmadd_ps(rows->minimum, scaled_sum, sum);
    return numbers.has_minimums ? _mm256_fmadd_ps(rows->minimum, scaled_sum, sum) : sum;
}

INLINE void quantised_row(const uint8_t *panel, const em_activations *x, int32_t row, float *out, int format) {
    const size_t payload_bytes = em_payload_bytes(format), panel_bytes = em_panel_bytes(format, x->columns);
    const int32_t group_count = x->group_count;
    const em_sections at = em_sections_of(format, group_count);
    const em_group *group = x->groups + (size_t)row * group_count;
    const int8_t *values = x->values + (size_t)row * group_count * EM_GROUP_COLUMNS;
    em_lookahead next = em_look_ahead(panel, group_count, 0, group_count, format, panel_bytes, GROUPS_AHEAD);
    __m256 sums[SIDES] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int32_t g = 0; g < group_count; g++, group++, values += EM_GROUP_COLUMNS) {
        em_prefetch_group(&next, format);
        for (int side = 0; side < SIDES; side++) {
            const uint8_t *payload = panel + (size_t)g * payload_bytes;
            const row_numbers numbers = load_numbers(panel, at, g, side, format);
            __m256i weights[QUADS_TOGETHER];
            unpack(payload, side, format, 0, weights);
            const __m256i begun = begin_dots(weights, values, group, numbers.factors, format);
            unpack(payload, side, format, QUADS_TOGETHER, weights);
            const __m256i dots = end_dots(begun, weights, values + EM_HALF_COLUMNS, group, numbers.factors, format);
            sums[side] = add_group(sums[side], begun, dots, group, &numbers, format);
        }
    }
    for (int side = 0; side < SIDES; side++) _mm256_storeu_ps(out + side * SIDE_ROWS, sums[side]);
}

/* The share of group i of a payload with a trellis in the sums of one side. */
INLINE __m256 trellis_group(__m256 sum, trellis_side *payload, const trellis_tables *tables, int i, const int8_t *x,
                            const em_group *group, __m256 scale, int format) {
    const row_numbers numbers = {.scales = {scale, scale}, .factors = _mm256_setzero_si256()};
    __m256i weights[QUADS_TOGETHER];
    trellis_quads(payload, tables, format, i * QUADS, weights);
    const __m256i begun = begin_dots(weights, x, group, numbers.factors, format);
    trellis_quads(payload, tables, format, i * QUADS + QUADS_TOGETHER, weights);
    const __m256i dots = end_dots(begun, weights, x + EM_HALF_COLUMNS, group, numbers.factors, format);
    return add_group(sum, begun, dots, group, &numbers, format);
}

/* The same with a trellis. A payload's groups follow one another while its planes are at hand, and numbers of groups that
 * share a scale are put together before. Scales are prefetched a panel ahead. */
INLINE void trellis_row(const uint8_t *head, const uint8_t *panel, const em_activations *x, int32_t row, float *out,
                        int format) {
    const int has_factors = em_numbers(format).factor != EM_FACTOR_NONE, each = em_trellis_weights(format);
    const size_t payload_bytes = em_payload_bytes(format), panel_bytes = em_panel_bytes(format, x->columns);
    const em_sections at = em_sections_of(format, x->group_count);
    const em_group *groups = x->groups + (size_t)row * x->group_count;
    const int8_t *values = x->values + (size_t)row * x->group_count * EM_GROUP_COLUMNS;
    const uint8_t *payload = panel, *before = em_trellis_zeros;
    const trellis_tables tables = trellis_load_tables(head, format);
    __m256 sums[SIDES] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, scales[SIDES][EM_TRELLIS_SHARE];
    for (int32_t first = 0; first < x->group_count; first += EM_TRELLIS_SHARE) {
        const int32_t left = x->group_count - first, count = left < EM_TRELLIS_SHARE ? left : EM_TRELLIS_SHARE;
        if (has_factors) {
            const uint8_t *ahead = panel + panel_bytes + at.scales + (size_t)(first / EM_TRELLIS_SHARE) * em_scales_bytes(format);
            __builtin_prefetch(ahead);
            __builtin_prefetch(ahead + EM_LINE_BYTES);
        }
        for (int side = 0; side < SIDES && (has_factors || first == 0); side++) {
            trellis_scales(panel, at, first, side, format, scales[side]);
        }
        for (int32_t g = 0; g < count; g += each) {
            for (size_t line = 0; line < payload_bytes; line += EM_LINE_BYTES) {
                __builtin_prefetch(payload + TRELLIS_BYTES_AHEAD + line);
            }
            for (int side = 0; side < SIDES; side++) {
                trellis_side of_side;
                trellis_begin(&of_side, payload, before, format, side);
                EM_UNROLLED for (int i = 0; i < each; i++) {
                    if (g + i >= count) break;
                    sums[side] = trellis_group(sums[side], &of_side, &tables, i, values + (g + i) * EM_GROUP_COLUMNS,
                                               groups + g + i, scales[side][has_factors ? g + i : 0], format);
                }
            }
            before = payload + payload_bytes - EM_LINE_BYTES;
            payload += payload_bytes;
        }
        groups += EM_TRELLIS_SHARE;
        values += EM_TRELLIS_SHARE * EM_GROUP_COLUMNS;
    }
    for (int side = 0; side < SIDES; side++) _mm256_storeu_ps(out + side * SIDE_ROWS, sums[side]);
}

/* Some groups of some activation rows: row i of group g is number g * count + i. */
typedef struct packed_rows {
    int8_t values[GROUPS_TOGETHER * ROWS_TOGETHER * EM_GROUP_COLUMNS];
    em_group groups[GROUPS_TOGETHER * ROWS_TOGETHER];
} packed_rows;

INLINE void pack(packed_rows *packed, const em_activations *x, const int32_t *rows, int32_t count, int32_t first,
                 int32_t groups) {
    for (int32_t i = 0; i < count; i++) {
        const size_t from = (size_t)rows[i] * x->group_count + first;
        for (int32_t g = 0; g < groups; g++) {
            const size_t to = (size_t)g * count + i;
            memcpy(packed->values + to * EM_GROUP_COLUMNS, x->values + (from + g) * EM_GROUP_COLUMNS, EM_GROUP_COLUMNS);
            packed->groups[to] = x->groups[from + g];
        }
    }
}

/* Adds the products of `count` packed rows with `groups` groups of a panel, from group `first` on. */
INLINE void add_packed_rows(const uint8_t *head, const uint8_t *panel, int32_t columns, const packed_rows *packed,
                            int32_t count, int32_t first, int32_t groups, float *out, size_t out_stride, int format) {
    uint8_t unpacked[GROUPS_TOGETHER * TRELLIS_GROUP_BYTES]; /* of a trellis */
    if (em_is_trellis(format)) {
        const trellis_tables tables = trellis_load_tables(head, format);
        trellis_unpack(&tables, panel, format, first, groups, unpacked);
    }
    const size_t panel_bytes = em_panel_bytes(format, columns);
    const int32_t group_count = em_group_count(columns);
    em_lookahead next = em_look_ahead(panel, group_count, first, groups, format, panel_bytes, GROUPS_AHEAD);
    __m256 sums[ROWS_TOGETHER][SIDES];
    __m256i begun[ROWS_TOGETHER][SIDES];
    for (int32_t i = 0; i < count; i++) {
        for (int side = 0; side < SIDES; side++) {
            const float *sum = out + (size_t)i * out_stride + side * SIDE_ROWS;
            sums[i][side] = first ? _mm256_loadu_ps(sum) : _mm256_setzero_ps();
        }
    }
    const em_sections at = em_sections_of(format, group_count);
    const size_t payload_bytes = em_payload_bytes(format);
    const int8_t *values = packed->values;
    const em_group *group = packed->groups;
    for (int32_t g = first; g < first + groups; g++, values += count * EM_GROUP_COLUMNS, group += count) {
        em_prefetch_group(&next, format);
        const uint8_t *payload = em_is_trellis(format) ? unpacked + (size_t)(g - first) * TRELLIS_GROUP_BYTES
                                                       : panel + (size_t)g * payload_bytes;
        __m256i weights[SIDES][QUADS_TOGETHER];
        row_numbers numbers[SIDES];
        for (int side = 0; side < SIDES; side++) {
            unpack(payload, side, format, 0, weights[side]);
            numbers[side] = load_numbers(panel, at, g, side, format);
        }
        for (int32_t i = 0; i < count; i++) {
            for (int side = 0; side < SIDES; side++) {
                begun[i][side] = begin_dots(weights[side], values + i * EM_GROUP_COLUMNS, group + i, numbers[side].factors,
                                            format);
            }
        }
        for (int side = 0; side < SIDES; side++) {
            unpack(payload, side, format, QUADS_TOGETHER, weights[side]);
        }
        for (int32_t i = 0; i < count; i++) {
            const int8_t *x = values + i * EM_GROUP_COLUMNS + EM_HALF_COLUMNS;
            for (int side = 0; side < SIDES; side++) {
                const __m256i factors = numbers[side].factors;
                const __m256i dots = end_dots(begun[i][side], weights[side], x, group + i, factors, format);
                sums[i][side] = add_group(sums[i][side], begun[i][side], dots, group + i, &numbers[side], format);
            }
        }
    }
    for (int32_t i = 0; i < count; i++) {
        for (int side = 0; side < SIDES; side++) {
            _mm256_storeu_ps(out + (size_t)i * out_stride + side * SIDE_ROWS, sums[i][side]);
        }
    }
}

INLINE void quantised_panels(const em_matrix *matrix, int32_t first_panel, int32_t panel_count, const em_activations *x,
                             const int32_t *rows, int32_t count, float *out, size_t out_stride, int format) {
    if (count == 1) {
        for (int32_t p = 0; p < panel_count; p++) {
            const uint8_t *panel = em_panel(matrix, first_panel + p, format);
            float *products = out + p * EM_PANEL_ROWS;
            if (em_is_trellis(format)) trellis_row(matrix->data, panel, x, rows[0], products, format);
            else if (em_numbers(format).grid != EM_GRID_NONE) grid_row(panel, x, rows[0], products, format);
            else quantised_row(panel, x, rows[0], products, format);
        }
        return;
    }
    packed_rows packed;
    for (; count > 0; count -= ROWS_TOGETHER, rows += ROWS_TOGETHER, out += ROWS_TOGETHER * out_stride) {
        const int32_t now = count < ROWS_TOGETHER ? count : ROWS_TOGETHER;
        for (int32_t first = 0; first < x->group_count; first += GROUPS_TOGETHER) {
            const int32_t left = x->group_count - first, groups = left < GROUPS_TOGETHER ? left : GROUPS_TOGETHER;
            pack(&packed, x, rows, now, first, groups);
            for (int32_t p = 0; p < panel_count; p++) {
                add_packed_rows(matrix->data, em_panel(matrix, first_panel + p, format), x->columns, &packed, now, first,
                                groups, out + p * EM_PANEL_ROWS, out_stride, format);
            }
        }
    }
}

/* 8 rows of one column of f32, f16 or bf16 weights. */
INLINE __m256 load_weights(const uint8_t *panel, size_t index, int format) {
    if (format == EM_F16) return load_halves(panel + 2 * index);
    if (format == EM_BF16) {
        const __m128i upper = _mm_loadu_si128((const __m128i *)(const void *)(panel + 2 * index));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(upper), 16));
    }
    return _mm256_loadu_ps((const float *)(const void *)panel + index);
}

/* `count` activation rows, at most FLOAT_ROWS_TOGETHER, times one panel. */
INLINE void float_rows(const uint8_t *panel, const em_activations *x, const int32_t *rows, int count, float *out,
                       size_t out_stride, int format) {
    const float *inputs[FLOAT_ROWS_TOGETHER];
    __m256 low[FLOAT_ROWS_TOGETHER], high[FLOAT_ROWS_TOGETHER];
    for (int t = 0; t < count; t++) {
        inputs[t] = x->floats + (size_t)rows[t] * x->columns;
        low[t] = high[t] = _mm256_setzero_ps();
    }
    for (int32_t column = 0; column < x->columns; column++) {
        const size_t index = (size_t)column * EM_PANEL_ROWS;
        if (count == 1) {
            _mm_prefetch((const char *)panel + index * (format == EM_F32 ? 4 : 2) + FLOAT_BYTES_AHEAD, _MM_HINT_T0);
        }
        const __m256 low_weights = load_weights(panel, index, format);
        const __m256 high_weights = load_weights(panel, index + SIDE_ROWS, format);
        for (int t = 0; t < count; t++) {
            const __m256 value = _mm256_set1_ps(inputs[t][column]);
            low[t] = _mm256_fmadd_ps(low_weights, value, low[t]);
            high[t] = _mm256_fmadd_ps(high_weights, value, high[t]);
        }
    }
    for (int t = 0; t < count; t++) {
        _mm256_storeu_ps(out + t * out_stride, low[t]);
        _mm256_storeu_ps(out + t * out_stride + SIDE_ROWS, high[t]);
    }
}

/* A group of e4m3 weights as floats divided by 256: column beside column. */
INLINE void decode_e4m3(const uint8_t *codes, int32_t columns, float *weights) {
    for (int32_t at = 0; at < columns * EM_PANEL_ROWS; at += SIDE_ROWS) _mm256_storeu_ps(weights + at, load_e4m3(codes + at));
}

/* Adds to `out` what one group, whose scales are `scales`, has for `count` activation rows, at most FLOAT_ROWS_TOGETHER.
 * The weights are codes or, where `decoded` is not NULL, those. */
INLINE void add_e4m3_group(const uint8_t *codes, const float *decoded, const __m256 scales[SIDES], const em_activations *x,
                           int32_t first, int32_t columns, const int32_t *rows, int count, float *out, size_t out_stride) {
    const float *inputs[FLOAT_ROWS_TOGETHER];
    __m256 partial[FLOAT_ROWS_TOGETHER][SIDES];
    for (int t = 0; t < count; t++) {
        inputs[t] = x->floats + (size_t)rows[t] * x->columns + first;
        partial[t][0] = partial[t][1] = _mm256_setzero_ps();
    }
    for (int32_t column = 0; column < columns; column++) {
        const size_t at = (size_t)column * EM_PANEL_ROWS;
        const __m256 low = decoded ? _mm256_loadu_ps(decoded + at) : load_e4m3(codes + at);
        const __m256 high = decoded ? _mm256_loadu_ps(decoded + at + SIDE_ROWS) : load_e4m3(codes + at + SIDE_ROWS);
        for (int t = 0; t < count; t++) {
            const __m256 input = _mm256_set1_ps(inputs[t][column]);
            partial[t][0] = _mm256_fmadd_ps(low, input, partial[t][0]);
            partial[t][1] = _mm256_fmadd_ps(high, input, partial[t][1]);
        }
    }
    for (int t = 0; t < count; t++) {
        for (int side = 0; side < SIDES; side++) {
            float *sum = out + (size_t)t * out_stride + side * SIDE_ROWS;
            _mm256_storeu_ps(sum, _mm256_fmadd_ps(partial[t][side], scales[side], _mm256_loadu_ps(sum)));
        }
    }
}

/* Any number of activation rows times one panel of e4m3 weights, whose scales multiply the sums of whole groups. */
INLINE void e4m3_panel(const uint8_t *panel, const em_activations *x, const int32_t *rows, int32_t count, float *out,
                       size_t out_stride, int format) {
    enum { STEP = FLOAT_ROWS_TOGETHER };
    const size_t scales_bytes = em_scales_bytes(format);
    const uint8_t *scale_section = panel + em_sections_of(format, em_group_count(x->columns)).scales;
    for (int32_t i = 0; i < count; i++) memset(out + (size_t)i * out_stride, 0, EM_PANEL_ROWS * sizeof *out);
    for (int32_t first = 0; first < x->columns; first += EM_GROUP_COLUMNS) {
        const int32_t columns = x->columns - first < EM_GROUP_COLUMNS ? x->columns - first : EM_GROUP_COLUMNS;
        const size_t shared = (size_t)(first / EM_GROUP_COLUMNS >> em_numbers(format).scale_shift);
        const uint8_t *codes = panel + (size_t)first * EM_PANEL_ROWS, *at = scale_section + shared * scales_bytes;
        __m256 scales[SIDES];
        for (int side = 0; side < SIDES; side++) {
            const __m256 scale = load_scales(at + side * (scales_bytes / 2), format);
            scales[side] = _mm256_mul_ps(scale, _mm256_set1_ps(em_e4m3_unit(format)));
        }
        if (count == 1) {
            for (int32_t line = 0; line < columns * EM_PANEL_ROWS; line += EM_LINE_BYTES) {
                __builtin_prefetch(codes + line + FLOAT_BYTES_AHEAD);
            }
            add_e4m3_group(codes, NULL, scales, x, first, columns, rows, 1, out, out_stride);
            continue;
        }
        float decoded[EM_GROUP_COLUMNS * EM_PANEL_ROWS];
        decode_e4m3(codes, columns, decoded);
        int32_t i = 0;
        for (; i + STEP <= count; i += STEP) {
            float *to = out + (size_t)i * out_stride;
            add_e4m3_group(codes, decoded, scales, x, first, columns, rows + i, STEP, to, out_stride);
        }
        for (; i < count; i++) {
            add_e4m3_group(codes, decoded, scales, x, first, columns, rows + i, 1, out + (size_t)i * out_stride, out_stride);
        }
    }
}

INLINE void float_panel(const uint8_t *panel, const em_activations *x, const int32_t *rows, int32_t count, float *out,
                        size_t out_stride, int format) {
    enum { STEP = FLOAT_ROWS_TOGETHER };
    for (; count >= STEP; count -= STEP, rows += STEP, out += STEP * out_stride) {
        float_rows(panel, x, rows, STEP, out, out_stride, format);
    }
    for (; count > 0; count--, rows++, out += out_stride) float_rows(panel, x, rows, 1, out, out_stride, format);
}

INLINE void float_panels(const em_matrix *matrix, int32_t first, int32_t panel_count, const em_activations *x,
                         const int32_t *rows, int32_t count, float *out, size_t out_stride, int format) {
    for (int32_t p = 0; p < panel_count; p++, out += EM_PANEL_ROWS) {
        const uint8_t *panel = em_panel(matrix, first + p, format);
        (em_scales_bytes(format) ? e4m3_panel : float_panel)(panel, x, rows, count, out, out_stride, format);
    }
}

#define DEFINE_PANELS(isa, NAME, name, products)                                                          \
    void em_panels_##name##_##isa(const em_matrix *matrix, int32_t first, int32_t panel_count,           \
                                  const em_activations *x, const int32_t *rows, int32_t count, float *out, \
                                  size_t out_stride) {                                                    \
        products(matrix, first, panel_count, x, rows, count, out, out_stride, EM_##NAME);                 \
    }

#endif
