/* Formats with a grid (grid.h) with 256-bit vectors: 8 rows of a panel's group, a side of it.
 *
 * Entries are loaded one by one, 8 bytes (IQ3: 4) for a row; two shuffles turn those of 8 rows into two quads, which are laid
 * out as in other formats, 8 rows x 4 columns. A shuffle gives each byte of a quad its row's byte of signs, a comparison
 * the bit of its column. Codes of more than 8 bits are put together for the whole side, and read back one by one.
 *
 * The weights become unsigned bytes, as those of other formats do (em_unsigned_zero). */
#ifndef EDGEMOE_GRID256_H
#define EDGEMOE_GRID256_H

#include <immintrin.h>

#include "grid.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    GRID_SIDE_ROWS = 8,
    GRID_BLOCKS = 4, /* of 8 columns */
    GRID_HALF_QUADS = 4,
};

typedef struct grid_side {
    _Alignas(32) uint16_t codes[GRID_SIDE_ROWS * 2 * GRID_BLOCKS]; /* 32 of a line; IQ3 has two */
    __m256i marks; /* byte r * 4 + n: signs of code n's block or, of IQ1, what is added to it: 0 or 2 */
} grid_side;

INLINE __m256i grid_load(const uint8_t *at) { return _mm256_loadu_si256((const __m256i *)(const void *)at); }

/* Codes from their low and high bytes. What comes together in a 128-bit lane stays there: grid_place knows where. */
INLINE void grid_put_codes(uint16_t *codes, __m256i low, __m256i high) {
    _mm256_store_si256((__m256i *)(void *)codes, _mm256_unpacklo_epi8(low, high));
    _mm256_store_si256((__m256i *)(void *)(codes + 16), _mm256_unpackhi_epi8(low, high));
}

/* Where the code of byte p of a line is among them. Eight neighbours stay together. */
INLINE int grid_place(int p) { return p / 16 * 8 + p / 8 % 2 * 16 + p % 8; }

/* The high bits of a line's codes, from a side's 8 bytes of them: byte n * 8 + r has those of code n of row r, which are
 * `bits` bits of byte r, the first of them from bit `first` on. */
INLINE __m256i grid_high(const uint8_t *payload, int side, int format, int first, int bits) {
    int64_t bytes;
    memcpy(&bytes, em_grid_after(payload, format) + side * 8, sizeof bytes);
    const __m256i shifts = _mm256_setr_epi64x(first, first + bits, first + 2 * bits, first + 3 * bits);
    return _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(bytes), shifts), _mm256_set1_epi8((char)((1 << bits) - 1)));
}

/* Bytes of signs with bit 7 as it follows from the others. */
INLINE __m256i grid_whole_signs(__m256i signs) {
    const __m256i nibbles = _mm256_set1_epi8(15);
    const __m256i parities = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    const __m256i own = _mm256_and_si256(signs, _mm256_set1_epi8(127));
    const __m256i low = _mm256_shuffle_epi8(parities, _mm256_and_si256(own, nibbles));
    const __m256i high = _mm256_shuffle_epi8(parities, _mm256_and_si256(_mm256_srli_epi16(own, 4), nibbles));
    return _mm256_or_si256(own, _mm256_xor_si256(low, high));
}

/* IQ1's nibbles of a side: byte r * 4 + n. */
INLINE __m256i grid_nibbles(const uint8_t *payload, int side, int format) {
    const uint8_t *bytes = em_grid_after(payload, format) + side * 16;
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)bytes));
    return _mm256_and_si256(_mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15));
}

INLINE void grid_prepare(grid_side *prepared, const uint8_t *payload, int side, int format) {
    const __m256i low = grid_load(payload + side * (EM_LINE_BYTES / 2));
    if (em_grid_is_iq1(format)) {
        const __m256i nibbles = grid_nibbles(payload, side, format);
        grid_put_codes(prepared->codes, low, _mm256_and_si256(nibbles, _mm256_set1_epi8(7)));
        __m256i marks = nibbles;
        if (format == EM_IQ1S) { /* the last nibble's for all */
            const __m128i last = _mm_setr_epi8(3, 3, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11, 15, 15, 15, 15);
            marks = _mm256_shuffle_epi8(marks, _mm256_broadcastsi128_si256(last));
        }
        const __m256i taken = _mm256_and_si256(_mm256_srli_epi16(marks, 2), _mm256_set1_epi8(2));
        prepared->marks = _mm256_sub_epi8(_mm256_set1_epi8(2), taken);
        return;
    }
    const __m256i signs = grid_load(em_grid_signs(payload, format) + side * (EM_LINE_BYTES / 2));
    prepared->marks = em_grid_has_parity(format) ? grid_whole_signs(signs) : signs;
    if (format == EM_IQ2XS) {
        const __m256i top = _mm256_and_si256(_mm256_srli_epi16(signs, 7), _mm256_set1_epi8(1));
        grid_put_codes(prepared->codes, low, top);
    }
    if (format == EM_IQ2S) grid_put_codes(prepared->codes, low, grid_high(payload, side, format, 0, 2));
    if (format == EM_IQ3S) {
        const __m256i second = grid_load(payload + EM_LINE_BYTES + side * (EM_LINE_BYTES / 2));
        grid_put_codes(prepared->codes, low, grid_high(payload, side, format, 0, 1));
        grid_put_codes(prepared->codes + 32, second, grid_high(payload, side, format, 4, 1));
    }
}

/* Code n of row `row` of a side. */
INLINE unsigned grid_code(const grid_side *prepared, const uint8_t *payload, int side, int row, int n, int format) {
    if (format == EM_IQ2XXS || format == EM_IQ3XXS) {
        return payload[n / 4 * EM_LINE_BYTES + side * (EM_LINE_BYTES / 2) + n % 4 * GRID_SIDE_ROWS + row];
    }
    return prepared->codes[n / 4 * 32 + grid_place(em_grid_is_iq1(format) ? row * 4 + n : n % 4 * GRID_SIDE_ROWS + row)];
}

INLINE __m128i grid_two(const uint64_t *first, const uint64_t *second) {
    const __m128d low = _mm_load_sd((const double *)(const void *)first);
    return _mm_castpd_si128(_mm_loadh_pd(low, (const double *)(const void *)second));
}

/* Four entries, each of which lies there twice. It is loaded to where it belongs, with its neighbours, and blended in. */
INLINE __m128i grid_four(const uint64_t *a, const uint64_t *b, const uint64_t *c, const uint64_t *d) {
    const __m128i first = _mm_loadl_epi64((const __m128i *)(const void *)a);
    const __m128i two = _mm_blend_epi32(first, _mm_loadu_si128((const __m128i *)(const void *)b), 2);
    const __m128i three = _mm_blend_epi32(two, _mm_loadu_si128((const __m128i *)(const void *)(c - 1)), 4);
    return _mm_blend_epi32(three, _mm_loadu_si128((const __m128i *)(const void *)(d - 1)), 8);
}

/* The bytes of the grid for a block's two quads. */
INLINE void grid_entries(const grid_side *prepared, const uint8_t *payload, int side, int block, int format,
                         __m256i quads[2]) {
    if (em_grid_is_iq3(format)) {
        const uint64_t *grid = em_grid_of_four(format);
        for (int quad = 0; quad < 2; quad++) {
#define AT(row) (grid + grid_code(prepared, payload, side, row, 2 * block + quad, format))
            quads[quad] = _mm256_set_m128i(grid_four(AT(4), AT(5), AT(6), AT(7)), grid_four(AT(0), AT(1), AT(2), AT(3)));
#undef AT
        }
        return;
    }
    const uint64_t *grid = em_grid_of_eight(format);
#define AT(row) (grid + grid_code(prepared, payload, side, row, block, format))
    const __m256 first = _mm256_castsi256_ps(_mm256_set_m128i(grid_two(AT(4), AT(5)), grid_two(AT(0), AT(1))));
    const __m256 second = _mm256_castsi256_ps(_mm256_set_m128i(grid_two(AT(6), AT(7)), grid_two(AT(2), AT(3))));
#undef AT
    quads[0] = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0x88));
    quads[1] = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0xdd));
}

/* The byte of marks that each byte of a block's quads has. */
INLINE __m256i grid_marks(const grid_side *prepared, int block) {
    const __m128i first = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    const __m256i places = _mm256_broadcastsi128_si256(_mm_add_epi8(first, _mm_set1_epi8((char)block)));
    return _mm256_shuffle_epi8(prepared->marks, places);
}

/* -1 in each byte of a quad whose weight is negative, else 0. */
INLINE __m256i grid_negative(__m256i marks, int quad) {
    const __m256i bits = _mm256_set1_epi32(quad ? (int32_t)0x80402010u : 0x08040201);
    return _mm256_cmpeq_epi8(_mm256_and_si256(marks, bits), bits);
}

/* The weights of 8 rows x 8 columns as unsigned bytes. */
INLINE void grid_unpack_block(const grid_side *prepared, const uint8_t *payload, int side, int block, int format,
                              __m256i weights[2]) {
    grid_entries(prepared, payload, side, block, format, weights);
    const __m256i marks = grid_marks(prepared, block), zero = _mm256_set1_epi8((char)em_unsigned_zero(format));
    for (int quad = 0; quad < 2; quad++) {
        if (em_grid_is_iq1(format)) {
            weights[quad] = _mm256_add_epi8(weights[quad], marks);
            continue;
        }
        const __m256i negative = grid_negative(marks, quad);
        weights[quad] = _mm256_add_epi8(_mm256_xor_si256(weights[quad], negative), _mm256_sub_epi8(zero, negative));
    }
}

/* Those of 8 rows x 16 columns, from quad `first` (0 or 4) on. */
INLINE void grid_unpack(const uint8_t *payload, int side, int format, int first, __m256i weights[GRID_HALF_QUADS]) {
    grid_side prepared;
    grid_prepare(&prepared, payload, side, format);
    grid_unpack_block(&prepared, payload, side, first / 2, format, weights);
    grid_unpack_block(&prepared, payload, side, first / 2 + 1, format, weights + 2);
}

/* Words of iq1m for 8 rows. */
INLINE __m128i grid_scale_words(const uint8_t *scales, int32_t g, int word, int side) {
    const uint8_t *at = scales + (size_t)(g / EM_SUPER_GROUPS) * 128 + (size_t)word * 32 + (size_t)side * 16;
    return _mm_loadu_si128((const __m128i *)(const void *)at);
}

/* The scale of 8 rows for group g, times the format's unit. */
INLINE __m256 grid_scale(const uint8_t *panel, em_sections at, int32_t g, int side, int format) {
    const em_format_numbers numbers = em_numbers(format);
    const uint8_t *scales = panel + at.scales;
    __m128i d;
    if (numbers.scale == EM_SCALE_WORDS) {
        const __m128i nibble = _mm_set1_epi16((short)0xf000);
        d = _mm_srli_epi16(grid_scale_words(scales, g, 0, side), 12);
        d = _mm_or_si128(d, _mm_srli_epi16(_mm_and_si128(grid_scale_words(scales, g, 1, side), nibble), 8));
        d = _mm_or_si128(d, _mm_srli_epi16(_mm_and_si128(grid_scale_words(scales, g, 2, side), nibble), 4));
        d = _mm_or_si128(d, _mm_and_si128(grid_scale_words(scales, g, 3, side), nibble));
    } else {
        d = _mm_loadu_si128((const __m128i *)(const void *)(scales + (size_t)(g >> numbers.scale_shift) * 32 + side * 16));
    }
    return _mm256_mul_ps(_mm256_cvtph_ps(d), _mm256_set1_ps(1.0f / (float)(1 << numbers.unit_shift)));
}

/* A scale times the factors of 8 rows, where a group has one: exactly. */
INLINE __m256 grid_times_factors(__m256 scale, const uint8_t *panel, em_sections at, int32_t g, int side, int format) {
    const uint8_t *payload = panel + (size_t)g * em_payload_bytes(format);
    __m256i k;
    if (em_numbers(format).factor == EM_FACTOR_PAIRS) {
        const uint8_t *pairs = panel + at.factors + (size_t)(g / 2) * EM_PANEL_ROWS + (size_t)side * GRID_SIDE_ROWS;
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)pairs);
        if (g % 2) bytes = _mm_srli_epi16(bytes, 4);
        k = _mm256_cvtepu8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15)));
    } else if (format == EM_IQ1S) {
        const __m256i bits = _mm256_and_si256(grid_nibbles(payload, side, format), _mm256_set1_epi32(0x00080808));
        const __m256i twos = _mm256_maddubs_epi16(bits, _mm256_set1_epi32(0x00040201)); /* 8 times k */
        k = _mm256_srli_epi32(_mm256_madd_epi16(twos, _mm256_set1_epi16(1)), 3);
    } else {
        const __m256i signs = grid_load(em_grid_signs(payload, format) + side * (EM_LINE_BYTES / 2));
        const __m256i bits = _mm256_and_si256(_mm256_srli_epi16(signs, 7), _mm256_set1_epi8(1));
        const __m256i twos = _mm256_maddubs_epi16(bits, _mm256_set1_epi32(0x08040201));
        k = _mm256_madd_epi16(twos, _mm256_set1_epi16(1));
    }
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(k), _mm256_add_ps(scale, scale), scale);
}

/* The factors of 8 rows where each half of a group has its own: two int16 for each row. */
INLINE __m256i grid_half_factors(const uint8_t *panel, em_sections at, int32_t g, int side, int format) {
    __m256i both;
    if (em_numbers(format).scale == EM_SCALE_WORDS) {
        __m128i words = grid_scale_words(panel + at.scales, g, g % EM_SUPER_GROUPS / 2, side);
        if (g % 2) words = _mm_srli_epi16(words, 6);
        const __m256i k = _mm256_cvtepu16_epi32(words);
        const __m256i second = _mm256_and_si256(_mm256_slli_epi32(k, 13), _mm256_set1_epi32(0x70000));
        both = _mm256_or_si256(_mm256_and_si256(k, _mm256_set1_epi32(7)), second);
    } else {
        const uint8_t *pairs = panel + at.factors + (size_t)g * EM_PANEL_ROWS + (size_t)side * GRID_SIDE_ROWS;
        const __m256i k = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)pairs));
        const __m256i second = _mm256_and_si256(_mm256_slli_epi32(k, 12), _mm256_set1_epi32(0xf0000));
        both = _mm256_or_si256(_mm256_and_si256(k, _mm256_set1_epi32(15)), second);
    }
    return _mm256_or_si256(_mm256_add_epi16(both, both), _mm256_set1_epi16(1));
}

#endif
