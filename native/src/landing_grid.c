/* See landing_grid.h.
 *
 * Bytes move from their places in a block to those in a panel (grid_blocks.py), 16 of each of 8 rows at a time: low bytes of
 * codes are turned, so that those of 8 rows stand side by side; of four marks of a group, or codes of IQ1, 32-bit lanes are. */
#include "landing_grid.h"

#include <string.h>

#include "../kernels/kernels.h"
#include "file_blocks.h"

enum { GROUPS = 8, /* of a block of 256 columns */ SIDE_ROWS = 8, SIDE_BYTES = EM_LINE_BYTES / 2, BLOCK_BYTES_MOST = 110 };

/* Where a type's fields stand in its block (grid_rows.py); where there are none, 0. */
typedef struct fields {
    uint8_t codes, marks; /* of IQ2_XXS and IQ2_XS, where they stand among the codes: the same */
    uint8_t high, high_bytes; /* bytes of high bits, one for each group */
    uint8_t pairs, pair_bytes; /* bytes of two factors */
} fields;

static inline fields fields_of(int32_t format) {
    switch (format) {
    case EM_IQ2XXS: return (fields){.codes = 2, .marks = 2};
    case EM_IQ2XS: return (fields){.codes = 2, .marks = 2, .pairs = 66, .pair_bytes = 8};
    case EM_IQ2S: return (fields){.codes = 2, .marks = 34, .high = 66, .high_bytes = 8, .pairs = 74, .pair_bytes = 8};
    case EM_IQ3XXS: return (fields){.codes = 2, .marks = 66};
    case EM_IQ3S: return (fields){.codes = 2, .marks = 74, .high = 66, .high_bytes = 8, .pairs = 106, .pair_bytes = 4};
    case EM_IQ1S: return (fields){.codes = 2, .marks = 34};
    default: return (fields){.codes = 0, .marks = 32}; /* IQ1_M */
    }
}

/* The low bytes of the codes 16i to 16i + 15 of a block. */
EM_INLINE em_bytes16 low_codes(int32_t format, const uint8_t *block, int i) {
    const uint8_t *at = block + fields_of(format).codes + 16 * i;
    if (format != EM_IQ2XXS && format != EM_IQ2XS) return em_load_bytes16(at);
    const em_bytes16 first = em_load_bytes16(at + 16 * i), second = em_load_bytes16(at + 16 * i + 16);
    return format == EM_IQ2XS ? em_even_bytes(first, second) : (em_bytes16)EM_PICK4(first, second, 0, 2, 4, 6);
}

/* Bit 8 of those of IQ2_XS, as bit 7 of bytes. */
EM_INLINE em_bytes16 top_bits(const uint8_t *block, int i) {
    const uint8_t *at = block + fields_of(EM_IQ2XS).codes + 32 * i;
    return em_even_bytes(em_load_bytes16(at) >> 1, em_load_bytes16(at + 16) >> 1) & 128 * EM_EVERY_BYTE;
}

/* Four bytes of seven signs, with the bits of the factor above them. */
EM_INLINE em_bytes16 seven_signs(em_lanes4 x) {
    const em_lanes4 signs = (x & 0x7F) | (x << 1 & 0x7F00) | (x << 2 & 0x7F0000) | (x << 3 & 0x7F000000);
    return (em_bytes16)(signs | (x >> 21 & 0x80) | (x >> 14 & 0x8000) | (x >> 7 & 0x800000) | (x & 0x80000000));
}

/* The bytes that are signs, or IQ1's nibbles, of the groups 4i to 4i + 3 of a block. */
EM_INLINE em_bytes16 marks_of(int32_t format, const uint8_t *block, int i) {
    const uint8_t *at = block + fields_of(format).marks + 16 * i;
    if (format == EM_IQ2S || format == EM_IQ3S) return em_load_bytes16(at);
    if (format == EM_IQ3XXS) return seven_signs((em_lanes4)em_load_bytes16(at));
    if (format == EM_IQ2XXS || format == EM_IQ2XS) {
        const em_bytes16 first = em_load_bytes16(at + 16 * i), second = em_load_bytes16(at + 16 * i + 16);
        if (format == EM_IQ2XXS) return seven_signs(EM_PICK4(first, second, 1, 3, 5, 7));
        return em_even_bytes((em_bytes16)((em_lanes8)first >> 9), (em_bytes16)((em_lanes8)second >> 9));
    }
    const em_bytes16 words = {em_load_64(block + fields_of(format).marks + 8 * i)}, zeros = {0};
    const em_lanes4 x = (em_lanes4)EM_PICK(em_lanes8, words, zeros, 0, 8, 1, 9, 2, 10, 3, 11);
    if (format == EM_IQ1M) return (em_bytes16)((x & 15) | (x << 4 & 0xF00) | (x << 8 & 0xF0000) | (x << 12 & 0xF000000));
    const em_lanes4 threes = (x & 7) | (x << 5 & 0x700) | (x << 10 & 0x70000) | (x << 15 & 0x7000000);
    return (em_bytes16)(threes | (x >> 9 & 8) | (x >> 2 & 0x800) | (x << 5 & 0x80000) | (x << 12 & 0x8000000));
}

/* Lanes of the rows 4 * quarter to 4 * quarter + 3 of a side, which are groups. */
EM_INLINE em_four_rows turned_marks(int32_t format, const uint8_t *const rows[SIDE_ROWS], int quarter, int i) {
    const uint8_t *const *own = rows + 4 * quarter;
    return em_turn_lanes((em_four_rows){marks_of(format, own[0], i), marks_of(format, own[1], i),
                                        marks_of(format, own[2], i), marks_of(format, own[3], i)});
}

/* Groups 4i to 4i + 3 of IQ1, for 8 rows from byte 0 of `payload` on; `after`: behind its line. */
EM_INLINE void land_iq1(int32_t format, const uint8_t *const rows[SIDE_ROWS], int i, uint8_t *payload, uint8_t *after) {
    const size_t apart = em_payload_bytes(format);
    for (int quarter = 0; quarter < 2; quarter++) {
        const uint8_t *const *own = rows + 4 * quarter;
        const em_four_rows codes = em_turn_lanes((em_four_rows){low_codes(format, own[0], i), low_codes(format, own[1], i),
                                                                low_codes(format, own[2], i), low_codes(format, own[3], i)});
        em_store_bytes16(payload + 16 * quarter, codes.a);
        em_store_bytes16(payload + 16 * quarter + apart, codes.b);
        em_store_bytes16(payload + 16 * quarter + 2 * apart, codes.c);
        em_store_bytes16(payload + 16 * quarter + 3 * apart, codes.d);
    }
    const em_four_rows low = turned_marks(format, rows, 0, i), high = turned_marks(format, rows, 1, i);
    em_store_bytes16(after, low.a | high.a << 4);
    em_store_bytes16(after + apart, low.b | high.b << 4);
    em_store_bytes16(after + 2 * apart, low.c | high.c << 4);
    em_store_bytes16(after + 3 * apart, low.d | high.d << 4);
}

/* The marks of groups 4i to 4i + 3 of the other formats, for 8 rows from byte 0 of `signs` on, which is their line. */
EM_INLINE void land_marks(int32_t format, const uint8_t *const rows[SIDE_ROWS], int i, uint8_t *signs) {
    const size_t apart = em_payload_bytes(format);
    const em_four_rows first = turned_marks(format, rows, 0, i), second = turned_marks(format, rows, 1, i);
    em_bytes16 tops[SIDE_ROWS] = {{0}};
    if (format == EM_IQ2XS) {
        EM_UNROLLED for (int r = 0; r < SIDE_ROWS; r++) tops[r] = top_bits(rows[r], i);
        em_turn_bytes(tops);
    }
    em_store_bytes16(signs, first.a | tops[0]), em_store_bytes16(signs + 16, second.a | tops[1]);
    em_store_bytes16(signs + apart, first.b | tops[2]), em_store_bytes16(signs + apart + 16, second.b | tops[3]);
    signs += 2 * apart;
    em_store_bytes16(signs, first.c | tops[4]), em_store_bytes16(signs + 16, second.c | tops[5]);
    em_store_bytes16(signs + apart, first.d | tops[6]), em_store_bytes16(signs + apart + 16, second.d | tops[7]);
}

/* Their codes 16i to 16i + 15, of which a group has 4 or, in two lines, 8. */
EM_INLINE void land_codes(int32_t format, const uint8_t *const rows[SIDE_ROWS], int i, uint8_t *payload) {
    const size_t apart = em_payload_bytes(format);
    const bool two_lines = em_numbers(format).bits == 3;
    em_bytes16 codes[SIDE_ROWS];
    EM_UNROLLED for (int r = 0; r < SIDE_ROWS; r++) codes[r] = low_codes(format, rows[r], i);
    em_turn_bytes(codes);
    EM_UNROLLED for (int n = 0; n < 4; n++) { /* 4 codes */
        uint8_t *to = payload + (two_lines ? (size_t)(n / 2) * apart + (size_t)(n % 2) * EM_LINE_BYTES : (size_t)n * apart);
        em_store_bytes16(to, codes[2 * n]);
        em_store_bytes16(to + 16, codes[2 * n + 1]);
    }
}

/* Bytes of 8 rows from byte `at` of their blocks on, `count` of each: those of a column go to `to`, the next ones `apart`
 * bytes further. */
EM_INLINE void land_bytes(const uint8_t *const rows[SIDE_ROWS], int at, int count, uint8_t *to, size_t apart) {
    uint64_t words[SIDE_ROWS];
    EM_UNROLLED for (int r = 0; r < SIDE_ROWS; r++) words[r] = count == 8 ? em_load_64(rows[r] + at) : em_load_32(rows[r] + at);
    em_transpose8(words);
    EM_UNROLLED for (int n = 0; n < count; n++) memcpy(to + (size_t)n * apart, &words[n], sizeof words[n]);
}

static bool is_finite_half(unsigned half) { return (half & 0x7c00) != 0x7c00; }

/* Copies the scale of row r of a block, and says whether it is finite. */
EM_INLINE bool land_scale(int32_t format, const uint8_t *block, uint8_t *scales, int r) {
    if (em_numbers(format).scale != EM_SCALE_WORDS) {
        memcpy(scales + 2 * r, block, 2);
        return is_finite_half(em_load_16(block));
    }
    unsigned scale = 0;
    for (int w = 0; w < 4; w++) {
        const uint8_t *word = block + 48 + 2 * w;
        scale |= (unsigned)(word[1] >> 4) << 4 * w;
        memcpy(scales + 32 * w + 2 * r, word, 2);
    }
    return is_finite_half(scale);
}

EM_INLINE bool land_rows(int32_t format, int32_t columns, int32_t block_bytes, int32_t rows, const uint8_t *from,
                         uint8_t *panel) {
    static const uint8_t zeros[BLOCK_BYTES_MOST]; /* a block of a row that is missing */
    const fields at = fields_of(format);
    const int32_t blocks = columns / (GROUPS * EM_GROUP_COLUMNS);
    const em_sections sections = em_sections_of(format, blocks * GROUPS);
    const size_t payload_bytes = em_payload_bytes(format), lines = (size_t)EM_LINE_BYTES * em_numbers(format).bits;
    const int codes_together = em_numbers(format).bits == 3 ? 2 : 4; /* groups that 16 codes are */
    bool finite = true;
    memset(panel + sections.end, 0, em_panel_bytes(format, columns) - sections.end);
    for (int32_t b = 0; b < blocks; b++) {
        uint8_t *payloads = panel + (size_t)b * GROUPS * payload_bytes;
        for (int side = 0; side < 2; side++) {
            const uint8_t *own[SIDE_ROWS];
            for (int r = 0; r < SIDE_ROWS; r++) {
                const int32_t row = side * SIDE_ROWS + r;
                own[r] = row < rows ? from + ((int64_t)row * blocks + b) * block_bytes : zeros;
                finite &= land_scale(format, own[r], panel + sections.scales + (size_t)b * em_scales_bytes(format), row);
            }
            for (int i = 0; i < GROUPS / 4; i++) {
                uint8_t *payload = payloads + (size_t)(4 * i) * payload_bytes;
                if (em_numbers(format).grid == EM_GRID_IQ1) {
                    land_iq1(format, own, i, payload + side * SIDE_BYTES, payload + lines + side * 16);
                } else {
                    land_marks(format, own, i, payload + lines - EM_LINE_BYTES + side * SIDE_BYTES);
                }
            }
            for (int i = 0; i < GROUPS / codes_together && em_numbers(format).grid != EM_GRID_IQ1; i++) {
                land_codes(format, own, i, payloads + (size_t)(codes_together * i) * payload_bytes + side * SIDE_BYTES);
            }
            if (at.high_bytes) land_bytes(own, at.high, at.high_bytes, payloads + lines + side * SIDE_ROWS, payload_bytes);
            if (at.pair_bytes) {
                uint8_t *pairs = panel + sections.factors + (size_t)b * at.pair_bytes * EM_PANEL_ROWS;
                land_bytes(own, at.pairs, at.pair_bytes, pairs + side * SIDE_ROWS, EM_PANEL_ROWS);
            }
        }
    }
    return finite;
}

bool em_land_grid_rows(int32_t format, int32_t columns, int32_t block_bytes, int32_t rows, const uint8_t *from,
                       uint8_t *panel) {
    switch (format) {
    case EM_IQ2XXS: return land_rows(EM_IQ2XXS, columns, block_bytes, rows, from, panel);
    case EM_IQ2XS: return land_rows(EM_IQ2XS, columns, block_bytes, rows, from, panel);
    case EM_IQ2S: return land_rows(EM_IQ2S, columns, block_bytes, rows, from, panel);
    case EM_IQ3XXS: return land_rows(EM_IQ3XXS, columns, block_bytes, rows, from, panel);
    case EM_IQ3S: return land_rows(EM_IQ3S, columns, block_bytes, rows, from, panel);
    case EM_IQ1S: return land_rows(EM_IQ1S, columns, block_bytes, rows, from, panel);
    case EM_IQ1M: return land_rows(EM_IQ1M, columns, block_bytes, rows, from, panel);
    default: return false;
    }
}
