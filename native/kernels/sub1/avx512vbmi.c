/* Products with matrices in the code sub1, with AVX-512's VNNI, VBMI and VBMI2, and BMI2.
 *
 * A group is decoded in registers, with a byte for each of its 64 blocks: the fields of a stream become bytes by a byte
 * shuffle and shifts of each byte's own (multishift), and vpexpandb puts them where the class has its blocks. Only what
 * class 3 has, masks with the signs of their bits, is made into bytes beforehand. */
#include <immintrin.h>

#include "layout.h"

#define INLINE static inline __attribute__((always_inline))

/* 8 times 8 numbers, `step` apart in each eight; those of the next begin `next` later. */
#define EIGHT(first, step)                                                                                          \
    (first), (first) + (step), (first) + 2 * (step), (first) + 3 * (step), (first) + 4 * (step), (first) + 5 * (step), \
        (first) + 6 * (step), (first) + 7 * (step)
#define ALL(next, step)                                                                                               \
    {EIGHT(0, step),        EIGHT((next), step),     EIGHT(2 * (next), step), EIGHT(3 * (next), step),               \
     EIGHT(4 * (next), step), EIGHT(5 * (next), step), EIGHT(6 * (next), step), EIGHT(7 * (next), step)}

/* Fields of 4 bits: 8 of them in 4 bytes. Fields of 7 bits: 8 of them in 7 bytes. */
static const uint8_t single_bytes[64] = ALL(4, 1), single_bits[64] = ALL(0, 4);
static const uint8_t pair_bytes[64] = ALL(7, 1), pair_bits[64] = ALL(0, 7);
static const uint8_t single_low[16] = {EM_SUB1_LOW}, single_high[16] = {EM_SUB1_HIGH};

INLINE __m512i load(const void *at) { return _mm512_loadu_si512(at); }

INLINE __m512i four_times(const uint8_t *sixteen) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)sixteen));
}

/* The 64 fields of a stream from a bit on, a byte each, with others' bits above theirs. */
INLINE __m512i fields(const uint8_t *stream, size_t bit, const uint8_t *bytes, const uint8_t *bits) {
    const __m512i eights = _mm512_permutexvar_epi8(load(bytes), load(stream + bit / 8));
    return _mm512_multishift_epi64_epi8(_mm512_add_epi8(load(bits), _mm512_set1_epi8((char)(bit % 8))), eights);
}

enum { MASK_BYTES = EM_SUB1_GROUPS * EM_SUB1_BLOCKS + EM_SUB1_SLACK };

/* Makes bytes of lines 0 and 1 of the next `count` masks, eight at a time: their signs, one after the other in the stream, go
 * to the bits that are set. */
static void take_masks(em_sub1_panel *panel, size_t count, uint8_t *even, uint8_t *odd) {
    const __m512i even_bits = _mm512_set1_epi8(0x55), odd_bits = _mm512_set1_epi8((char)0xaa);
    const uint8_t *masks = panel->c + panel->masks;
    size_t bit = panel->signs;
    for (size_t done = 0; done < count; done += 64) {
        uint64_t pluses[8] = {0}, minuses[8] = {0};
        for (size_t i = 0; i < 8 && done + 8 * i < count; i++) {
            const size_t left = count - done - 8 * i;
            uint64_t own = em_load_u64(masks + done + 8 * i);
            if (left < 8) own &= ((uint64_t)1 << 8 * left) - 1;
            const uint8_t *at = panel->s + bit / 8;
            uint64_t signs = em_load_u64(at) >> bit % 8;
            if (bit % 8) signs |= (uint64_t)at[8] << (64 - bit % 8);
            pluses[i] = _pdep_u64(signs, own);
            minuses[i] = own ^ pluses[i];
            bit += (size_t)__builtin_popcountll(own);
        }
        const __m512i plus = load(pluses), minus = load(minuses);
        const __m512i minus_even = _mm512_and_si512(minus, even_bits), plus_odd = _mm512_andnot_si512(even_bits, plus);
        const __m512i plus_even = _mm512_and_si512(plus, even_bits), minus_odd = _mm512_and_si512(minus, odd_bits);
        _mm512_storeu_si512(even + done, _mm512_or_si512(plus_even, _mm512_add_epi8(minus_even, minus_even)));
        _mm512_storeu_si512(odd + done, _mm512_or_si512(_mm512_srli_epi16(plus_odd, 1), minus_odd));
    }
    panel->masks += count;
    panel->signs = bit;
}

static void decode(em_sub1_panel *panel, int32_t first, int32_t groups, uint8_t *lines) {
    uint8_t mask_evens[MASK_BYTES], mask_odds[MASK_BYTES];
    const uint8_t *classes = panel->classes + (size_t)first * EM_SUB1_CLASS_BYTES;
    take_masks(panel, em_sub1_count(classes, groups).masks, mask_evens, mask_odds);
    size_t masks = 0;
    const __m512i low_bytes = four_times(single_low), high_bytes = four_times(single_high);
    const __m512i nibble = _mm512_set1_epi8(15), seven = _mm512_set1_epi8(7), eight = _mm512_set1_epi8(8);
    const __m512i three = _mm512_set1_epi8(3), one = _mm512_set1_epi8(1);
    for (int32_t g = 0; g < groups; g++, lines += EM_SUB1_LINES_BYTES) {
        const uint64_t low = em_load_u64(classes + (size_t)g * EM_SUB1_CLASS_BYTES);
        const uint64_t high = em_load_u64(classes + (size_t)g * EM_SUB1_CLASS_BYTES + 8);
        const __mmask64 single = low & ~high, pair = high & ~low, mask = low & high;
        const __m512i singles = fields(panel->a, 4 * panel->singles, single_bytes, single_bits);
        const __m512i pairs = _mm512_maskz_expand_epi8(pair, fields(panel->b, 7 * panel->pairs, pair_bytes, pair_bits));
        panel->singles += (size_t)__builtin_popcountll(single);
        panel->pairs += (size_t)__builtin_popcountll(pair);
        const __m512i firsts = _mm512_and_si512(_mm512_mask_expand_epi8(pairs, single, singles), nibble);
        const __m512i distances = _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(pairs, 4), three), one);
        const __m512i positions = _mm512_and_si512(_mm512_add_epi8(pairs, distances), seven);
        const __m512i seconds = _mm512_or_si512(positions, _mm512_and_si512(_mm512_srli_epi16(pairs, 3), eight));
        __m512i even = _mm512_maskz_expand_epi8(mask, load(mask_evens + masks));
        __m512i odd = _mm512_maskz_expand_epi8(mask, load(mask_odds + masks));
        masks += (size_t)__builtin_popcountll(mask);
        even = _mm512_mask_shuffle_epi8(even, single | pair, low_bytes, firsts);
        odd = _mm512_mask_shuffle_epi8(odd, single | pair, high_bytes, firsts);
        even = _mm512_or_si512(even, _mm512_maskz_shuffle_epi8(pair, low_bytes, seconds));
        odd = _mm512_or_si512(odd, _mm512_maskz_shuffle_epi8(pair, high_bytes, seconds));
        _mm512_store_si512(lines, even);
        _mm512_store_si512(lines + EM_LINE_BYTES, odd);
    }
}

/* `count` activation rows times the lines of some groups; the count is known when this is compiled. */
INLINE void add_some_rows(const uint8_t *lines, const em_activations *x, const int32_t *rows, int count, int32_t first,
                          int32_t groups, float (*sums)[2 * EM_PANEL_ROWS]) {
    const __m512i one = _mm512_set1_epi8(1), two = _mm512_set1_epi8(2);
    const int8_t *values[4];
    const em_group *group[4];
    __m512 plus_sums[4], minus_sums[4];
    for (int i = 0; i < count; i++) {
        const size_t at = (size_t)rows[i] * (size_t)x->group_count + (size_t)first;
        values[i] = x->values + at * EM_GROUP_COLUMNS;
        group[i] = x->groups + at;
        minus_sums[i] = _mm512_loadu_ps(sums[i]);
        plus_sums[i] = _mm512_loadu_ps(sums[i] + EM_PANEL_ROWS);
    }
    for (int32_t g = 0; g < groups; g++, lines += EM_SUB1_LINES_BYTES) {
        __m512i found_plus[4], found_minus[4];
        for (int i = 0; i < count; i++) found_plus[i] = found_minus[i] = _mm512_setzero_si512();
        for (int odd = 0; odd < 2; odd++) {
            const __m512i all = _mm512_load_si512(lines + odd * EM_LINE_BYTES);
            for (int field = 0; field < 4; field++) {
                const __m512i trits = _mm512_srli_epi16(all, 2 * field);
                const __m512i plus = _mm512_and_si512(trits, one), minus = _mm512_and_si512(trits, two);
                for (int i = 0; i < count; i++) {
                    int32_t four;
                    memcpy(&four, values[i] + g * EM_GROUP_COLUMNS + 8 * field + 4 * odd, sizeof four);
                    const __m512i quad = _mm512_set1_epi32(four);
                    found_plus[i] = _mm512_dpbusd_epi32(found_plus[i], plus, quad);
                    found_minus[i] = _mm512_dpbusd_epi32(found_minus[i], minus, quad);
                }
            }
        }
        for (int i = 0; i < count; i++) {
            const __m512 scale = _mm512_set1_ps(group[i][g].scale);
            plus_sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(found_plus[i]), scale, plus_sums[i]);
            minus_sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(found_minus[i]), scale, minus_sums[i]);
        }
    }
    for (int i = 0; i < count; i++) {
        _mm512_storeu_ps(sums[i], minus_sums[i]);
        _mm512_storeu_ps(sums[i] + EM_PANEL_ROWS, plus_sums[i]);
    }
}

static void add_rows(const uint8_t *lines, const em_activations *x, const int32_t *rows, int32_t count, int32_t first,
                     int32_t groups, float (*sums)[2 * EM_PANEL_ROWS]) {
    int32_t i = 0;
    for (; i + 4 <= count; i += 4) add_some_rows(lines, x, rows + i, 4, first, groups, sums + i);
    for (; i < count; i++) add_some_rows(lines, x, rows + i, 1, first, groups, sums + i);
}

#include "panels.h"

EM_DEFINE_SUB1_PANELS(avx512vbmi)
