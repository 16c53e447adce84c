/* Formats whose codes choose entries of a grid, 8 weights each (IQ3: 4): what edgemoe/kernels/grid_blocks.py draws, one
 * weight or one row at a time. */
#ifndef EDGEMOE_GRID_H
#define EDGEMOE_GRID_H

#include <string.h>

#include "../half.h"
#include "../kernels.h"

/* Entries as bytes, the first weight's lowest. Those of IQ1 are 0, 8 and 16: a weight is one of them, less 8, and 1 added or
 * subtracted. */
extern const uint64_t em_grid_iq2xxs[256], em_grid_iq2xs[512], em_grid_iq2s[1024], em_grid_iq1[2048];
/* Those of IQ3, of 4 bytes, lie there twice, and have others before and behind them, which vectors may load too. */
enum { EM_GRID_MARGIN = 1 };
extern const uint64_t em_grid_iq3xxs[256 + 2 * EM_GRID_MARGIN], em_grid_iq3s[512 + 2 * EM_GRID_MARGIN];

/* The numbers of their levels in bytes, for AVX-512: of four columns (IQ3: two) in 2 (3) bits each, then of the others. */
extern const uint8_t em_grid_bytes_iq2xxs[2][256], em_grid_bytes_iq2xs[2][512], em_grid_bytes_iq2s[2][1024],
    em_grid_bytes_iq1[2][2048], em_grid_bytes_iq3xxs[2][256], em_grid_bytes_iq3s[2][512];

enum { EM_GRID_COLUMNS = 8, EM_GRID_ZERO = 8 /* of IQ1 */, EM_SUPER_GROUPS = 8 /* that share words of iq1m */ };

/* The grid as 64-bit entries; NULL for IQ3. */
static inline const uint64_t *em_grid_of_eight(int32_t format) {
    switch (em_numbers(format).grid) {
    case EM_GRID_IQ2XXS: return em_grid_iq2xxs;
    case EM_GRID_IQ2XS: return em_grid_iq2xs;
    case EM_GRID_IQ2S: return em_grid_iq2s;
    case EM_GRID_IQ1: return em_grid_iq1;
    default: return NULL;
    }
}

static inline const uint64_t *em_grid_of_four(int32_t format) {
    return (em_numbers(format).grid == EM_GRID_IQ3XXS ? em_grid_iq3xxs : em_grid_iq3s) + EM_GRID_MARGIN;
}

static inline int em_grid_is_iq1(int32_t format) { return em_numbers(format).grid == EM_GRID_IQ1; }

static inline int em_grid_is_iq3(int32_t format) {
    return em_numbers(format).grid == EM_GRID_IQ3XXS || em_numbers(format).grid == EM_GRID_IQ3S;
}

/* Whether bit 7 of a byte of signs follows from the others, and has something else. */
static inline int em_grid_has_parity(int32_t format) {
    return format == EM_IQ2XXS || format == EM_IQ2XS || format == EM_IQ3XXS;
}

/* The bytes of a group behind its lines. */
static inline const uint8_t *em_grid_after(const uint8_t *payload, int32_t format) {
    return payload + (size_t)EM_LINE_BYTES * em_numbers(format).bits;
}

/* The line of signs, which is the last one. */
static inline const uint8_t *em_grid_signs(const uint8_t *payload, int32_t format) {
    return payload + (size_t)EM_LINE_BYTES * (em_numbers(format).bits - 1);
}

/* IQ1's nibble for code n of a row: of a side of 8 rows nibble p is the low (p < 16) or high one of byte p % 16. */
static inline unsigned em_grid_nibble(const uint8_t *payload, int32_t format, int row, int n) {
    const int p = row % 8 * 4 + n;
    return em_grid_after(payload, format)[row / 8 * 16 + p % 16] >> p / 16 * 4 & 15;
}

/* Code n of a row. */
static inline unsigned em_grid_code(const uint8_t *payload, int32_t format, int row, int n) {
    const int by_row = row * 4 + n, by_code = row / 8 * (EM_LINE_BYTES / 2) + n % 4 * 8 + row % 8;
    const unsigned low = payload[em_grid_is_iq1(format) ? by_row : n / 4 * EM_LINE_BYTES + by_code];
    const uint8_t *after = em_grid_after(payload, format) + row;
    switch (em_numbers(format).grid) {
    case EM_GRID_IQ2XS: return low | (unsigned)(em_grid_signs(payload, format)[by_code] >> 7) << 8;
    case EM_GRID_IQ2S: return low | (*after >> 2 * n & 3u) << 8;
    case EM_GRID_IQ3S: return low | (*after >> n & 1u) << 8;
    case EM_GRID_IQ1: return low | (em_grid_nibble(payload, format, row, n) & 7) << 8;
    default: return low;
    }
}

/* The signs of 8 weights, bit 7 among them. */
static inline unsigned em_grid_row_signs(const uint8_t *payload, int32_t format, int row, int block) {
    const unsigned byte = em_grid_signs(payload, format)[row * 4 + block];
    if (!em_grid_has_parity(format)) return byte;
    const unsigned own = byte & 127;
    return own | (0x6996u >> ((own ^ own >> 4) & 15) & 1) << 7; /* 0x6996: bit i is the parity of i */
}

/* What IQ1 has beside the entries of the grid: 1 or -1. */
static inline int em_grid_delta(const uint8_t *payload, int32_t format, int row, int block) {
    return em_grid_nibble(payload, format, row, format == EM_IQ1S ? 3 : block) & 8 ? -1 : 1;
}

/* The value of a row's column c of a group. */
static inline int em_grid_value(const uint8_t *payload, int32_t format, int row, int c) {
    const int block = c / EM_GRID_COLUMNS;
    if (em_grid_is_iq3(format)) {
        const int size = em_grid_of_four(format)[em_grid_code(payload, format, row, c / 4)] >> 8 * (c % 4) & 255;
        return em_grid_row_signs(payload, format, row, block) >> c % EM_GRID_COLUMNS & 1 ? -size : size;
    }
    const uint64_t entry = em_grid_of_eight(format)[em_grid_code(payload, format, row, block)];
    const int size = entry >> 8 * (c % EM_GRID_COLUMNS) & 255;
    if (em_grid_is_iq1(format)) return size - EM_GRID_ZERO + em_grid_delta(payload, format, row, block);
    return em_grid_row_signs(payload, format, row, block) >> c % EM_GRID_COLUMNS & 1 ? -size : size;
}

/* The values of a group, in quads: column c of row r is number c / 4 * 64 + r * 4 + c % 4. */
static inline void em_grid_unpack(const uint8_t *payload, int32_t format, int8_t *values) {
    for (int row = 0; row < EM_PANEL_ROWS; row++) {
        for (int c = 0; c < EM_GROUP_COLUMNS; c++) {
            values[c / 4 * EM_LINE_BYTES + row * 4 + c % 4] = (int8_t)em_grid_value(payload, format, row, c);
        }
    }
}

/* Word w of iq1m for the columns that group g is among. */
static inline unsigned em_grid_scale_word(const uint8_t *scales, int32_t g, int w, int row) {
    uint16_t word;
    memcpy(&word, scales + (size_t)(g / EM_SUPER_GROUPS) * 128 + (size_t)w * 32 + 2 * (size_t)row, sizeof word);
    return word;
}

/* The scale of a row for group g, times the format's unit. */
static inline float em_grid_scale(const uint8_t *panel, em_sections at, int32_t format, int32_t g, int row) {
    const em_format_numbers numbers = em_numbers(format);
    const uint8_t *scales = panel + at.scales;
    uint16_t scale = 0;
    for (int w = 0; numbers.scale == EM_SCALE_WORDS && w < 4; w++) {
        scale |= (uint16_t)(em_grid_scale_word(scales, g, w, row) >> 12 << 4 * w);
    }
    if (numbers.scale == EM_SCALE_F16) {
        memcpy(&scale, scales + (size_t)(g >> numbers.scale_shift) * 32 + 2 * (size_t)row, sizeof scale);
    }
    return em_half_to_float(scale) / (float)(1 << numbers.unit_shift);
}

/* The factor of a row, in half `half` of group g: 2k + 1. */
static inline int em_grid_factor(const uint8_t *panel, em_sections at, int32_t format, int32_t g, int half, int row) {
    const em_format_numbers numbers = em_numbers(format);
    const uint8_t *payload = panel + (size_t)g * em_payload_bytes(format);
    const int32_t own = g * numbers.halves + half;
    unsigned k = 0;
    if (numbers.scale == EM_SCALE_WORDS) {
        k = em_grid_scale_word(panel + at.scales, g, own % (2 * EM_SUPER_GROUPS) / 4, row) >> 3 * (own % 4) & 7;
    } else if (numbers.factor == EM_FACTOR_PAIRS) {
        k = panel[at.factors + (size_t)(own / 2) * EM_PANEL_ROWS + row] >> 4 * (own % 2) & 15;
    } else if (format == EM_IQ1S) {
        for (int i = 0; i < 3; i++) k |= em_grid_nibble(payload, format, row, i) >> 3 << i;
    } else {
        for (int i = 0; i < 4; i++) k |= (unsigned)(em_grid_signs(payload, format)[row * 4 + i] >> 7) << i;
    }
    return (int)(2 * k + 1);
}

#endif
