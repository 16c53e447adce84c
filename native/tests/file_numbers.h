/* Rows of files number by number, in the words of ggml's layouts, and panels as they are drawn in edgemoe/kernels/formats.py:
 * what landing has to do, one element at a time. */
#ifndef EDGEMOE_FILE_NUMBERS_H
#define EDGEMOE_FILE_NUMBERS_H

#include <string.h>

#include "check.h"
#include "kernels/half.h"
#include "kernels/kernels.h"
#include "src/landing_grid.h"

typedef struct kind {
    int32_t type, format, block_columns, block_bytes;
    int32_t scale, minimum; /* where they stand in a block; -1: nowhere */
} kind;

static const kind kinds[] = {
    {EM_ROWS_F32, EM_F32, 1, 4, -1, -1},         {EM_ROWS_F16, EM_F16, 1, 2, -1, -1},
    {EM_ROWS_BF16, EM_BF16, 1, 2, -1, -1},
    {EM_ROWS_Q8_0, EM_Q8, 32, 34, 0, -1},        {EM_ROWS_Q4_0, EM_Q4, 32, 18, 0, -1},
    {EM_ROWS_Q4_1, EM_Q4M, 32, 20, 0, 2},        {EM_ROWS_MXFP4, EM_M4, 32, 17, -1, -1},
    {EM_ROWS_Q5_0, EM_Q5, 32, 22, 0, -1},        {EM_ROWS_Q5_1, EM_Q5M, 32, 24, 0, 2},
    {EM_ROWS_Q2_K, EM_Q2K, 256, 84, 80, 82},     {EM_ROWS_Q3_K, EM_Q3K, 256, 110, 108, -1},
    {EM_ROWS_Q4_K, EM_Q4K, 256, 144, 0, 2},      {EM_ROWS_Q5_K, EM_Q5K, 256, 176, 0, 2},
    {EM_ROWS_Q6_K, EM_Q6K, 256, 210, 208, -1},   {EM_ROWS_IQ4_NL, EM_IQ4NL, 32, 18, 0, -1},
    {EM_ROWS_IQ4_XS, EM_IQ4XS, 256, 136, 0, -1}, {EM_ROWS_NVFP4, EM_NV4, 64, 36, -1, -1},
    {EM_ROWS_TQ1_0, EM_TQ2, 256, 54, 52, -1},    {EM_ROWS_TQ2_0, EM_TQ2, 256, 66, 64, -1},
    {EM_ROWS_Q2_0, EM_Q2, 64, 18, 0, -1},        {EM_ROWS_Q1_0, EM_Q1, 128, 18, 0, -1},
    {EM_ROWS_IQ2_XXS, EM_IQ2XXS, 256, 66, 0, -1}, {EM_ROWS_IQ2_XS, EM_IQ2XS, 256, 74, 0, -1},
    {EM_ROWS_IQ2_S, EM_IQ2S, 256, 82, 0, -1},     {EM_ROWS_IQ3_XXS, EM_IQ3XXS, 256, 98, 0, -1},
    {EM_ROWS_IQ3_S, EM_IQ3S, 256, 110, 0, -1},    {EM_ROWS_IQ1_S, EM_IQ1S, 256, 50, 0, -1},
    {EM_ROWS_IQ1_M, EM_IQ1M, 256, 56, 54, -1}, /* bit 14 of its scale is that of the word there */
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static int64_t row_bytes(const kind *k, int32_t columns) { return (int64_t)columns / k->block_columns * k->block_bytes; }

/* Makes the numbers of a block of a file finite: bytes of random bits may be any. */
static void make_finite(const kind *k, uint8_t *block) {
    if (k->type == EM_ROWS_F32) block[3] &= 0xBF;
    if (k->type == EM_ROWS_BF16 || k->type == EM_ROWS_F16) block[1] &= 0xBF;
    if (k->type == EM_ROWS_MXFP4) block[0] &= 0xBF;
    if (k->scale >= 0) block[k->scale + 1] &= 0xBF;
    if (k->minimum >= 0) block[k->minimum + 1] &= 0xBF;
    for (int i = 0; i < 4 && k->type == EM_ROWS_NVFP4; i++) block[i] &= 0x77;
}

/* ---- what a block says, number by number, in the words of ggml's layouts -------------------------------------- */

static int bits_at(const uint8_t *from, int first, int count) {
    int found = 0;
    for (int i = 0; i < count; i++) found |= (from[(first + i) / 8] >> (first + i) % 8 & 1) << i;
    return found;
}

static int three_at(const uint8_t *block, int c) {
    const int run = c < 160 ? 32 : c < 240 ? 16 : 4, in_run = c < 160 ? c : c < 240 ? c - 160 : c - 240;
    uint8_t fraction = block[(c < 160 ? 0 : c < 240 ? 32 : 48) + in_run % run];
    for (int i = in_run / run; i > 0; i--) fraction = (uint8_t)(fraction * 3);
    return fraction * 3 >> 8;
}

static int code_at(const kind *k, const uint8_t *block, int c) {
    const int half = c / 128, in_half = c % 128, quarter = in_half / 32, in_group = c % 32;
    const int shift = c % 32 < 16 ? 0 : 4; /* of a nibble in blocks of 32 columns */
    switch (k->type) {
    case EM_ROWS_Q8_0: return block[2 + c];
    case EM_ROWS_Q4_0:
    case EM_ROWS_IQ4_NL: return block[2 + c % 16] >> shift & 15;
    case EM_ROWS_Q4_1: return block[4 + c % 16] >> shift & 15;
    case EM_ROWS_MXFP4: return block[1 + c % 16] >> shift & 15;
    case EM_ROWS_Q5_0: return (block[6 + c % 16] >> shift & 15) | bits_at(block + 2, c, 1) << 4;
    case EM_ROWS_Q5_1: return (block[8 + c % 16] >> shift & 15) | bits_at(block + 4, c, 1) << 4;
    case EM_ROWS_Q2_K: return block[16 + half * 32 + in_group] >> 2 * quarter & 3;
    case EM_ROWS_Q3_K:
        return (block[32 + half * 32 + in_group] >> 2 * quarter & 3) | (block[in_group] >> (c / 32) & 1) << 2;
    case EM_ROWS_Q4_K: return block[16 + c / 64 * 32 + in_group] >> (c / 32 % 2 * 4) & 15;
    case EM_ROWS_Q5_K:
        return (block[48 + c / 64 * 32 + in_group] >> (c / 32 % 2 * 4) & 15) | (block[16 + in_group] >> (c / 32) & 1) << 4;
    case EM_ROWS_Q6_K:
        return (block[half * 64 + in_half % 64] >> (in_half / 64 * 4) & 15) |
               (block[128 + half * 32 + in_group] >> 2 * quarter & 3) << 4;
    case EM_ROWS_IQ4_XS: return block[8 + c / 32 * 16 + c % 16] >> shift & 15;
    case EM_ROWS_NVFP4: return block[4 + c / 16 * 8 + c % 8] >> (c % 16 < 8 ? 0 : 4) & 15;
    case EM_ROWS_TQ1_0: return three_at(block, c);
    case EM_ROWS_TQ2_0: return block[half * 32 + in_group] >> 2 * quarter & 3;
    case EM_ROWS_Q2_0: return bits_at(block + 2, 2 * c, 2);
    default: return bits_at(block + 2, c, 1); /* Q1_0 */
    }
}

/* Factor i of a block, as its format has it, and offset i where it has offsets of their own. */
static uint8_t factor_at(const kind *k, const uint8_t *block, int i, uint8_t *offset) {
    const uint8_t *pairs = block + 4, *sixteen = block + 96;
    switch (k->type) {
    case EM_ROWS_Q2_K: return block[i];
    case EM_ROWS_Q3_K:
        return (uint8_t)((sixteen[i % 8] >> (i < 8 ? 0 : 4) & 15) + ((sixteen[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32);
    case EM_ROWS_Q4_K:
    case EM_ROWS_Q5_K:
        if (i < 4) {
            *offset = pairs[i + 4] & 63;
            return pairs[i] & 63;
        }
        *offset = (uint8_t)(pairs[i + 4] >> 4 | pairs[i] >> 6 << 4);
        return (uint8_t)((pairs[i + 4] & 15) | pairs[i - 4] >> 6 << 4);
    case EM_ROWS_Q6_K: return block[192 + i];
    case EM_ROWS_IQ4_XS: return (uint8_t)((block[4 + i / 2] >> i % 2 * 4 & 15) + (bits_at(block + 2, 2 * i, 2) << 4) - 32);
    default: return block[i]; /* NVFP4 */
    }
}

static float float_at(const kind *k, const uint8_t *from) {
    uint32_t bits = 0;
    float value;
    if (k->type == EM_ROWS_F32) {
        memcpy(&value, from, 4);
        return value;
    }
    if (k->type == EM_ROWS_BF16) {
        bits = (uint32_t)from[0] << 16 | (uint32_t)from[1] << 24;
        memcpy(&value, &bits, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, from, 2);
    return em_half_to_float(half);
}

/* Puts a code where the table of edgemoe/kernels/formats.py has it, plane by plane. */
static void put_code(const kind *k, uint8_t *payload, int r, int c, int code) {
    const int bits = em_numbers(k->format).bits, low = bits == 8 ? 8 : bits >= 4 ? 4 : bits >= 2 ? 2 : 1;
    for (int first = 0, plane = low; first < bits; first += plane, plane = bits - low) {
        const int own = code >> first & ((1 << plane) - 1);
        const int in_field = plane == 8 ? c : plane == 4 ? c % 16 : plane == 2 ? c % 8 : c % 4;
        const int field = plane == 8 ? 0 : plane == 4 ? c / 16 : plane == 2 ? c / 8 : c / 4;
        payload[(first + in_field / 4) * 64 + r * 4 + in_field % 4] |= (uint8_t)(own << field * plane);
    }
}

/* One panel, byte for byte, element by element; of formats with a grid, whose places tests in Python know, as it lands at
 * once. */
static void expect_panel(const kind *k, const uint8_t *rows_in_file, int32_t rows, int32_t columns, float scale,
                         uint8_t *panel) {
    const em_format_numbers numbers = em_numbers(k->format);
    const int32_t groups = em_group_count(columns), size = k->format == EM_F32 ? 4 : 2, block_columns = k->block_columns;
    const em_sections at = em_sections_of(k->format, groups);
    if (numbers.grid != EM_GRID_NONE) {
        CHECK(em_land_grid_rows(k->format, columns, k->block_bytes, rows, rows_in_file, panel));
        return;
    }
    memset(panel, 0, em_panel_bytes(k->format, columns));
    for (int32_t r = 0; r < EM_PANEL_ROWS; r++) {
        const uint8_t *row = r < rows ? rows_in_file + r * row_bytes(k, columns) : NULL;
        for (int32_t c = 0; c < groups * EM_GROUP_COLUMNS; c++) {
            uint8_t *payload = panel + (size_t)(c / 32) * em_payload_bytes(k->format);
            if (block_columns == 1) {
                if (!row || c >= columns) continue;
                const float value = float_at(k, row + (size_t)c * (size_t)k->block_bytes);
                if (size == 4) {
                    memcpy(payload + (c % 32 * 16 + r) * 4, &value, 4);
                } else {
                    memcpy(payload + (c % 32 * 16 + r) * 2, row + (size_t)c * 2, 2);
                }
                continue;
            }
            const int code = row ? code_at(k, row + c / block_columns * k->block_bytes, c % block_columns) : numbers.zero;
            put_code(k, payload, r, c % 32, code);
        }
        if (block_columns == 1) continue;
        if (k->format == EM_NV4 && row) memcpy(panel + at.scales + r * 4, &scale, 4);
        for (int32_t b = 0; b < columns / block_columns; b++) {
            const uint8_t *block = row ? row + b * k->block_bytes : NULL;
            if (k->format == EM_M4) panel[at.scales + (size_t)(b * 16 + r)] = block ? block[0] : 127;
            if (!block) continue;
            if (k->scale >= 0) memcpy(panel + at.scales + (b * 16 + r) * 2, block + k->scale, 2);
            if (k->minimum >= 0) memcpy(panel + at.minimums + (b * 16 + r) * 2, block + k->minimum, 2);
            const int count = numbers.factor == EM_FACTOR_NONE ? 0 : block_columns / 32 * numbers.halves;
            for (int i = 0; i < count; i++) {
                uint8_t offset = 0;
                panel[at.factors + (size_t)((b * count + i) * 16 + r)] = factor_at(k, block, i, &offset);
                if (at.end > at.offsets) panel[at.offsets + (size_t)((b * count + i) * 16 + r)] = offset;
            }
        }
    }
}

#endif
