/* The layout of a matrix and the numbers of formats (edgemoe/kernels/formats.py), which EM_FORMATS lists. */
#ifndef EDGEMOE_FORMATS_H
#define EDGEMOE_FORMATS_H

#include "edgemoe.h"

enum {
    EM_PANEL_ROWS = 16,
    EM_GROUP_COLUMNS = 32,
    EM_HALF_COLUMNS = 16,
    EM_PANEL_ALIGNMENT = 64,
    EM_LINE_BYTES = 64, /* of a plane: 16 rows x 4 columns of codes, or fields of them */
};

typedef struct em_format_numbers {
    uint8_t floating;    /* codes are floats, and so are activations */
    uint8_t bits;        /* of a code */
    uint8_t scale;       /* EM_SCALE_... */
    uint8_t scale_shift; /* log2 of the groups that share a scale */
    uint8_t has_minimums;
    uint8_t factor;      /* EM_FACTOR_... */
    uint8_t halves;      /* factors of a group: 1, or one for each 16 columns */
    uint8_t has_offsets;
    uint8_t zero;        /* a value is code - zero */
    uint8_t table;       /* or what this has for the code: EM_TABLE_... */
    uint8_t grid;        /* or of an entry of this: EM_GRID_... (matmul/grid.h) */
    uint8_t high_bytes;  /* of a row in a group, behind the lines of a grid's codes */
    uint8_t unit_shift;  /* a factor k of a grid stands for (2k + 1) / 2^unit_shift */
    uint8_t lag;         /* steps between the nibbles of a trellis's window (matmul/trellis.h); 0: no trellis */
    uint8_t block_shift; /* log2 of the groups that share a payload, and of the weights of a step */
} em_format_numbers;

/* Where the format is known when a kernel is compiled, so are its numbers. */
static inline em_format_numbers em_numbers(int32_t format) {
#define EM_NUMBERS(NAME, name, ...) [EM_##NAME] = {__VA_ARGS__},
    static const em_format_numbers all[EM_FORMAT_COUNT] = {EM_FORMATS(EM_NUMBERS) EM_VARYING_FORMATS(EM_NUMBERS)};
#undef EM_NUMBERS
    return all[format];
}

static inline int32_t em_panel_count(int32_t rows) { return (rows + EM_PANEL_ROWS - 1) / EM_PANEL_ROWS; }

static inline int32_t em_group_count(int32_t columns) { return (columns + EM_GROUP_COLUMNS - 1) / EM_GROUP_COLUMNS; }

static inline int em_is_quantised(int32_t format) { return !em_numbers(format).floating; }

static inline int em_is_trellis(int32_t format) { return em_numbers(format).lag != 0; }

/* Bytes of the payload of one panel's group, or block of a trellis. */
static inline size_t em_payload_bytes(int32_t format) {
    return (size_t)EM_LINE_BYTES * em_numbers(format).bits + (size_t)EM_PANEL_ROWS * em_numbers(format).high_bytes;
}

/* The number of payloads of a panel. */
static inline size_t em_payload_count(int32_t format, int32_t group_count) {
    const int shift = em_numbers(format).block_shift;
    return ((size_t)group_count + ((size_t)1 << shift) - 1) >> shift;
}

/* Bytes of a matrix before its panels: the tables of a trellis, 32 bytes for each weight of a step. */
static inline size_t em_head_bytes(int32_t format) {
    const size_t used = em_is_trellis(format) ? (size_t)32 << em_numbers(format).block_shift : 0;
    return (used + EM_PANEL_ALIGNMENT - 1) / EM_PANEL_ALIGNMENT * EM_PANEL_ALIGNMENT;
}

/* Bytes of the 16 scales that as many rows have for the same columns, and of the factors beside them. */
static inline size_t em_scales_bytes(int32_t format) {
    enum { BESIDE = 64 }; /* nibbles of 8 groups */
    static const uint8_t bytes[] = {
        [EM_SCALE_NONE] = 0, [EM_SCALE_F16] = 32, [EM_SCALE_E8M0] = 16, [EM_SCALE_F32] = 64, [EM_SCALE_WORDS] = 128};
    return bytes[em_numbers(format).scale] + (size_t)(em_numbers(format).factor == EM_FACTOR_BESIDE ? BESIDE : 0);
}

/* The number of scales of a row. */
static inline int32_t em_scale_count(int32_t format, int32_t group_count) {
    const int shift = em_numbers(format).scale_shift;
    return (int32_t)((group_count + ((int64_t)1 << shift) - 1) >> shift);
}

/* Bytes of the factors of one panel's group; of pairs it may be half of a section's line. */
static inline size_t em_factors_bytes(int32_t format) {
    const em_format_numbers numbers = em_numbers(format);
    if (numbers.factor == EM_FACTOR_PAIRS) return (size_t)EM_PANEL_ROWS * numbers.halves / 2;
    const int elsewhere = numbers.factor == EM_FACTOR_INNER || numbers.factor == EM_FACTOR_BESIDE;
    return numbers.factor == EM_FACTOR_NONE || elsewhere ? 0 : (size_t)EM_PANEL_ROWS * numbers.halves;
}

/* Whether factors are whole numbers, of 16 columns: they multiply integer dots. */
static inline int em_has_half_factors(int32_t format) {
    return em_numbers(format).halves == 2 && em_numbers(format).factor != EM_FACTOR_E4M3;
}

/* Bytes of its offsets, beside factors of nibbles, which have them in their high nibbles. */
static inline size_t em_offsets_bytes(int32_t format) {
    const em_format_numbers numbers = em_numbers(format);
    return numbers.has_offsets && numbers.factor != EM_FACTOR_NIBBLE ? (size_t)EM_PANEL_ROWS * numbers.halves : 0;
}

/* Bytes of its minimums, for the columns that share a scale: float16. */
static inline size_t em_minimums_bytes(int32_t format) { return em_numbers(format).has_minimums ? 32 : 0; }

/* Where the sections of a panel begin, as distances from its first byte, and where they end. */
typedef struct em_sections {
    size_t scales, minimums, factors, offsets, end;
} em_sections;

static inline em_sections em_sections_of(int32_t format, int32_t group_count) {
    const size_t groups = (size_t)group_count, scales = (size_t)em_scale_count(format, group_count);
    em_sections at;
    at.scales = em_payload_count(format, group_count) * em_payload_bytes(format);
    at.minimums = at.scales + scales * em_scales_bytes(format);
    at.factors = at.minimums + scales * em_minimums_bytes(format);
    at.offsets = at.factors + (groups * em_factors_bytes(format) + EM_PANEL_ROWS - 1) / EM_PANEL_ROWS * EM_PANEL_ROWS;
    at.end = at.offsets + groups * em_offsets_bytes(format);
    return at;
}

/* Bytes of a panel; about as many, where panels of a format differ in length. */
static inline size_t em_panel_bytes(int32_t format, int32_t columns) {
    const size_t used = em_sections_of(format, em_group_count(columns)).end;
    return (used + EM_PANEL_ALIGNMENT - 1) / EM_PANEL_ALIGNMENT * EM_PANEL_ALIGNMENT;
}

/* Bytes of a whole matrix; about as many, where panels of its format differ in length. */
static inline size_t em_matrix_bytes(int32_t format, int32_t rows, int32_t columns) {
    return em_head_bytes(format) + (size_t)em_panel_count(rows) * em_panel_bytes(format, columns);
}

/* The first byte of a panel of a matrix, whose panels lie one after the other behind its head. */
static inline const uint8_t *em_panel(const em_matrix *matrix, int32_t panel, int32_t format) {
    return matrix->data + em_head_bytes(format) + (size_t)panel * em_panel_bytes(format, matrix->columns);
}

/* ---- values ------------------------------------------------------------------------------------------- */

/* Tables by code, as signed bytes, and as unsigned ones with the `zero` of em_unsigned_zero added. */
#define EM_E2M1_SIGNED 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12
#define EM_E2M1_UNSIGNED 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0
#define EM_IQ4_SIGNED -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
#define EM_IQ4_UNSIGNED 0, 23, 44, 62, 78, 92, 105, 117, (char)128, (char)140, (char)152, (char)165, (char)180, (char)196, (char)216, (char)240

/* Values of a trellis are -EM_TRELLIS_MOST to EM_TRELLIS_MOST. */
enum { EM_TRELLIS_MOST = 31 };

/* Kernels take values as signed bytes, or as unsigned ones, and take off `zero` times the sum of the activations. Codes of
 * 8 bits are signed bytes in a payload: unsigned they are byte ^ 128. Codes of one bit are taken twice. */
static inline int32_t em_signed_zero(int32_t format) {
    if (format == EM_Q8M) return -128;
    return format == EM_Q1 ? 1 : em_numbers(format).zero;
}

static inline int32_t em_unsigned_zero(int32_t format) {
    static const uint8_t of_tables[] = {[EM_TABLE_E2M1] = 12, [EM_TABLE_IQ4] = 127, [EM_TABLE_SIGNS] = 1};
    static const uint8_t of_grids[] = {[EM_GRID_IQ2XXS] = 43, [EM_GRID_IQ2XS] = 43, [EM_GRID_IQ2S] = 43,
                                       [EM_GRID_IQ3XXS] = 62, [EM_GRID_IQ3S] = 15,  [EM_GRID_IQ1] = 9};
    if (em_is_trellis(format)) return EM_TRELLIS_MOST + 1; /* a multiple of 8: see em_start */
    if (em_numbers(format).grid != EM_GRID_NONE) return of_grids[em_numbers(format).grid];
    if (em_numbers(format).table != EM_TABLE_NONE) return of_tables[em_numbers(format).table];
    return format == EM_Q8 ? 128 : em_numbers(format).zero;
}

/* The largest unsigned byte of a format. */
static inline int32_t em_unsigned_most(int32_t format) {
    static const uint8_t of_tables[] = {[EM_TABLE_E2M1] = 24, [EM_TABLE_IQ4] = 240, [EM_TABLE_SIGNS] = 2};
    if (em_is_trellis(format)) return em_unsigned_zero(format) + EM_TRELLIS_MOST;
    if (em_numbers(format).grid != EM_GRID_NONE) return 2 * em_unsigned_zero(format);
    if (em_numbers(format).table != EM_TABLE_NONE) return of_tables[em_numbers(format).table];
    return (1 << em_numbers(format).bits) - 1;
}

/* ---- scales ------------------------------------------------------------------------------------------- */

/* The bits of the float32 2^(e - 128), half of what a scale's byte e stands for: the exponent of a normal number lies from
 * bit 23 on; of the two scales below normal numbers, 2^-128 is bit 21 and 2^-127 bit 22. For e of 0 and 1 the second
 * expression is the larger one, from 2 on the first, so the maximum needs no branch. (255 is NaN, and in no store.) */
static inline int32_t em_e8m0_half_bits(int32_t e) {
    const int32_t normal = (e - 1) * (1 << 23), below_normal = (e + 1) * (1 << 21);
    return normal > below_normal ? normal : below_normal;
}

/* A byte of e4m3, its bits moved, is a float16 with its number divided by 256. */
static inline uint16_t em_e4m3_half_bits(uint8_t code) { return (uint16_t)((code & 128) << 8 | (code & 127) << 7); }

/* What makes up for that: in the scales of f8, of m8, whose values are doubled as its scales are halved
 * (em_e8m0_half_bits), and in the factors of nv4, which are halved. */
static inline float em_e4m3_unit(int32_t format) { return format == EM_M8 ? 512.0f : 256.0f; }

#define EM_E4M3_HALVED 128.0f

#endif
