/* See landing_grid.h. Codes, signs and factors move from their places in a block to those in a panel (grid_blocks.py), 8 or
 * 4 weights at a time. */
#include "landing_grid.h"

#include <string.h>

#include "../kernels/kernels.h"

/* The format is a constant wherever this is inlined. */
#define INLINE static inline __attribute__((always_inline))

enum { GROUPS = 8, /* of a block of 256 columns */ CODES_MOST = 8 /* of a row in a group */, BLOCKS = 4 /* of 8 columns */ };

/* A row of one group, as a file has it. */
typedef struct group_row {
    uint16_t codes[CODES_MOST];
    uint8_t marks[BLOCKS]; /* signs or, of IQ1, whether 1 is subtracted */
    uint8_t factors[2];
} group_row;

INLINE uint32_t load_32(const uint8_t *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

INLINE unsigned load_16(const uint8_t *from) { return from[0] | (unsigned)from[1] << 8; }

/* Four bytes of seven signs, and the factor above them. */
INLINE void put_seven_signs(group_row *row, uint32_t word) {
    for (int n = 0; n < BLOCKS; n++) row->marks[n] = word >> 7 * n & 127;
    row->factors[0] = (uint8_t)(word >> 28);
}

INLINE void put_nibbles(group_row *row, uint8_t byte) {
    row->factors[0] = byte & 15;
    row->factors[1] = byte >> 4;
}

/* Group g of a block; the factors of iq1m stand with its scale. */
INLINE group_row read_group(int32_t format, const uint8_t *block, int g) {
    group_row row = {0};
    for (int n = 0; n < CODES_MOST; n++) {
        switch (format) {
        case EM_IQ3XXS: row.codes[n] = block[2 + 8 * g + n]; break;
        case EM_IQ3S: row.codes[n] = (uint16_t)(block[2 + 8 * g + n] | (block[66 + g] >> n & 1) << 8); break;
        }
        if (n >= BLOCKS) continue;
        const int at = 4 * g + n;
        const unsigned word = load_16(block + 2 + 2 * at);
        switch (format) {
        case EM_IQ2XXS: row.codes[n] = block[2 + 8 * g + n]; break;
        case EM_IQ2XS:
            row.codes[n] = word & 511;
            row.marks[n] = (uint8_t)(word >> 9);
            break;
        case EM_IQ2S:
            row.codes[n] = (uint16_t)(block[2 + at] | (block[66 + g] >> 2 * n & 3) << 8);
            row.marks[n] = block[34 + at];
            break;
        case EM_IQ3S: row.marks[n] = block[74 + at]; break;
        case EM_IQ1S:
            row.codes[n] = (uint16_t)(block[2 + at] | (load_16(block + 34 + 2 * g) >> 3 * n & 7) << 8);
            row.marks[n] = block[35 + 2 * g] >> 7;
            break;
        case EM_IQ1M:
            row.codes[n] = (uint16_t)(block[at] | (block[32 + at / 2] >> at % 2 * 4 & 7) << 8);
            row.marks[n] = block[32 + at / 2] >> (at % 2 * 4 + 3) & 1;
            break;
        }
    }
    switch (format) {
    case EM_IQ2XXS: put_seven_signs(&row, load_32(block + 6 + 8 * g)); break;
    case EM_IQ3XXS: put_seven_signs(&row, load_32(block + 66 + 4 * g)); break;
    case EM_IQ2XS: put_nibbles(&row, block[66 + g]); break;
    case EM_IQ2S: put_nibbles(&row, block[74 + g]); break;
    case EM_IQ3S: row.factors[0] = block[106 + g / 2] >> g % 2 * 4 & 15; break;
    case EM_IQ1S: row.factors[0] = block[35 + 2 * g] >> 4 & 7; break;
    }
    return row;
}

/* Puts a row of a group into a payload of zeros. */
INLINE void write_group(int32_t format, uint8_t *payload, int r, const group_row *row) {
    const em_format_numbers numbers = em_numbers(format);
    uint8_t *after = payload + (size_t)EM_LINE_BYTES * numbers.bits, *signs = after - EM_LINE_BYTES;
    const int codes = numbers.bits == 3 ? CODES_MOST : BLOCKS, is_iq1 = numbers.grid == EM_GRID_IQ1;
    for (int n = 0; n < codes; n++) {
        const int by_row = r * 4 + n, by_code = n / 4 * EM_LINE_BYTES + r / 8 * (EM_LINE_BYTES / 2) + n % 4 * 8 + r % 8;
        const int high = row->codes[n] >> 8, p = r % 8 * 4 + n;
        payload[is_iq1 ? by_row : by_code] = (uint8_t)row->codes[n];
        switch (format) {
        case EM_IQ2XS: signs[by_code] |= (uint8_t)(high << 7); break;
        case EM_IQ2S: after[r] |= (uint8_t)(high << 2 * n); break;
        case EM_IQ3S: after[r] |= (uint8_t)(high << n); break;
        }
        if (is_iq1) {
            const int mark = format == EM_IQ1S && n < 3 ? row->factors[0] >> n & 1 : row->marks[n];
            after[r / 8 * 16 + p % 16] |= (uint8_t)((high | mark << 3) << p / 16 * 4);
        }
    }
    for (int n = 0; !is_iq1 && n < BLOCKS; n++) {
        const int top = numbers.factor == EM_FACTOR_INNER ? row->factors[0] >> n & 1 : 0;
        signs[r * 4 + n] |= (uint8_t)(row->marks[n] | top << 7);
    }
}

static bool is_finite_half(unsigned half) { return (half & 0x7c00) != 0x7c00; }

INLINE bool land_rows(int32_t format, int32_t columns, int32_t block_bytes, int32_t rows, const uint8_t *from,
                      uint8_t *panel) {
    const em_format_numbers numbers = em_numbers(format);
    const int32_t blocks = columns / (GROUPS * EM_GROUP_COLUMNS);
    const em_sections at = em_sections_of(format, blocks * GROUPS);
    bool finite = true;
    memset(panel, 0, em_panel_bytes(format, columns));
    for (int32_t b = 0; b < blocks; b++) {
        for (int32_t r = 0; r < rows; r++) {
            const uint8_t *block = from + ((int64_t)r * blocks + b) * block_bytes;
            unsigned scale = load_16(block);
            if (numbers.scale == EM_SCALE_WORDS) {
                scale = 0;
                for (int w = 0; w < 4; w++) {
                    const uint8_t *word = block + 48 + 2 * w;
                    scale |= (unsigned)(word[1] >> 4) << 4 * w;
                    memcpy(panel + at.scales + (size_t)b * 128 + (size_t)w * 32 + 2 * (size_t)r, word, 2);
                }
            } else {
                memcpy(panel + at.scales + (size_t)b * 32 + 2 * (size_t)r, block, 2);
            }
            finite &= is_finite_half(scale);
            for (int g = 0; g < GROUPS; g++) {
                const group_row row = read_group(format, block, g);
                const size_t group = (size_t)b * GROUPS + g;
                write_group(format, panel + group * em_payload_bytes(format), r, &row);
                for (int half = 0; numbers.factor == EM_FACTOR_PAIRS && half < numbers.halves; half++) {
                    const size_t own = group * numbers.halves + half;
                    panel[at.factors + own / 2 * EM_PANEL_ROWS + r] |= (uint8_t)(row.factors[half] << own % 2 * 4);
                }
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
