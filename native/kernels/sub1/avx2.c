/* Products with matrices in the code sub1, with AVX2.
 *
 * Words of a class become those of a group's blocks by byte shuffles: of 8 blocks, the bits of the class choose a row of
 * a table, which spreads the next words of the stream; where there is no word it writes zeros, so that what the three
 * classes have is put together by "or". (pdep would spread bytes too, but is slow on processors before Zen 3, and needs
 * more instructions here.) */
#include <immintrin.h>

#include "expand.h"
#include "layout.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m128i load(const void *at) { return _mm_loadu_si128((const __m128i *)at); }

INLINE void store(void *at, __m128i value) { _mm_storeu_si128((__m128i *)at, value); }

static const uint8_t single_low[16] = {EM_SUB1_LOW}, single_high[16] = {EM_SUB1_HIGH};

INLINE void store_words(uint16_t *words, __m128i low, __m128i high) {
    store(words, _mm_unpacklo_epi8(low, high));
    store(words + 8, _mm_unpackhi_epi8(low, high));
}

INLINE void take_singles(em_sub1_panel *panel, size_t count, uint16_t *words) {
    const __m128i low_bytes = load(single_low), high_bytes = load(single_high), nibble = _mm_set1_epi8(15);
    const uint8_t *at = panel->a + panel->singles / 2;
    const int odd = panel->singles % 2;
    for (size_t i = 0; i < count; i += 32, at += 16, words += 32) {
        const __m128i here = load(at), upper = _mm_and_si128(_mm_srli_epi16(here, 4), nibble);
        const __m128i lower = _mm_and_si128(load(at + odd), nibble);
        const __m128i first = odd ? upper : lower, second = odd ? lower : upper;
        const __m128i singles[2] = {_mm_unpacklo_epi8(first, second), _mm_unpackhi_epi8(first, second)};
        for (int k = 0; k < 2; k++) {
            store_words(words + 16 * k, _mm_shuffle_epi8(low_bytes, singles[k]), _mm_shuffle_epi8(high_bytes, singles[k]));
        }
    }
    panel->singles += count;
}

INLINE void take_pairs(em_sub1_panel *panel, size_t count, uint16_t *words) {
    const __m128i low_bytes = load(single_low), high_bytes = load(single_high);
    const __m128i seven = _mm_set1_epi8(7), eight = _mm_set1_epi8(8), nibble = _mm_set1_epi8(15);
    const __m128i three = _mm_set1_epi8(3), one = _mm_set1_epi8(1);
    size_t bit = 7 * panel->pairs;
    for (size_t i = 0; i < count; i += 16, bit += 112, words += 16) {
        const uint64_t first_eight = em_load_u64(panel->b + bit / 8) >> bit % 8;
        const uint64_t last_eight = em_load_u64(panel->b + bit / 8 + 7) >> bit % 8;
        const __m128i pairs = _mm_set_epi64x((long long)em_sub1_sevens(last_eight), (long long)em_sub1_sevens(first_eight));
        const __m128i first = _mm_and_si128(pairs, nibble);
        const __m128i distance = _mm_add_epi8(_mm_and_si128(_mm_srli_epi16(pairs, 4), three), one);
        const __m128i position = _mm_and_si128(_mm_add_epi8(pairs, distance), seven);
        const __m128i second = _mm_or_si128(position, _mm_and_si128(_mm_srli_epi16(pairs, 3), eight));
        store_words(words,
                    _mm_or_si128(_mm_shuffle_epi8(low_bytes, first), _mm_shuffle_epi8(low_bytes, second)),
                    _mm_or_si128(_mm_shuffle_epi8(high_bytes, first), _mm_shuffle_epi8(high_bytes, second)));
    }
    panel->pairs += count;
}

/* Of blocks 8k to 8k + 7 what one class has, in lines 0 and 1. */
INLINE __m128i eight_blocks(const em_sub1_spread *of, int k) {
    const __m128i places = load(em_sub1_places[of->members >> 8 * k & 255]);
    return _mm_shuffle_epi8(load(of->words + (of->before >> 8 * k & 255)), places);
}

/* Blocks 8k on, and 16 blocks later: what all classes have. */
INLINE __m256i twice_eight_blocks(const em_sub1_spread *classes, int k) {
    __m256i all = _mm256_setzero_si256();
    for (int class = 0; class < 3; class++) {
        const __m128i first = eight_blocks(&classes[class], k), second = eight_blocks(&classes[class], k + 2);
        all = _mm256_or_si256(all, _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1));
    }
    return all;
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
        for (int side = 0; side < 2; side++) {
            const __m256i even = twice_eight_blocks(all, 4 * side), odd = twice_eight_blocks(all, 4 * side + 1);
            __m256i *to = (__m256i *)(void *)(lines + side * 32);
            _mm256_store_si256(to, _mm256_unpacklo_epi64(even, odd));
            _mm256_store_si256(to + 2, _mm256_unpackhi_epi64(even, odd));
        }
    }
}

/* Sums of activations, as int16, that meet a plus and, doubled, a minus: those of 8 rows, in two parts each. */
typedef struct sums_of_side {
    __m256i plus, minus;
} sums_of_side;

INLINE __m256i add_products(__m256i sum, __m256i trits, __m256i x) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(trits, x));
}

/* `count` activation rows times the lines of some groups; the count is known when this is compiled. */
INLINE void add_some_rows(const uint8_t *lines, const em_activations *x, const int32_t *rows, int count, int32_t first,
                          int32_t groups, float (*sums)[2 * EM_PANEL_ROWS]) {
    const __m256i one = _mm256_set1_epi8(1), two = _mm256_set1_epi8(2), ones = _mm256_set1_epi16(1);
    const int8_t *values[4];
    const em_group *group[4];
    for (int i = 0; i < count; i++) {
        const size_t at = (size_t)rows[i] * (size_t)x->group_count + (size_t)first;
        values[i] = x->values + at * EM_GROUP_COLUMNS;
        group[i] = x->groups + at;
    }
    for (int side = 0; side < 2; side++) {
        const uint8_t *line = lines + side * 32;
        __m256 plus_sums[4], minus_sums[4];
        for (int i = 0; i < count; i++) {
            minus_sums[i] = _mm256_loadu_ps(sums[i] + 8 * side);
            plus_sums[i] = _mm256_loadu_ps(sums[i] + EM_PANEL_ROWS + 8 * side);
        }
        for (int32_t g = 0; g < groups; g++, line += EM_SUB1_LINES_BYTES) {
            sums_of_side found[4];
            for (int i = 0; i < count; i++) found[i] = (sums_of_side){_mm256_setzero_si256(), _mm256_setzero_si256()};
            for (int odd = 0; odd < 2; odd++) {
                const __m256i all = _mm256_load_si256((const __m256i *)(const void *)(line + odd * EM_LINE_BYTES));
                for (int field = 0; field < 4; field++) {
                    const __m256i trits = _mm256_srli_epi16(all, 2 * field);
                    const __m256i plus = _mm256_and_si256(trits, one), minus = _mm256_and_si256(trits, two);
                    for (int i = 0; i < count; i++) {
                        int32_t four;
                        memcpy(&four, values[i] + g * EM_GROUP_COLUMNS + 8 * field + 4 * odd, sizeof four);
                        const __m256i quad = _mm256_set1_epi32(four);
                        found[i].plus = add_products(found[i].plus, plus, quad);
                        found[i].minus = add_products(found[i].minus, minus, quad);
                    }
                }
            }
            for (int i = 0; i < count; i++) {
                const __m256 scale = _mm256_set1_ps(group[i][g].scale);
                const __m256 plus = _mm256_cvtepi32_ps(_mm256_madd_epi16(found[i].plus, ones));
                const __m256 minus = _mm256_cvtepi32_ps(_mm256_madd_epi16(found[i].minus, ones));
                plus_sums[i] = _mm256_fmadd_ps(plus, scale, plus_sums[i]);
                minus_sums[i] = _mm256_fmadd_ps(minus, scale, minus_sums[i]);
            }
        }
        for (int i = 0; i < count; i++) {
            _mm256_storeu_ps(sums[i] + 8 * side, minus_sums[i]);
            _mm256_storeu_ps(sums[i] + EM_PANEL_ROWS + 8 * side, plus_sums[i]);
        }
    }
}

static void add_rows(const uint8_t *lines, const em_activations *x, const int32_t *rows, int32_t count, int32_t first,
                     int32_t groups, float (*sums)[2 * EM_PANEL_ROWS]) {
    int32_t i = 0;
    for (; i + 3 <= count; i += 3) add_some_rows(lines, x, rows + i, 3, first, groups, sums + i);
    for (; i < count; i++) add_some_rows(lines, x, rows + i, 1, first, groups, sums + i);
}

#include "panels.h"

EM_DEFINE_SUB1_PANELS(avx2)
