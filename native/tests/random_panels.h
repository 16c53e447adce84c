/* Panels of random numbers, and what the weights in them are, one at a time. */
#ifndef EDGEMOE_RANDOM_PANELS_H
#define EDGEMOE_RANDOM_PANELS_H

#include <math.h>
#include <string.h>

#include "check.h"
#include "kernels/half.h"
#include "kernels/kernels.h"
#include "kernels/matmul/grid.h"
#include "kernels/matmul/trellis.h"

static float half_at(const uint8_t *section, size_t index) {
    uint16_t half;
    memcpy(&half, section + 2 * index, sizeof half);
    return em_half_to_float(half);
}

static void put_half(uint8_t *to, float value) {
    const uint16_t half = em_float_to_half(value);
    memcpy(to, &half, sizeof half);
}

/* A panel of random payload, factors and offsets, its scales and minimums moderate numbers. */
static uint8_t *random_panel(int32_t format, int32_t columns) {
    const em_format_numbers numbers = em_numbers(format);
    const int32_t groups = em_group_count(columns);
    const em_sections at = em_sections_of(format, groups);
    const size_t bytes = em_panel_bytes(format, columns), scales = (size_t)em_scale_count(format, groups) * EM_PANEL_ROWS;
    uint8_t *panel = allocate(bytes);
    for (size_t i = 0; i < bytes; i++) panel[i] = (uint8_t)random_bits();
    for (size_t i = 0; numbers.floating && i < at.scales / (numbers.bits / 8); i++) {
        if (numbers.bits == 32) ((float *)(void *)panel)[i] = random_float();
        const float size = i % 17 == 3 ? 0x1p-20f : 1;
        if (format == EM_F16) put_half(panel + 2 * i, random_float() * size);
        if (format == EM_BF16) {
            const uint16_t upper = (uint16_t)(em_to_bits(random_float() * size) >> 16);
            memcpy(panel + 2 * i, &upper, sizeof upper);
        }
        if (numbers.bits == 8 && (panel[i] & 127) == 127) panel[i] = 0; /* a NaN */
    }
    const size_t scales_bytes = em_scales_bytes(format);
    for (size_t i = 0; i < scales && numbers.scale != EM_SCALE_NONE; i++) {
        const float size = i % 17 == 3 ? 0x1p-20f : 1; /* some are subnormal */
        const float scale = random_float() * size;
        if (numbers.scale == EM_SCALE_F16) put_half(panel + at.scales + i / 16 * scales_bytes + i % 16 * 2, scale);
        if (numbers.scale == EM_SCALE_F32) memcpy(panel + at.scales + 4 * i, &scale, sizeof scale);
        /* Scales about 1, and the two below float32's normal numbers. */
        if (numbers.scale == EM_SCALE_E8M0) panel[at.scales + i] = (uint8_t)(i % 17 == 3 ? i % 2 : 100 + random_bits() % 56);
        for (size_t w = 0; numbers.scale == EM_SCALE_WORDS && w < 4; w++) { /* 4 bits of it above 12 others */
            uint8_t *top = panel + at.scales + i / EM_PANEL_ROWS * 128 + w * 32 + i % EM_PANEL_ROWS * 2 + 1;
            *top = (uint8_t)((*top & 15) | (em_float_to_half(scale) >> 4 * w & 15) << 4);
        }
        if (numbers.has_minimums) put_half(panel + at.minimums + 2 * i, random_float() * size);
    }
    for (size_t i = at.factors; numbers.factor == EM_FACTOR_E4M3 && i < at.offsets; i++) {
        if ((panel[i] & 127) == 127) panel[i] = 0;
    }
    if (format == EM_Q8) memset(panel, 0x80, 64); /* -128 is the one whose magnitude is no int8 */
    return panel;
}

static double e4m3_at(uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double size = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
    return code & 128 ? -size : size;
}

/* The value of a code by the table in formats.py. */
static double value_of(int code, int32_t format) {
    static const double sizes[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    static const int iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    switch (format) {
    case EM_Q8: return (int8_t)code;
    case EM_Q8M: return code ^ 128;
    case EM_F8:
    case EM_M8: return e4m3_at((uint8_t)code);
    case EM_M4:
    case EM_NV4: return code & 8 ? -sizes[code & 7] : sizes[code & 7];
    case EM_IQ4NL:
    case EM_IQ4XS: return iq4[code];
    case EM_Q1: return code ? 1 : -1;
    case EM_Q4: return code - 8;
    case EM_Q5: return code - 16;
    case EM_Q3K: return code - 4;
    case EM_Q6K: return code - 32;
    case EM_TQ2:
    case EM_Q2: return code - 1;
    default: return code;
    }
}

/* Tables whose sums lie within -31 to 31, their ends among them. */
static void random_tables(uint8_t *head, int32_t format) {
    for (size_t i = 0; i < em_head_bytes(format); i++) head[i] = (uint8_t)(random_bits() % 31 - 15);
    for (size_t i = 0; i < em_head_bytes(format); i += EM_TRELLIS_TABLE) head[i] = 15, head[i + 1] = (uint8_t)-15;
    for (size_t i = 0; i < em_head_bytes(format); i += 2 * EM_TRELLIS_TABLE) head[i] = 16, head[i + 1] = (uint8_t)-16;
}

/* The last `bits` bits of a chain's stream after step `step` of its row, one after another from the first. */
static int stream_at(const uint8_t *panel, int32_t format, int64_t step, int chain, int bits) {
    const int each = em_numbers(format).bits;
    int found = 0;
    for (int64_t bit = (step + 1) * each - bits; bit < (step + 1) * each; bit++) {
        found <<= 1;
        if (bit >= 0) found |= panel[bit / 8 * EM_LINE_BYTES + chain] >> (7 - bit % 8) & 1;
    }
    return found;
}

/* A value by the drawing in trellis.py. */
static double trellis_value(const uint8_t *head, const uint8_t *panel, int32_t format, int32_t row, int32_t column) {
    const int weights = 1 << em_numbers(format).block_shift, chain = row * 4 + column % 4;
    const int64_t step = column / 4 / weights;
    const int last = stream_at(panel, format, step, chain, 4);
    const int before = stream_at(panel, format, step - em_numbers(format).lag, chain, 4);
    const int8_t *tables = (const int8_t *)head + column / 4 % weights * 32;
    return tables[last ^ before] + tables[16 + before];
}

/* A weight by the drawing in formats.py. */
static double weight_at(const uint8_t *head, const uint8_t *panel, int32_t format, int32_t columns, int32_t row, int32_t column) {
    static const int planes[9][2] = {[1] = {1}, [2] = {2}, [3] = {2, 1}, [4] = {4}, [5] = {4, 1}, [6] = {4, 2}, [8] = {8}};
    const em_format_numbers numbers = em_numbers(format);
    const size_t groups = em_group_count(columns), g = column / 32, c = column % 32, r = row;
    if (format == EM_F32) return ((const float *)(const void *)panel)[(size_t)column * 16 + r];
    if (format == EM_F16) return half_at(panel, (size_t)column * 16 + r);
    if (format == EM_BF16) {
        uint16_t upper;
        memcpy(&upper, panel + 2 * ((size_t)column * 16 + r), sizeof upper);
        return em_from_bits((uint32_t)upper << 16);
    }
    if (numbers.grid != EM_GRID_NONE) { /* tests/kernels/test_products.py holds them to another decoder */
        const em_sections at = em_sections_of(format, (int32_t)groups);
        const int factor = em_grid_factor(panel, at, format, (int32_t)g, (int)(c * numbers.halves / 32), row);
        return em_grid_value(panel + g * em_payload_bytes(format), format, row, (int)c) * factor *
               (double)em_grid_scale(panel, at, format, (int32_t)g, row);
    }
    if (em_is_trellis(format)) {
        const size_t payloads = (size_t)(columns + (32 << numbers.block_shift) - 1) / (size_t)(32 << numbers.block_shift);
        const uint8_t *scales = panel + payloads * numbers.bits * 64;
        const double value = trellis_value(head, panel, format, row, column);
        if (numbers.factor == EM_FACTOR_NONE) return half_at(scales, r) * value;
        scales += (size_t)column / 256 * 96;
        return half_at(scales, r) * ((scales[32 + g % 8 / 2 * 16 + r] >> g % 2 * 4 & 15) + 1) * value;
    }
    int code = numbers.floating ? panel[(size_t)column * 16 + r] : 0;
    if (!numbers.floating) {
        const uint8_t *plane = panel + g * 64 * numbers.bits;
        int low = 0;
        for (int p = 0; p < 2 && planes[numbers.bits][p]; p++) {
            const int bits = planes[numbers.bits][p], span = 4 * bits; /* columns before a field begins anew */
            code |= (plane[c % span / 4 * 64 + r * 4 + c % 4] >> (c / span * bits) & ((1 << bits) - 1)) << low;
            plane += bits * 64;
            low += bits;
        }
    }
    const size_t share = (size_t)1 << numbers.scale_shift, scales = (groups + share - 1) / share, n = g / share * 16 + r;
    const uint8_t *at = panel + groups * 64 * numbers.bits;
    double scale;
    float single;
    switch (numbers.scale) {
    case EM_SCALE_F16: scale = half_at(at, n), at += scales * 32; break;
    case EM_SCALE_E8M0: scale = ldexp(1, at[n] - 127), at += scales * 16; break;
    default: memcpy(&single, at + 4 * n, sizeof single), scale = single, at += scales * 64;
    }
    double minimum = scale;
    if (numbers.has_minimums) minimum = half_at(at, n), at += scales * 32;
    const size_t own = (g * numbers.halves + c * numbers.halves / 32) * 16 + r;
    double factor = 1, offset = numbers.has_minimums ? -1 : 0;
    if (numbers.factor == EM_FACTOR_INT8) factor = (int8_t)at[own];
    if (numbers.factor == EM_FACTOR_E4M3) factor = e4m3_at(at[own]);
    if (numbers.factor == EM_FACTOR_NIBBLE) factor = at[own] & 15, offset = at[own] >> 4;
    if (numbers.factor != EM_FACTOR_NONE) at += groups * numbers.halves * 16;
    if (numbers.has_offsets && numbers.factor != EM_FACTOR_NIBBLE) offset = at[own];
    return scale * factor * value_of(code, format) - minimum * offset;
}

/* What of a weight's size its parts have beyond it: minimums and offsets count apart. */
static double apart_at(const uint8_t *panel, int32_t format, int32_t columns, int32_t row, int32_t column) {
    const em_format_numbers numbers = em_numbers(format);
    if (!numbers.has_minimums && !numbers.has_offsets) return 0;
    const em_sections at = em_sections_of(format, em_group_count(columns));
    const size_t n = (size_t)(column / 32 >> numbers.scale_shift) * 16 + (size_t)row;
    const double scale = half_at(panel + at.scales, n), minimum = numbers.has_minimums ? half_at(panel + at.minimums, n) : scale;
    return 255 * (fabs(scale) * (numbers.factor == EM_FACTOR_INT8 ? 128 : 1) + fabs(minimum));
}

#endif
