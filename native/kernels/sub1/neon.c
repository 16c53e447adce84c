/* Products with matrices in the code sub1, with NEON and dot products; words are spread as in sub1/avx2.c. */
#include "../neon.h"
#include "expand.h"
#include "layout.h"

static const uint8_t single_low[16] = {EM_SUB1_LOW}, single_high[16] = {EM_SUB1_HIGH};

INLINE void store_words(uint16_t *words, uint8x16_t low, uint8x16_t high) {
    vst1q_u8((uint8_t *)words, vzip1q_u8(low, high));
    vst1q_u8((uint8_t *)(words + 8), vzip2q_u8(low, high));
}

INLINE void take_singles(em_sub1_panel *panel, size_t count, uint16_t *words) {
    const uint8x16_t low_bytes = vld1q_u8(single_low), high_bytes = vld1q_u8(single_high), nibble = vdupq_n_u8(15);
    const uint8_t *at = panel->a + panel->singles / 2;
    const int odd = panel->singles % 2;
    for (size_t i = 0; i < count; i += 32, at += 16, words += 32) {
        const uint8x16_t upper = vshrq_n_u8(vld1q_u8(at), 4), lower = vandq_u8(vld1q_u8(at + odd), nibble);
        const uint8x16_t first = odd ? upper : lower, second = odd ? lower : upper;
        const uint8x16_t singles[2] = {vzip1q_u8(first, second), vzip2q_u8(first, second)};
        for (int k = 0; k < 2; k++) {
            store_words(words + 16 * k, vqtbl1q_u8(low_bytes, singles[k]), vqtbl1q_u8(high_bytes, singles[k]));
        }
    }
    panel->singles += count;
}

INLINE void take_pairs(em_sub1_panel *panel, size_t count, uint16_t *words) {
    const uint8x16_t low_bytes = vld1q_u8(single_low), high_bytes = vld1q_u8(single_high);
    size_t bit = 7 * panel->pairs;
    for (size_t i = 0; i < count; i += 16, bit += 112, words += 16) {
        const uint64_t first_eight = em_load_u64(panel->b + bit / 8) >> bit % 8;
        const uint64_t last_eight = em_load_u64(panel->b + bit / 8 + 7) >> bit % 8;
        const uint8x16_t pairs = vcombine_u8(vcreate_u8(em_sub1_sevens(first_eight)), vcreate_u8(em_sub1_sevens(last_eight)));
        const uint8x16_t first = vandq_u8(pairs, vdupq_n_u8(15));
        const uint8x16_t distance = vaddq_u8(vandq_u8(vshrq_n_u8(pairs, 4), vdupq_n_u8(3)), vdupq_n_u8(1));
        const uint8x16_t position = vandq_u8(vaddq_u8(pairs, distance), vdupq_n_u8(7));
        const uint8x16_t second = vorrq_u8(position, vandq_u8(vshrq_n_u8(pairs, 3), vdupq_n_u8(8)));
        store_words(words, vorrq_u8(vqtbl1q_u8(low_bytes, first), vqtbl1q_u8(low_bytes, second)),
                    vorrq_u8(vqtbl1q_u8(high_bytes, first), vqtbl1q_u8(high_bytes, second)));
    }
    panel->pairs += count;
}

/* Of blocks 8k to 8k + 7 what all classes have, in lines 0 and 1. */
INLINE uint64x2_t eight_blocks(const em_sub1_spread *classes, int k) {
    uint8x16_t all = vdupq_n_u8(0);
    for (int class = 0; class < 3; class++) {
        const em_sub1_spread *of = &classes[class];
        const uint8x16_t places = vld1q_u8(em_sub1_places[of->members >> 8 * k & 255]);
        all = vorrq_u8(all, vqtbl1q_u8(vld1q_u8((const uint8_t *)(of->words + (of->before >> 8 * k & 255))), places));
    }
    return vreinterpretq_u64_u8(all);
}

static void decode(em_sub1_panel *panel, int32_t first, int32_t groups, uint8_t *lines) {
    em_sub1_words words;
    const uint8_t *classes = panel->classes + (size_t)first * EM_SUB1_CLASS_BYTES;
    const em_sub1_counts counts = em_sub1_count(classes, groups);
    take_singles(panel, counts.singles, words.singles);
    take_pairs(panel, counts.pairs, words.pairs);
    em_sub1_take_masks(panel, counts.masks, words.masks);
    const uint16_t *singles = words.singles, *pairs = words.pairs, *masks = words.masks;
    for (int32_t g = 0; g < groups; g++, lines += EM_SUB1_LINES_BYTES) {
        const uint64_t low = em_load_u64(classes + (size_t)g * EM_SUB1_CLASS_BYTES);
        const uint64_t high = em_load_u64(classes + (size_t)g * EM_SUB1_CLASS_BYTES + 8);
        const em_sub1_spread all[3] = {em_sub1_spread_of(&singles, low & ~high), em_sub1_spread_of(&pairs, high & ~low), em_sub1_spread_of(&masks, low & high)};
        for (int k = 0; k < 8; k += 2) {
            const uint64x2_t even = eight_blocks(all, k), odd = eight_blocks(all, k + 1);
            vst1q_u8(lines + 8 * k, vreinterpretq_u8_u64(vzip1q_u64(even, odd)));
            vst1q_u8(lines + EM_LINE_BYTES + 8 * k, vreinterpretq_u8_u64(vzip2q_u64(even, odd)));
        }
    }
}

INLINE int32x4_t add_products(int32x4_t sum, uint8x16_t trits, int8x16_t x, int lane) {
    const int8x16_t weights = vreinterpretq_s8_u8(trits);
    switch (lane) {
    case 0: return vdotq_laneq_s32(sum, weights, x, 0);
    case 1: return vdotq_laneq_s32(sum, weights, x, 1);
    case 2: return vdotq_laneq_s32(sum, weights, x, 2);
    default: return vdotq_laneq_s32(sum, weights, x, 3);
    }
}

/* One activation row times the lines of some groups, for the four matrix rows from `row` on. */
INLINE void add_four_rows(const uint8_t *lines, const int8_t *values, const em_group *group, int32_t groups, int row,
                          float *sums) {
    float32x4_t minus_sums = vld1q_f32(sums + row), plus_sums = vld1q_f32(sums + EM_PANEL_ROWS + row);
    for (int32_t g = 0; g < groups; g++) {
        const uint8_t *line = lines + (size_t)g * EM_SUB1_LINES_BYTES + 4 * row;
        const int8x16_t x[2] = {vld1q_s8(values + g * EM_GROUP_COLUMNS), vld1q_s8(values + g * EM_GROUP_COLUMNS + 16)};
        int32x4_t plus = vdupq_n_s32(0), minus = vdupq_n_s32(0);
        for (int odd = 0; odd < 2; odd++) {
            uint8x16_t trits = vld1q_u8(line + odd * EM_LINE_BYTES);
            for (int field = 0; field < 4; field++, trits = vshrq_n_u8(trits, 2)) {
                const int lane = field % 2 * 2 + odd;
                plus = add_products(plus, vandq_u8(trits, vdupq_n_u8(1)), x[field / 2], lane);
                minus = add_products(minus, vandq_u8(trits, vdupq_n_u8(2)), x[field / 2], lane);
            }
        }
        const float32x4_t scale = vdupq_n_f32(group[g].scale);
        plus_sums = vfmaq_f32(plus_sums, vcvtq_f32_s32(plus), scale);
        minus_sums = vfmaq_f32(minus_sums, vcvtq_f32_s32(minus), scale);
    }
    vst1q_f32(sums + row, minus_sums);
    vst1q_f32(sums + EM_PANEL_ROWS + row, plus_sums);
}

static void add_rows(const uint8_t *lines, const em_activations *x, const int32_t *rows, int32_t count, int32_t first,
                     int32_t groups, float (*sums)[2 * EM_PANEL_ROWS]) {
    for (int32_t i = 0; i < count; i++) {
        const size_t at = (size_t)rows[i] * (size_t)x->group_count + (size_t)first;
        for (int row = 0; row < EM_PANEL_ROWS; row += 4) {
            add_four_rows(lines, x->values + at * EM_GROUP_COLUMNS, x->groups + at, groups, row, sums[i]);
        }
    }
}

#include "panels.h"

EM_DEFINE_SUB1_PANELS(neon)
