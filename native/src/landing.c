/* See landing.h.
 *
 * Blocks of a file become those of their twin, the format that has the same numbers bit for bit. Sixteen codes of a block are
 * brought into the bytes of a vector, whatever their places in the file (file_blocks.h), and from there, with those of three
 * more rows, into the planes of the panel, whose lines have four neighbouring codes of each row (formats.h): two kinds of
 * shifts and masks, one by the type and one by the format. It costs about one instruction for three weights, in the cache of
 * the core that read them: a reader that lands slower than the disk reads would hold it up. */
#include "landing.h"

#include <string.h>

#include "../kernels/half.h"
#include "../kernels/kernels.h"
#include "file_blocks.h"
#include "landing_grid.h"

static const em_row_type *const types = em_row_types;

static bool is_float(const em_row_type *type) { return type->columns == 1; }

static int64_t row_bytes(const em_part *part) {
    const em_row_type *type = &types[part->type];
    return (int64_t)part->columns / type->columns * type->bytes;
}

/* Bytes of a panel's rows, or of 16 elements of a vector: what lands by itself. */
static int64_t unit_bytes(const em_part *part) {
    return EM_PANEL_ROWS * (part->landing == EM_PANELS ? row_bytes(part) : types[part->type].bytes);
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
    const em_row_type *type = &types[part->type];
    if (part->landing == EM_VECTOR) {
        return part->format == EM_F32 && is_float(type) && part->columns == 1 &&
               part->bytes == (int64_t)part->rows * type->bytes;
    }
    return part->landing == EM_PANELS && type->format == part->format && part->columns >= 1 &&
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

static bool is_finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

static float load_float(int32_t type, const uint8_t *from) {
    float value;
    if (type == EM_ROWS_F16) return em_half_to_float(em_load_16(from));
    if (type == EM_ROWS_BF16) return em_from_bits((uint32_t)em_load_16(from) << 16);
    memcpy(&value, from, sizeof value);
    return value;
}

static bool is_finite_float(float value) { return (em_to_bits(value) & 0x7f800000) != 0x7f800000; }

/* The largest factor of NVFP4: those above are negative or NaN, which no program writes. */
enum { EM_MOST_E4M3 = 0x7E };

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
        to[i] = load_float(part->type, from + i * types[part->type].bytes);
        finite &= is_finite_float(to[i]);
    }
    for (int64_t i = count; i % EM_PANEL_ROWS; i++) to[i] = 0;
    return finite;
}

/* Lands `rows` rows of floats as one panel: column beside column, row by row within a column. */
static bool land_floats(const em_part *part, int32_t rows, const uint8_t *from, uint8_t *panel) {
    const int64_t bytes = row_bytes(part), size = types[part->type].bytes;
    const int32_t columns = part->columns, padded = em_group_count(columns) * EM_GROUP_COLUMNS;
    bool finite = true;
    if (part->format != EM_F32) {
        const uint16_t exponent = part->format == EM_F16 ? 0x7c00 : 0x7f80;
        uint16_t *to = (uint16_t *)panel;
        memset(to, 0, em_panel_bytes(part->format, columns));
        for (int32_t column = 0; column < columns; column++) {
            for (int32_t row = 0; row < rows; row++) {
                const uint16_t half = em_load_16(from + row * bytes + column * size);
                to[column * EM_PANEL_ROWS + row] = half;
                finite &= (half & exponent) != exponent;
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

/* ---- blocks ---------------------------------------------------------------------------------------------- */

/* Four rows of a group: the codes of their columns 0 to 15, and those of 16 to 31. */
typedef struct group_codes {
    em_four_rows first, second;
} group_codes;

/* Stores the plane that has `bits` of the codes of four rows of a group, from bit `begin` on. `to` is the place of the
 * first of them in the plane's first line. */
EM_INLINE void store_plane(uint8_t *to, const group_codes *codes, int32_t begin, int32_t bits) {
    const uint64_t mask = ((1u << bits) - 1) * EM_EVERY_BYTE;
    const em_four_rows *x = &codes->first, *y = &codes->second;
    const em_four_rows first = {x->a >> begin & mask, x->b >> begin & mask, x->c >> begin & mask, x->d >> begin & mask};
    const em_four_rows second = {y->a >> begin & mask, y->b >> begin & mask, y->c >> begin & mask, y->d >> begin & mask};
    if (bits == 8) {
        em_store_lines4(to, first);
        em_store_lines4(to + 4 * EM_LINE_BYTES, second);
        return;
    }
    const em_four_rows both = {first.a | second.a << 4, first.b | second.b << 4, first.c | second.c << 4,
                               first.d | second.d << 4};
    if (bits == 4) {
        em_store_lines4(to, both);
        return;
    }
    /* Fields of 2 bits: columns 8 to 15 beside columns 0 to 7, and 24 to 31 beside 16 to 23. */
    const em_lanes4 ab = (em_lanes4)(EM_PICK2(both.a, both.b, 0, 2) | EM_PICK2(both.a, both.b, 1, 3) << 2);
    const em_lanes4 cd = (em_lanes4)(EM_PICK2(both.c, both.d, 0, 2) | EM_PICK2(both.c, both.d, 1, 3) << 2);
    const em_lanes4 even = EM_PICK4(ab, cd, 0, 2, 4, 6), odd = EM_PICK4(ab, cd, 1, 3, 5, 7);
    if (bits == 2) {
        em_store_bytes16(to, (em_bytes16)even);
        em_store_bytes16(to + EM_LINE_BYTES, (em_bytes16)odd);
    } else { /* fields of four columns, not of eight */
        em_store_bytes16(to, (em_bytes16)(even | odd << 1));
    }
}

EM_INLINE void store_codes(uint8_t *to, const group_codes *codes, int32_t bits) {
    const int32_t low = bits == 8 ? 8 : bits >= 4 ? 4 : bits >= 2 ? 2 : 1;
    store_plane(to, codes, 0, low);
    if (bits > low) store_plane(to + low * EM_LINE_BYTES, codes, low, bits - low);
}

/* Whether a type's codes stand one after another (Q1_0, Q2_0) or five in a byte (TQ1_0), in no plane with runs. */
EM_INLINE bool is_packed(em_row_type type) { return type.low.bits == 0 || type.low.run == 1; }

/* Stores such codes of a block, of four rows. */
EM_INLINE void store_packed(uint8_t *to, em_row_type type, const uint8_t *const rows[4]) {
    const int32_t bits = type.low.bits;
    for (int32_t at = 0; bits > 0 && at < type.columns * bits / 8; at += 16, to += 4 * EM_LINE_BYTES) {
        em_store_lines4(to, (em_four_rows){em_codes_in_turn(rows[0] + type.low.at + at, bits),
                                           em_codes_in_turn(rows[1] + type.low.at + at, bits),
                                           em_codes_in_turn(rows[2] + type.low.at + at, bits),
                                           em_codes_in_turn(rows[3] + type.low.at + at, bits)});
    }
    if (bits > 0) return;
    const em_four_rows a = em_codes_of_threes(rows[0]), b = em_codes_of_threes(rows[1]), c = em_codes_of_threes(rows[2]),
                       d = em_codes_of_threes(rows[3]);
    em_store_lines4(to, (em_four_rows){a.a, b.a, c.a, d.a});
    em_store_lines4(to + 4 * EM_LINE_BYTES, (em_four_rows){a.b, b.b, c.b, d.b});
    em_store_lines4(to + 8 * EM_LINE_BYTES, (em_four_rows){a.c, b.c, c.c, d.c});
    em_store_lines4(to + 12 * EM_LINE_BYTES, (em_four_rows){a.d, b.d, c.d, d.d});
}

/* Stores a number of each row for each of `count` (8 or 16) groups: `from` has a row's behind each other. */
static inline void store_factors(uint8_t *to, uint8_t (*from)[16], int32_t count) {
    for (int32_t group = 0; group < count; group += 8) {
        for (int32_t row = 0; row < EM_PANEL_ROWS; row += 8) {
            uint64_t words[8];
            for (int32_t i = 0; i < 8; i++) words[i] = em_load_64(from[row + i] + group);
            em_transpose8(words);
            for (int32_t i = 0; i < 8 && group + i < count; i++) {
                memcpy(to + (group + i) * EM_PANEL_ROWS + row, &words[i], sizeof words[i]);
            }
        }
    }
}

/* Sixteen codes of row `row + I` in land_rows, below. */
#define CODES(I, COLUMN) \
    (row + (I) >= rows ? zeros : em_codes16(own + (I) * stride, type, EM_GROUP_COLUMNS * group + (COLUMN)))

/* Lands `rows` rows of blocks of a type, which is a constant wherever this is inlined, as one panel. The rows that the last
 * panel lacks become what `pack` has for them: weights of zero. Their scales are 0, or 1 in m4. */
EM_INLINE bool land_rows(const em_part *part, em_row_type type, float scale, int32_t rows, const uint8_t *from,
                         uint8_t *panel) {
    const em_format_numbers numbers = em_numbers(type.format);
    const int32_t blocks = part->columns / type.columns, groups = type.columns / EM_GROUP_COLUMNS;
    const size_t payload_bytes = em_payload_bytes(type.format), scale_bytes = em_scales_bytes(type.format) / EM_PANEL_ROWS;
    const int32_t factor_count = numbers.factor == EM_FACTOR_NONE ? 0 : groups * numbers.halves;
    const em_sections at = em_sections_of(type.format, blocks * groups);
    const bool whole_row = numbers.scale == EM_SCALE_F32;
    const em_bytes16 zeros = {numbers.zero * EM_EVERY_BYTE, numbers.zero * EM_EVERY_BYTE};
    const int64_t stride = (int64_t)blocks * type.bytes;
    uint8_t missing[64]; /* codes of zero for a row that is, where they are packed: 1, which five times is the byte 128 */
    memset(missing, type.low.bits == 0 ? 128 : (int)numbers.zero * 0x55, sizeof missing);
    bool finite = !whole_row || is_finite_float(scale);
    const size_t payloads = (size_t)blocks * (size_t)groups * payload_bytes;
    memset(panel + payloads, 0, em_panel_bytes(type.format, part->columns) - payloads);
    if (numbers.scale == EM_SCALE_E8M0 && rows < EM_PANEL_ROWS) memset(panel + at.scales, 127, at.end - at.scales);
    for (int32_t block = 0; block < blocks; block++) {
        const size_t of_block = (size_t)block * EM_PANEL_ROWS;
        const uint8_t *first = from + (int64_t)block * type.bytes;
        for (int32_t row = 0; is_packed(type) && row < EM_PANEL_ROWS; row += 4) {
            const uint8_t *four[4];
            for (int32_t i = 0; i < 4; i++) four[i] = row + i < rows ? first + (row + i) * stride : missing;
            store_packed(panel + (size_t)(block * groups) * payload_bytes + 4 * row, type, four);
        }
        for (int32_t group = 0; !is_packed(type) && group < groups; group++) {
            uint8_t *payload = panel + (size_t)(block * groups + group) * payload_bytes;
            for (int32_t row = 0; row < EM_PANEL_ROWS; row += 4) {
                const uint8_t *own = first + row * stride;
                const group_codes codes = {
                    {CODES(0, 0), CODES(1, 0), CODES(2, 0), CODES(3, 0)},
                    {CODES(0, 16), CODES(1, 16), CODES(2, 16), CODES(3, 16)},
                };
                store_codes(payload + 4 * row, &codes, numbers.bits);
            }
        }
        uint8_t factors[EM_PANEL_ROWS][16] = {{0}}, offsets[EM_PANEL_ROWS][16] = {{0}};
        for (int32_t row = 0; row < rows; row++) {
            const uint8_t *own = first + row * stride;
            if (!whole_row) {
                memcpy(panel + at.scales + (of_block + (size_t)row) * scale_bytes, own + type.scale, scale_bytes);
                finite &= scale_bytes == 1 ? is_finite_block(own) : is_finite_half(em_load_16(own + type.scale));
            }
            if (numbers.has_minimums) {
                memcpy(panel + at.minimums + (of_block + (size_t)row) * 2, own + type.minimum, 2);
                finite &= is_finite_half(em_load_16(own + type.minimum));
            }
            if (factor_count > 0) em_factors(own, type, factor_count, factors[row], offsets[row]);
            for (int32_t i = 0; numbers.factor == EM_FACTOR_E4M3 && i < factor_count; i++) {
                finite &= factors[row][i] <= EM_MOST_E4M3;
            }
        }
        if (factor_count == 0) continue;
        store_factors(panel + at.factors + of_block * (size_t)factor_count, factors, factor_count);
        if (at.end > at.offsets) store_factors(panel + at.offsets + of_block * (size_t)factor_count, offsets, factor_count);
    }
    if (whole_row) {
        for (int32_t row = 0; row < rows; row++) memcpy(panel + at.scales + 4 * row, &scale, 4);
    }
    return finite;
}

#undef CODES

/* Lands `rows` rows of blocks as one panel. */
static bool land_blocks(const em_part *part, float scale, int32_t rows, const uint8_t *from, uint8_t *panel) {
    if (em_numbers(part->format).grid != EM_GRID_NONE) {
        return em_land_grid_rows(part->format, part->columns, types[part->type].bytes, rows, from, panel);
    }
    switch (part->type) {
#define EM_LAND(NAME, ...) \
    case EM_ROWS_##NAME: return !is_float(&types[EM_ROWS_##NAME]) && \
        (rows == EM_PANEL_ROWS ? land_rows(part, types[EM_ROWS_##NAME], scale, EM_PANEL_ROWS, from, panel) \
                               : land_rows(part, types[EM_ROWS_##NAME], scale, rows, from, panel));
        EM_ROW_TYPES(EM_LAND)
#undef EM_LAND
    }
    return false;
}

bool em_part_land(const em_part *part, float scale, int64_t begin, int64_t bytes, const uint8_t *from, uint8_t *slot) {
    if (part->landing == EM_VECTOR) {
        const int64_t size = types[part->type].bytes;
        return land_vector(part, begin / size, bytes / size, from, slot);
    }
    const int64_t unit = unit_bytes(part), of_row = row_bytes(part);
    uint8_t *panel = slot + part->place + begin / unit * part->panel_stride;
    bool finite = true;
    for (int64_t done = 0; done < bytes; done += unit, panel += part->panel_stride) {
        const int64_t left = (bytes - done) / of_row;
        const int32_t rows = left < EM_PANEL_ROWS ? (int32_t)left : EM_PANEL_ROWS;
        finite &= is_float(&types[part->type]) ? land_floats(part, rows, from + done, panel)
                                               : land_blocks(part, scale, rows, from + done, panel);
    }
    return finite;
}
