/* See landing.h.
 *
 * Blocks of a file become those of their twin, the format that has the same numbers bit for bit. Eight codes of a block are
 * brought into the bytes of a word, whatever their places in the file (file_blocks.h), and from there into the planes of the
 * panel, whose lines have four neighbouring codes of each row (formats.h): two kinds of shifts and masks, one by the type
 * and one by the format. It costs a few instructions for eight weights, in the cache of the core that read them. */
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

/* Stores four codes of a row in one line, and four in the next. */
static inline void store_pair(uint8_t *line, uint64_t codes) {
    memcpy(line, &codes, 4);
    codes >>= 32;
    memcpy(line + EM_LINE_BYTES, &codes, 4);
}

/* Stores the plane that has `bits` of the codes of a group of a row, from bit `first` on. `to` is the row's place in its
 * first line. */
static inline void store_plane(uint8_t *to, const uint64_t codes[4], int32_t first, int32_t bits) {
    const uint64_t mask = ((1u << bits) - 1) * EM_EVERY_BYTE;
    uint64_t own[4];
    for (int32_t i = 0; i < 4; i++) own[i] = codes[i] >> first & mask;
    if (bits == 8) {
        for (int32_t i = 0; i < 4; i++) store_pair(to + 2 * i * EM_LINE_BYTES, own[i]);
    } else if (bits == 4) {
        store_pair(to, own[0] | own[2] << 4);
        store_pair(to + 2 * EM_LINE_BYTES, own[1] | own[3] << 4);
    } else {
        const uint64_t word = own[0] | own[1] << 2 | own[2] << 4 | own[3] << 6;
        if (bits == 2) {
            store_pair(to, word);
        } else { /* fields of four columns, not of eight */
            const uint32_t line = (uint32_t)word | (uint32_t)(word >> 32) << 1;
            memcpy(to, &line, 4);
        }
    }
}

static inline void store_codes(uint8_t *to, const uint64_t codes[4], int32_t bits) {
    const int32_t low = bits == 8 ? 8 : bits >= 4 ? 4 : bits >= 2 ? 2 : 1;
    store_plane(to, codes, 0, low);
    if (bits > low) store_plane(to + low * EM_LINE_BYTES, codes, low, bits - low);
}

/* Writes what `pack` has for the rows that the last panel lacks: weights of zero. Scales of m4 are 1, all others 0. */
static void land_missing_rows(const em_part *part, int32_t rows, uint8_t *panel) {
    const em_format_numbers numbers = em_numbers(part->format);
    const int32_t groups = em_group_count(part->columns);
    const em_sections at = em_sections_of(part->format, groups);
    memset(panel, 0, at.end);
    uint64_t codes[4];
    for (int32_t i = 0; i < 4; i++) codes[i] = numbers.zero * EM_EVERY_BYTE;
    for (int32_t group = 0; group < groups; group++) {
        uint8_t *payload = panel + (size_t)group * em_payload_bytes(part->format);
        for (int32_t row = rows; row < EM_PANEL_ROWS; row++) store_codes(payload + 4 * row, codes, numbers.bits);
    }
    if (numbers.scale == EM_SCALE_E8M0) memset(panel + at.scales, 127, at.end - at.scales);
}

/* Lands `rows` rows of blocks of a type, which is a constant wherever this is inlined, as one panel. */
static inline __attribute__((always_inline)) bool land_rows(const em_part *part, em_row_type type, float scale, int32_t rows,
                                                            const uint8_t *from, uint8_t *panel) {
    const em_format_numbers numbers = em_numbers(type.format);
    const int32_t blocks = part->columns / type.columns, groups = type.columns / EM_GROUP_COLUMNS;
    const size_t payload_bytes = em_payload_bytes(type.format), scale_bytes = em_scales_bytes(type.format) / EM_PANEL_ROWS;
    const int32_t factor_count = numbers.factor == EM_FACTOR_NONE ? 0 : groups * numbers.halves;
    const em_sections at = em_sections_of(type.format, blocks * groups);
    const bool whole_row = numbers.scale == EM_SCALE_F32;
    bool finite = !whole_row || is_finite_float(scale);
    for (int32_t block = 0; block < blocks; block++) {
        const size_t of_block = (size_t)block * EM_PANEL_ROWS;
        for (int32_t row = 0; row < rows; row++) {
            const uint8_t *own = from + row * (int64_t)blocks * type.bytes + (int64_t)block * type.bytes;
            uint8_t *payload = panel + (size_t)(block * groups) * payload_bytes + 4 * row;
            for (int32_t group = 0; group < groups; group++) {
                uint64_t codes[4];
                for (int32_t i = 0; i < 4; i++) codes[i] = em_codes(own, type, EM_GROUP_COLUMNS * group + 8 * i);
                store_codes(payload + (size_t)group * payload_bytes, codes, numbers.bits);
            }
            if (!whole_row) {
                memcpy(panel + at.scales + (of_block + (size_t)row) * scale_bytes, own + type.scale, scale_bytes);
                finite &= scale_bytes == 1 ? is_finite_block(own) : is_finite_half(em_load_16(own + type.scale));
            }
            if (numbers.has_minimums) {
                memcpy(panel + at.minimums + (of_block + (size_t)row) * 2, own + type.minimum, 2);
                finite &= is_finite_half(em_load_16(own + type.minimum));
            }
            if (factor_count == 0) continue;
            uint8_t factors[16] = {0}, offsets[16] = {0};
            em_factors(own, type, factor_count, factors, offsets);
            const size_t first = of_block * (size_t)factor_count + (size_t)row;
            for (int32_t i = 0; i < factor_count; i++) {
                panel[at.factors + first + (size_t)i * EM_PANEL_ROWS] = factors[i];
                if (at.end > at.offsets) panel[at.offsets + first + (size_t)i * EM_PANEL_ROWS] = offsets[i];
                if (numbers.factor == EM_FACTOR_E4M3) finite &= factors[i] <= EM_MOST_E4M3;
            }
        }
    }
    if (whole_row) {
        for (int32_t row = 0; row < rows; row++) memcpy(panel + at.scales + 4 * row, &scale, 4);
    }
    memset(panel + at.end, 0, em_panel_bytes(type.format, part->columns) - at.end);
    return finite;
}

/* Lands `rows` rows of blocks as one panel. */
static bool land_blocks(const em_part *part, float scale, int32_t rows, const uint8_t *from, uint8_t *panel) {
    if (em_numbers(part->format).grid != EM_GRID_NONE) {
        return em_land_grid_rows(part->format, part->columns, types[part->type].bytes, rows, from, panel);
    }
    if (rows < EM_PANEL_ROWS) land_missing_rows(part, rows, panel);
    switch (part->type) {
#define EM_LAND(NAME, ...) \
    case EM_ROWS_##NAME: return !is_float(&types[EM_ROWS_##NAME]) && \
        land_rows(part, types[EM_ROWS_##NAME], scale, rows, from, panel);
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
