/* Trits to the code sub1 and back (edgemoe/kernels/sub1.py draws it), and the check of a matrix that has landed.
 *
 * A row's trits of a group become two words of 32 bits, of which bit i tells whether column i is a non-zero, and a plus;
 * every fourth bit of them, from bit c on, is block c of the row. */
#include <string.h>

#include "../kernels/sub1/layout.h"

enum { BLOCK_TRITS = 8, ROW_BLOCKS = 4, LEVELS = 2 * EM_PANEL_ROWS };

static size_t panel_head_bytes(int32_t columns, int32_t level_bytes) {
    return (size_t)LEVELS * (size_t)level_bytes + (size_t)em_group_count(columns) * EM_SUB1_CLASS_BYTES;
}

uint64_t em_sub1_panel_bytes(int32_t columns, int32_t level_bytes) {
    if (columns < 1 || (level_bytes != 2 && level_bytes != 4)) return 0;
    enum { OF_BLOCK = 2 }; /* most: a mask, and eight signs */
    return panel_head_bytes(columns, level_bytes) + (uint64_t)em_group_count(columns) * EM_SUB1_BLOCKS * OF_BLOCK;
}

/* ---- encoding ------------------------------------------------------------------------------------------ */

/* Fields of a few bits, one after the other, in bytes from the lowest bit on. */
typedef struct bit_writer {
    uint8_t *at;
    uint32_t pending;
    int count; /* of pending bits, below 8 */
} bit_writer;

static inline void put_bits(bit_writer *w, uint32_t bits, int width) {
    w->pending |= bits << w->count;
    w->count += width;
    for (; w->count >= 8; w->count -= 8, w->pending >>= 8) *w->at++ = (uint8_t)w->pending;
}

static inline uint8_t *end_bits(bit_writer *w) {
    if (w->count) *w->at++ = (uint8_t)w->pending;
    return w->at;
}

/* Bits c, c + 4, ... of a word, as the bits of a byte. */
static inline uint8_t every_fourth(uint32_t word, int c) {
    const uint32_t bits = word >> c & 0x11111111; /* 1 in each nibble */
    const uint32_t pairs = (bits | bits >> 3) & 0x03030303, fours = (pairs | pairs >> 6) & 0x000f000f;
    return (uint8_t)(fours | fours >> 12);
}

/* The non-zeros and the pluses of all blocks of a group, (EM_SUB1_BLOCKS). */
static void take_group(const int8_t *trits, int32_t rows, int32_t columns, int32_t group, uint8_t *masks, uint8_t *pluses) {
    const int32_t first = group * EM_GROUP_COLUMNS, left = columns - first;
    const int32_t width = left < EM_GROUP_COLUMNS ? left : EM_GROUP_COLUMNS;
    memset(masks, 0, EM_SUB1_BLOCKS);
    memset(pluses, 0, EM_SUB1_BLOCKS);
    for (int32_t row = 0; row < rows; row++) {
        const int8_t *own = trits + (size_t)row * (size_t)columns + (size_t)first;
        uint32_t some = 0, plus = 0;
        for (int32_t i = 0; i < width; i++) {
            some |= (uint32_t)(own[i] != 0) << i;
            plus |= (uint32_t)(own[i] > 0) << i;
        }
        for (int c = 0; c < ROW_BLOCKS; c++) {
            masks[row * ROW_BLOCKS + c] = every_fourth(some, c);
            pluses[row * ROW_BLOCKS + c] = every_fourth(plus, c);
        }
    }
}

/* The 7 bits of a block of two non-zeros: the one from which the other is at most 4 places away, going round. */
static inline uint32_t pair_of(uint8_t mask, uint8_t plus) {
    int first = __builtin_ctz(mask), second = 31 - __builtin_clz((uint32_t)mask);
    if (second - first > 4) {
        const int before = first;
        first = second;
        second = before;
    }
    const uint32_t distance = (uint32_t)(second - first) & (BLOCK_TRITS - 1);
    return (uint32_t)first | (uint32_t)(plus >> first & 1) << 3 | (distance - 1) << 4 | (uint32_t)(plus >> second & 1) << 6;
}

/* What the groups of a panel take of each stream: blocks of each class, and the non-zeros of masks. */
typedef struct stream_counts {
    size_t singles, pairs, masks, signs;
} stream_counts;

static stream_counts count_panel(const int8_t *trits, int32_t rows, int32_t columns) {
    stream_counts counts = {0, 0, 0, 0};
    uint8_t masks[EM_SUB1_BLOCKS], pluses[EM_SUB1_BLOCKS];
    for (int32_t g = 0; g < em_group_count(columns); g++) {
        take_group(trits, rows, columns, g, masks, pluses);
        for (int b = 0; b < EM_SUB1_BLOCKS; b++) {
            const int some = __builtin_popcount(masks[b]);
            counts.singles += some == 1;
            counts.pairs += some == 2;
            counts.masks += some > 2;
            counts.signs += some > 2 ? (size_t)some : 0;
        }
    }
    return counts;
}

static size_t streams_bytes(stream_counts n) {
    return (n.singles + 1) / 2 + (7 * n.pairs + 7) / 8 + n.masks + (n.signs + 7) / 8;
}

/* Writes a panel whose streams have these counts behind its levels. */
static void pack_panel(const int8_t *trits, int32_t rows, int32_t columns, stream_counts counts, uint8_t *classes) {
    uint8_t *a = classes + (size_t)em_group_count(columns) * EM_SUB1_CLASS_BYTES, *b = a + (counts.singles + 1) / 2;
    uint8_t *c = b + (7 * counts.pairs + 7) / 8;
    bit_writer singles = {a, 0, 0}, pairs = {b, 0, 0}, signs = {c + counts.masks, 0, 0};
    uint8_t masks[EM_SUB1_BLOCKS], pluses[EM_SUB1_BLOCKS];
    for (int32_t g = 0; g < em_group_count(columns); g++, classes += EM_SUB1_CLASS_BYTES) {
        take_group(trits, rows, columns, g, masks, pluses);
        memset(classes, 0, EM_SUB1_CLASS_BYTES);
        for (int block = 0; block < EM_SUB1_BLOCKS; block++) {
            const uint8_t mask = masks[block], plus = pluses[block];
            const int some = __builtin_popcount(mask), class = some < 3 ? some : 3;
            classes[block / 8] |= (uint8_t)((class & 1) << block % 8);
            classes[8 + block / 8] |= (uint8_t)((class >> 1) << block % 8);
            if (class == 1) {
                put_bits(&singles, (uint32_t)__builtin_ctz(mask) | (uint32_t)(plus != 0) << 3, 4);
            } else if (class == 2) {
                put_bits(&pairs, pair_of(mask, plus), 7);
            } else if (class == 3) {
                *c++ = mask;
                for (uint32_t left = mask; left; left &= left - 1) put_bits(&signs, plus >> __builtin_ctz(left) & 1, 1);
            }
        }
    }
    end_bits(&singles);
    end_bits(&pairs);
    end_bits(&signs);
}

int32_t em_sub1_pack(const int8_t *trits, int32_t rows, int32_t columns, const uint8_t *levels, int32_t level_bytes,
                     uint8_t *out, uint64_t *ends) {
    if (!trits || !ends || rows < 1 || em_sub1_panel_bytes(columns, level_bytes) == 0 || (out && !levels)) {
        return EM_BAD_ARGUMENT;
    }
    const size_t head = panel_head_bytes(columns, level_bytes), of_levels = (size_t)LEVELS * (size_t)level_bytes;
    size_t end = 0;
    for (int32_t first = 0, panel = 0; first < rows; first += EM_PANEL_ROWS, panel++) {
        const int32_t count = rows - first < EM_PANEL_ROWS ? rows - first : EM_PANEL_ROWS;
        const int8_t *own = trits + (size_t)first * (size_t)columns;
        const stream_counts counts = count_panel(own, count, columns);
        if (out) {
            memcpy(out + end, levels + (size_t)panel * of_levels, of_levels);
            pack_panel(own, count, columns, counts, out + end + of_levels);
        }
        end += head + streams_bytes(counts);
        ends[panel] = end;
    }
    return EM_OK;
}

/* ---- decoding ------------------------------------------------------------------------------------------ */

static inline uint32_t bits_at(const uint8_t *stream, size_t bit, int width) {
    return (uint32_t)em_load_u16(stream + bit / 8) >> bit % 8 & ((1u << width) - 1);
}

static inline int8_t sign_of(uint32_t plus) { return plus & 1 ? 1 : -1; }

/* Writes the trits of the next block of a class to (BLOCK_TRITS). */
static void take_block(em_sub1_panel *panel, int class, int8_t *block) {
    if (class == 1) {
        const uint32_t single = bits_at(panel->a, 4 * panel->singles++, 4);
        block[single & 7] = sign_of(single >> 3);
    } else if (class == 2) {
        const uint32_t pair = bits_at(panel->b, 7 * panel->pairs++, 7), first = pair & 7;
        block[first] = sign_of(pair >> 3);
        block[(first + (pair >> 4 & 3) + 1) & 7] = sign_of(pair >> 6);
    } else {
        for (uint32_t left = panel->c[panel->masks++]; left; left &= left - 1) {
            block[__builtin_ctz(left)] = sign_of(bits_at(panel->s, panel->signs++, 1));
        }
    }
}

static void unpack_panel(em_sub1_panel *panel, int32_t rows, int32_t columns, int8_t *trits) {
    memset(trits, 0, (size_t)rows * (size_t)columns);
    for (int32_t g = 0; g < em_group_count(columns); g++) {
        const uint8_t *classes = panel->classes + (size_t)g * EM_SUB1_CLASS_BYTES;
        const uint64_t low = em_load_u64(classes), high = em_load_u64(classes + 8);
        for (uint64_t left = low | high; left; left &= left - 1) {
            const int number = __builtin_ctzll(left), row = number / ROW_BLOCKS;
            int8_t block[BLOCK_TRITS] = {0};
            take_block(panel, (int)(low >> number & 1) + 2 * (int)(high >> number & 1), block);
            if (row >= rows) continue;
            int32_t column = g * EM_GROUP_COLUMNS + number % ROW_BLOCKS;
            for (int q = 0; q < BLOCK_TRITS && column < columns; q++, column += ROW_BLOCKS) {
                trits[(size_t)row * (size_t)columns + (size_t)column] = block[q];
            }
        }
    }
}

/* Opens a matrix that lies in so many bytes; 0 where it is none of this shape. */
static int open_matrix(const uint8_t *data, uint64_t bytes, int32_t rows, int32_t columns, em_matrix *matrix) {
    if (!data || rows < 1 || columns < 1) return 0;
    *matrix = (em_matrix){data, EM_SUB1, rows, columns};
    return em_sub1_bytes(data, rows, columns, (size_t)bytes) != 0;
}

int32_t em_sub1_check(const uint8_t *data, uint64_t bytes, int32_t rows, int32_t columns, uint64_t *used) {
    em_matrix matrix;
    if (!used || !open_matrix(data, bytes, rows, columns, &matrix)) return EM_BAD_RECORD;
    for (int32_t p = 0; p < em_panel_count(rows); p++) {
        em_sub1_panel panel;
        if (!em_sub1_open(&matrix, p, &panel)) return EM_BAD_RECORD;
        for (int i = 0; i < LEVELS; i++) { /* finite */
            const uint8_t *at = panel.levels + (size_t)i * panel.level_bytes;
            const uint32_t exponent = panel.level_bytes == 2 ? em_load_u16(at) >> 10 & 31u : em_load_u32(at) >> 23 & 255u;
            if (exponent == (panel.level_bytes == 2 ? 31u : 255u)) return EM_BAD_RECORD;
        }
    }
    *used = em_sub1_bytes(data, rows, columns, (size_t)bytes);
    return EM_OK;
}

int32_t em_sub1_unpack(const uint8_t *data, uint64_t bytes, int32_t rows, int32_t columns, int8_t *trits, float *levels) {
    em_matrix matrix;
    if (!trits || !levels || !open_matrix(data, bytes, rows, columns, &matrix)) return EM_BAD_RECORD;
    for (int32_t p = 0; p < em_panel_count(rows); p++) {
        em_sub1_panel panel;
        if (!em_sub1_open(&matrix, p, &panel)) return EM_BAD_RECORD;
        const int32_t first = p * EM_PANEL_ROWS, count = rows - first < EM_PANEL_ROWS ? rows - first : EM_PANEL_ROWS;
        unpack_panel(&panel, count, columns, trits + (size_t)first * (size_t)columns);
        for (int32_t i = 0; i < 2 * count; i++) { /* (rows, 2) from 16 minus, then 16 plus levels */
            const uint8_t *at = panel.levels + (size_t)(i % 2 * EM_PANEL_ROWS + i / 2) * panel.level_bytes;
            levels[2 * first + i] = panel.level_bytes == 2 ? em_half_to_float(em_load_u16(at)) : em_from_bits(em_load_u32(at));
        }
    }
    return EM_OK;
}
