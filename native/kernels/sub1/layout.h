/* Matrices in the code sub1 (edgemoe/kernels/sub1.py draws it): where what lies, and the lines that kernels make of it.
 *
 * A line is 64 bytes, one for each block of a group: byte j has, of block j, the trits of even position (line 0) or of odd
 * position (line 1), two bits for each: the lower bit tells that it is plus, the higher one that it is minus. So the
 * lines of a group are those of a format of 2 bits: trit q of block j is column j % 4 + 4q of row j / 4.
 *
 * The product of a panel and an activation row, for each row of the panel, over the groups in order, where the integers
 * `plus` and `minus` are the sums of the activations that meet a plus and a minus:
 *     plus_sum = fma((float)plus, input_scale, plus_sum), minus_sum = fma((float)(2 * minus), input_scale, minus_sum)
 *     result = fma(minus_level / 2, minus_sum, plus_level * plus_sum) */
#ifndef EDGEMOE_SUB1_LAYOUT_H
#define EDGEMOE_SUB1_LAYOUT_H

#include <string.h>

#include "../half.h"
#include "../kernels.h"

enum {
    EM_SUB1_HEADER_BYTES = 16,
    EM_SUB1_TAIL_BYTES = 64, /* which kernels may read behind a stream */
    EM_SUB1_CLASS_BYTES = 16,
    EM_SUB1_BLOCKS = 64,
    EM_SUB1_LINES_BYTES = 2 * EM_LINE_BYTES, /* of a group */
    EM_SUB1_GROUPS = 32,                     /* that are decoded at a time */
    EM_SUB1_SLACK = 64,                      /* words that a vector may write behind those that are wanted */
};

static inline uint16_t em_load_u16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t em_load_u32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t em_load_u64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline size_t em_sub1_level_bytes(const uint8_t *matrix) { return em_load_u32(matrix + 12); }

/* Where panel `panel` begins; the number after the last one is where that ends. */
static inline size_t em_sub1_start(const uint8_t *matrix, int32_t panel) {
    return em_load_u32(matrix + EM_SUB1_HEADER_BYTES + 4 * (size_t)panel);
}

/* The bytes of a matrix that lies in `room` bytes; 0 if it does not have these rows and columns, or if its panels overlap or
 * lie outside. What a panel has inside, em_sub1_open checks. */
static inline size_t em_sub1_bytes(const uint8_t *matrix, int32_t rows, int32_t columns, size_t room) {
    const int32_t panels = em_panel_count(rows);
    const size_t first = EM_SUB1_HEADER_BYTES + 4 * ((size_t)panels + 1);
    if (room < first + EM_SUB1_TAIL_BYTES || memcmp(matrix, "sub1", 4) != 0) return 0;
    const size_t level_bytes = em_sub1_level_bytes(matrix);
    if (em_load_u32(matrix + 4) != (uint32_t)rows || em_load_u32(matrix + 8) != (uint32_t)columns) return 0;
    if ((level_bytes != 2 && level_bytes != 4) || em_sub1_start(matrix, 0) != first) return 0;
    const size_t least = 2 * EM_PANEL_ROWS * level_bytes + (size_t)em_group_count(columns) * EM_SUB1_CLASS_BYTES;
    for (int32_t p = 0; p < panels; p++) {
        if (em_sub1_start(matrix, p + 1) < em_sub1_start(matrix, p) + least) return 0;
    }
    const size_t end = em_sub1_start(matrix, panels) + EM_SUB1_TAIL_BYTES;
    return end <= room ? end : 0;
}

/* A panel: what its streams have of the groups from some group on. */
typedef struct em_sub1_panel {
    const uint8_t *levels, *classes, *a, *b, *c, *s;
    size_t singles, pairs, masks, signs; /* that have been taken of each stream */
    size_t level_bytes;
} em_sub1_panel;

/* How many blocks of some groups have each class. */
typedef struct em_sub1_counts {
    size_t singles, pairs, masks;
} em_sub1_counts;

static inline em_sub1_counts em_sub1_count(const uint8_t *classes, int32_t groups) {
    em_sub1_counts counts = {0, 0, 0};
    for (int32_t g = 0; g < groups; g++) {
        const uint64_t low = em_load_u64(classes + (size_t)g * EM_SUB1_CLASS_BYTES);
        const uint64_t high = em_load_u64(classes + (size_t)g * EM_SUB1_CLASS_BYTES + 8);
        counts.singles += (size_t)__builtin_popcountll(low & ~high);
        counts.pairs += (size_t)__builtin_popcountll(high & ~low);
        counts.masks += (size_t)__builtin_popcountll(low & high);
    }
    return counts;
}

/* A panel at its first group; 0 if it has another length than its classes say. Its matrix has passed em_sub1_bytes. */
static inline int em_sub1_open(const em_matrix *matrix, int32_t number, em_sub1_panel *panel) {
    const uint8_t *at = matrix->data + em_sub1_start(matrix->data, number);
    const size_t bytes = em_sub1_start(matrix->data, number + 1) - em_sub1_start(matrix->data, number);
    const int32_t groups = em_group_count(matrix->columns);
    const size_t level_bytes = em_sub1_level_bytes(matrix->data);
    const size_t classes = 2 * EM_PANEL_ROWS * level_bytes, a = classes + (size_t)groups * EM_SUB1_CLASS_BYTES;
    const em_sub1_counts counts = em_sub1_count(at + classes, groups);
    const size_t b = a + (counts.singles + 1) / 2, c = b + (7 * counts.pairs + 7) / 8, s = c + counts.masks;
    if (s > bytes) return 0;
    size_t signs = 0;
    for (size_t i = c; i < s; i++) signs += (size_t)__builtin_popcount(at[i]);
    if (s + (signs + 7) / 8 != bytes) return 0;
    *panel = (em_sub1_panel){.levels = at, .classes = at + classes, .a = at + a, .b = at + b, .c = at + c, .s = at + s,
                             .level_bytes = level_bytes};
    return 1;
}

/* The 16 minus levels of a panel, halved, and its 16 plus levels. */
static inline void em_sub1_levels(const em_sub1_panel *panel, float *half_minus, float *plus) {
    for (int i = 0; i < 2 * EM_PANEL_ROWS; i++) {
        const uint8_t *at = panel->levels + (size_t)i * panel->level_bytes;
        const float level = panel->level_bytes == 2 ? em_half_to_float(em_load_u16(at)) : em_from_bits(em_load_u32(at));
        if (i < EM_PANEL_ROWS) half_minus[i] = level * 0.5f;
        else plus[i - EM_PANEL_ROWS] = level;
    }
}

/* ---- streams as words ----------------------------------------------------------------------------------
 *
 * A word is what a block has in line 0 (its low byte) and in line 1. Groups, EM_SUB1_GROUPS at most, are decoded in two
 * steps: the streams of each class become words, one after the other; then the classes put them in their places. */

typedef struct em_sub1_words {
    uint16_t singles[EM_SUB1_GROUPS * EM_SUB1_BLOCKS + EM_SUB1_SLACK];
    uint16_t pairs[EM_SUB1_GROUPS * EM_SUB1_BLOCKS + EM_SUB1_SLACK];
    uint16_t masks[EM_SUB1_GROUPS * EM_SUB1_BLOCKS + EM_SUB1_SLACK];
} em_sub1_words;

/* The bytes of the word of one non-zero, by its position and, in bit 3, whether it is plus. */
#define EM_SUB1_LOW 2, 0, 8, 0, 32, 0, 128, 0, 1, 0, 4, 0, 16, 0, 64, 0
#define EM_SUB1_HIGH 0, 2, 0, 8, 0, 32, 0, 128, 0, 1, 0, 4, 0, 16, 0, 64

/* Seven bytes as eight fields of 7 bits, one in each byte of the result. */
static inline uint64_t em_sub1_sevens(uint64_t x) {
    x = (x & 0x000000000fffffff) | (x & 0x00fffffff0000000) << 4;
    x = (x & 0x00003fff00003fff) | (x & 0x0fffc0000fffc000) << 2;
    return (x & 0x007f007f007f007f) | (x & 0x3f803f803f803f80) << 1;
}

/* Bit r of `bits` goes to where `mask` has its bit number r, the lowest being number 0; others become 0. Bits move by 4, 2
 * and 1 places, so that compilers do this for many bytes at a time. Source: expand, in Warren's Hacker's Delight (7-5). */
static inline uint8_t em_sub1_deposit(uint8_t bits, uint8_t mask) {
    const uint8_t wanted = mask;
    uint8_t gaps = (uint8_t)((uint8_t)~mask << 1), moves[3];
    for (int i = 0; i < 3; i++) {
        uint8_t odd = gaps ^ (uint8_t)(gaps << 1);
        odd ^= (uint8_t)(odd << 2);
        odd ^= (uint8_t)(odd << 4);
        moves[i] = odd & mask;
        mask = (mask ^ moves[i]) | (uint8_t)(moves[i] >> (1 << i));
        gaps &= (uint8_t)~odd;
    }
    for (int i = 2; i >= 0; i--) bits = (bits & (uint8_t)~moves[i]) | ((uint8_t)(bits << (1 << i)) & moves[i]);
    return bits & wanted;
}

/* Makes words of the next `count` masks and of the signs of their bits. */
static inline void em_sub1_take_masks(em_sub1_panel *panel, size_t count, uint16_t *words) {
    enum { TOGETHER = 64 };
    const uint8_t *masks = panel->c + panel->masks;
    size_t bit = panel->signs;
    for (size_t done = 0; done < count; done += TOGETHER, masks += TOGETHER, words += TOGETHER) {
        const size_t now = count - done < TOGETHER ? count - done : TOGETHER;
        uint8_t signs[TOGETHER] = {0}, own[TOGETHER] = {0};
        memcpy(own, masks, now);
        for (size_t i = 0; i < now; i++) {
            signs[i] = (uint8_t)(em_load_u16(panel->s + bit / 8) >> bit % 8);
            bit += (size_t)__builtin_popcount(own[i]);
        }
        for (size_t i = 0; i < TOGETHER; i++) {
            const uint8_t plus = em_sub1_deposit(signs[i], own[i]), minus = own[i] ^ plus;
            const uint8_t even = (plus & 0x55) | (uint8_t)((minus & 0x55) << 1), odd = (plus >> 1 & 0x55) | (minus & 0xaa);
            words[i] = (uint16_t)(even | odd << 8);
        }
    }
    panel->masks += count;
    panel->signs = bit;
}

#endif
