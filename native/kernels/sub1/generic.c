/* Products with matrices in the code sub1, in plain C: the meaning of sub1/<isa>.c, and the fallback everywhere. */
#include <math.h>

#include "layout.h"

static inline uint16_t word_of(unsigned single) {
    static const uint8_t low[16] = {EM_SUB1_LOW}, high[16] = {EM_SUB1_HIGH};
    return (uint16_t)(low[single] | high[single] << 8);
}

static void take_words(em_sub1_panel *panel, em_sub1_counts counts, em_sub1_words *words) {
    for (size_t i = 0; i < counts.singles; i++) {
        const size_t at = panel->singles + i;
        words->singles[i] = word_of(panel->a[at / 2] >> at % 2 * 4 & 15);
    }
    for (size_t i = 0; i < counts.pairs; i++) {
        const size_t bit = 7 * (panel->pairs + i);
        const unsigned pair = (unsigned)em_load_u16(panel->b + bit / 8) >> bit % 8;
        const unsigned second = ((pair & 7) + (pair >> 4 & 3) + 1) & 7;
        words->pairs[i] = word_of(pair & 15) | word_of(second | (pair >> 3 & 8));
    }
    panel->singles += counts.singles;
    panel->pairs += counts.pairs;
    em_sub1_take_masks(panel, counts.masks, words->masks);
}

/* The lines of the next groups of a panel. */
static void decode(em_sub1_panel *panel, int32_t first, int32_t groups, uint8_t *lines) {
    em_sub1_words words;
    const uint8_t *classes = panel->classes + (size_t)first * EM_SUB1_CLASS_BYTES;
    take_words(panel, em_sub1_count(classes, groups), &words);
    const uint16_t *next[4] = {NULL, words.singles, words.pairs, words.masks};
    for (int32_t g = 0; g < groups; g++) {
        uint8_t *line = lines + (size_t)g * EM_SUB1_LINES_BYTES;
        const uint64_t low = em_load_u64(classes + (size_t)g * EM_SUB1_CLASS_BYTES);
        const uint64_t high = em_load_u64(classes + (size_t)g * EM_SUB1_CLASS_BYTES + 8);
        for (int j = 0; j < EM_SUB1_BLOCKS; j++) {
            const unsigned class = (unsigned)(low >> j & 1) | (unsigned)(high >> j & 1) << 1;
            const uint16_t word = class ? *next[class]++ : 0;
            line[j] = (uint8_t)word;
            line[EM_LINE_BYTES + j] = (uint8_t)(word >> 8);
        }
    }
}

/* Adds the products of some groups' lines and one activation row to the sums of a panel. */
static void add_lines(const uint8_t *lines, const int8_t *x, const em_group *group, int32_t groups, float *sums) {
    float *minus_sums = sums, *plus_sums = sums + EM_PANEL_ROWS;
    for (int32_t g = 0; g < groups; g++, lines += EM_SUB1_LINES_BYTES, x += EM_GROUP_COLUMNS) {
        for (int row = 0; row < EM_PANEL_ROWS; row++) {
            int32_t plus = 0, minus = 0;
            for (int column = 0; column < EM_GROUP_COLUMNS; column++) {
                const int q = column / 4;
                const uint8_t trit = lines[q % 2 * EM_LINE_BYTES + row * 4 + column % 4] >> q / 2 * 2 & 3;
                plus += (trit & 1) * x[column];
                minus += (trit & 2) * x[column];
            }
            plus_sums[row] = fmaf((float)plus, group[g].scale, plus_sums[row]);
            minus_sums[row] = fmaf((float)minus, group[g].scale, minus_sums[row]);
        }
    }
}

static inline void add_rows(const uint8_t *lines, const em_activations *x, const int32_t *rows, int32_t count,
                            int32_t first, int32_t groups, float (*sums)[2 * EM_PANEL_ROWS]) {
    for (int32_t i = 0; i < count; i++) {
        const size_t at = (size_t)rows[i] * (size_t)x->group_count + (size_t)first;
        add_lines(lines, x->values + at * EM_GROUP_COLUMNS, x->groups + at, groups, sums[i]);
    }
}

#include "panels.h"

EM_DEFINE_SUB1_PANELS(generic)
