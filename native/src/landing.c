/* See landing.h.
 *
 * Blocks of Q8_0, Q4_0, Q4_1 and MXFP4 hold what a group of a row holds in q8, q4, q4m and m4, bit for bit, and a panel's
 * payload has the same bytes in words of 4, row beside row:
 *
 *     word w of the block of row r  ->  bytes w * 64 + r * 4 to + 3 of the group's payload
 *
 * since byte j of 4-bit values holds columns j and j + 16 in both. So landing moves words and converts nothing; it costs a
 * load and a store for each 4 bytes, much less than a disk takes for them, in the cache of the core that read them. */
#include "landing.h"

#include <string.h>

#include "../kernels/half.h"
#include "../kernels/kernels.h"

/* A type of numbers in a file. */
typedef struct row_type {
    int32_t format;      /* its twin */
    int32_t block_bytes; /* for 32 columns, or for one */
    int32_t columns;     /* of a block */
    int32_t head_bytes;  /* scale and minimum, before the values */
} row_type;

static const row_type types[EM_ROWS_COUNT] = {
    [EM_ROWS_F32] = {EM_F32, 4, 1, 0},
    [EM_ROWS_F16] = {EM_F16, 2, 1, 0},
    [EM_ROWS_BF16] = {EM_F32, 2, 1, 0},
    [EM_ROWS_Q8_0] = {EM_Q8, 34, EM_GROUP_COLUMNS, 2},
    [EM_ROWS_Q4_0] = {EM_Q4, 18, EM_GROUP_COLUMNS, 2},
    [EM_ROWS_Q4_1] = {EM_Q4M, 20, EM_GROUP_COLUMNS, 4},
    [EM_ROWS_MXFP4] = {EM_M4, 17, EM_GROUP_COLUMNS, 1},
};

static bool is_float(const row_type *type) { return type->columns == 1; }

/* Whether every number of a type is one of a format. F16 becomes f32 where up or gate beside it is F32. */
static bool has_twin(int32_t type, int32_t format) {
    return types[type].format == format || (type == EM_ROWS_F16 && format == EM_F32);
}

static int64_t row_bytes(const em_part *part) {
    const row_type *type = &types[part->type];
    return (int64_t)part->columns / type->columns * type->block_bytes;
}

/* Bytes of a panel's rows, or of 16 elements of a vector: what lands by itself. */
static int64_t unit_bytes(const em_part *part) {
    return EM_PANEL_ROWS * (part->landing == EM_PANELS ? row_bytes(part) : types[part->type].block_bytes);
}

/* The largest sizes of a sound part, far beyond any model's: no sum or product of them overflows. */
enum { SIDE_MAX = 1 << 28 };
#define PLACE_MAX ((int64_t)1 << 50)
#define STRIDE_MAX ((int64_t)1 << 36)

bool em_part_is_sound(const em_part *part) {
    if (part->type < 0 || part->type >= EM_ROWS_COUNT || part->rows < 1 || part->rows > SIDE_MAX ||
        part->columns > SIDE_MAX || part->place < 0 || part->place > PLACE_MAX || part->panel_stride > STRIDE_MAX ||
        part->place % EM_PANEL_ALIGNMENT || part->panel_stride % EM_PANEL_ALIGNMENT) {
        return false;
    }
    const row_type *type = &types[part->type];
    if (part->landing == EM_VECTOR) {
        return part->format == EM_F32 && is_float(type) && part->columns == 1 &&
               part->bytes == (int64_t)part->rows * type->block_bytes;
    }
    return part->landing == EM_PANELS && has_twin(part->type, part->format) && part->columns >= 1 &&
           part->columns % type->columns == 0 && part->bytes == part->rows * row_bytes(part) &&
           part->panel_stride >= (int64_t)em_panel_bytes(part->format, part->columns);
}

int64_t em_part_end(const em_part *part) {
    const int64_t panels = em_panel_count(part->rows);
    if (part->landing == EM_VECTOR) return part->place + panels * EM_PANEL_ROWS * (int64_t)sizeof(float);
    return part->place + (panels - 1) * part->panel_stride + (int64_t)em_panel_bytes(part->format, part->columns);
}

int64_t em_part_step(const em_part *part, int64_t room) {
    const int64_t unit = unit_bytes(part), usable = room - 2 * EM_PAGE_BYTES;
    return usable < unit ? 0 : usable / unit * unit;
}

/* ---- numbers --------------------------------------------------------------------------------------------- */

static uint16_t load_16(const uint8_t *from) {
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static bool is_finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

static float load_float(int32_t type, const uint8_t *from) {
    float value;
    if (type == EM_ROWS_F16) return em_half_to_float(load_16(from));
    if (type == EM_ROWS_BF16) return em_from_bits((uint32_t)load_16(from) << 16);
    memcpy(&value, from, sizeof value);
    return value;
}

static bool is_finite_float(float value) { return (em_to_bits(value) & 0x7f800000) != 0x7f800000; }

/* Whether a block of MXFP4 has weights that float32 has: its three largest scales are NaN or exceed it. */
static bool is_finite_block(const uint8_t *block) {
    if (block[0] < 253) return true;
    const int largest = block[0] == 253 ? 5 : block[0] == 254 ? 3 : -1; /* code without its sign */
    for (int i = 1; i <= EM_GROUP_COLUMNS / 2; i++) {
        if ((block[i] & 7) > largest || (block[i] >> 4 & 7) > largest) return false;
    }
    return true;
}

/* ---- landing --------------------------------------------------------------------------------------------- */

static bool land_vector(const em_part *part, int64_t first, int64_t count, const uint8_t *from, uint8_t *slot) {
    float *to = (float *)(slot + part->place) + first;
    bool finite = true;
    for (int64_t i = 0; i < count; i++) {
        to[i] = load_float(part->type, from + i * types[part->type].block_bytes);
        finite &= is_finite_float(to[i]);
    }
    for (int64_t i = count; i % EM_PANEL_ROWS; i++) to[i] = 0;
    return finite;
}

/* Lands `rows` rows of floats as one panel: column beside column, row by row within a column. */
static bool land_floats(const em_part *part, int32_t rows, const uint8_t *from, uint8_t *panel) {
    const int64_t bytes = row_bytes(part), size = types[part->type].block_bytes;
    const int32_t columns = part->columns, padded = em_group_count(columns) * EM_GROUP_COLUMNS;
    bool finite = true;
    if (part->format == EM_F16) {
        uint16_t *to = (uint16_t *)panel;
        memset(to, 0, em_panel_bytes(EM_F16, columns));
        for (int32_t column = 0; column < columns; column++) {
            for (int32_t row = 0; row < rows; row++) {
                const uint16_t half = load_16(from + row * bytes + column * size);
                to[column * EM_PANEL_ROWS + row] = half;
                finite &= is_finite_half(half);
            }
        }
        return finite;
    }
    float *to = (float *)panel;
    memset(to, 0, (size_t)padded * EM_PANEL_ROWS * sizeof *to);
    for (int32_t column = 0; column < columns; column++) {
        for (int32_t row = 0; row < rows; row++) {
            const float value = load_float(part->type, from + row * bytes + column * size);
            to[column * EM_PANEL_ROWS + row] = value;
            finite &= is_finite_float(value);
        }
    }
    return finite;
}

/* A block of zeros, for the rows that the last panel lacks; the scale of m4 is 1 there, as in formats.pack. */
static const uint8_t *blank_block(int32_t type) {
    static const uint8_t zeros[34] = {0};
    static const uint8_t eights[18] = {[2] = 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88,
                                       0x88,       0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88};
    static const uint8_t ones[17] = {127};
    return type == EM_ROWS_Q4_0 ? eights : type == EM_ROWS_MXFP4 ? ones : zeros;
}

/* Lands `rows` rows of blocks as one panel. */
static bool land_blocks(const em_part *part, int32_t rows, const uint8_t *from, uint8_t *panel) {
    const row_type *type = &types[part->type];
    const int32_t groups = em_group_count(part->columns), format = part->format;
    const int32_t words = (type->block_bytes - type->head_bytes) / 4;
    const int32_t scale_bytes = part->type == EM_ROWS_MXFP4 ? 1 : 2;
    uint8_t *payload = panel;
    uint8_t *scales = panel + (size_t)groups * em_payload_bytes(format);
    uint8_t *minimums = scales + (size_t)groups * em_scales_bytes(format);
    const uint8_t *blocks[EM_PANEL_ROWS];
    size_t steps[EM_PANEL_ROWS];
    for (int32_t row = 0; row < EM_PANEL_ROWS; row++) {
        blocks[row] = row < rows ? from + row * row_bytes(part) : blank_block(part->type);
        steps[row] = row < rows ? (size_t)type->block_bytes : 0;
    }
    bool finite = true;
    for (int32_t group = 0; group < groups; group++) {
        for (int32_t word = 0; word < words; word++, payload += 4 * EM_PANEL_ROWS) {
            for (int32_t row = 0; row < EM_PANEL_ROWS; row++) {
                memcpy(payload + 4 * row, blocks[row] + type->head_bytes + 4 * word, 4);
            }
        }
        for (int32_t row = 0; row < EM_PANEL_ROWS; row++, scales += scale_bytes) {
            memcpy(scales, blocks[row], (size_t)scale_bytes);
            finite &= scale_bytes == 1 ? is_finite_block(blocks[row]) : is_finite_half(load_16(blocks[row]));
            if (format == EM_Q4M) {
                memcpy(minimums, blocks[row] + 2, 2);
                finite &= is_finite_half(load_16(minimums));
                minimums += 2;
            }
            blocks[row] += steps[row];
        }
    }
    uint8_t *end = format == EM_Q4M ? minimums : scales;
    memset(end, 0, (size_t)(panel + em_panel_bytes(format, part->columns) - end));
    return finite;
}

bool em_part_land(const em_part *part, int64_t begin, int64_t bytes, const uint8_t *from, uint8_t *slot) {
    if (part->landing == EM_VECTOR) {
        const int64_t size = types[part->type].block_bytes;
        return land_vector(part, begin / size, bytes / size, from, slot);
    }
    const int64_t unit = unit_bytes(part), of_row = row_bytes(part);
    uint8_t *panel = slot + part->place + begin / unit * part->panel_stride;
    bool finite = true;
    for (int64_t done = 0; done < bytes; done += unit, panel += part->panel_stride) {
        const int64_t left = (bytes - done) / of_row;
        const int32_t rows = left < EM_PANEL_ROWS ? (int32_t)left : EM_PANEL_ROWS;
        finite &= is_float(&types[part->type]) ? land_floats(part, rows, from + done, panel)
                                               : land_blocks(part, rows, from + done, panel);
    }
    return finite;
}
