/* Sixteen bytes of codes at a time, in the vectors that GCC and Clang have for every processor. */
#ifndef EDGEMOE_BYTES16_H
#define EDGEMOE_BYTES16_H

#include <stdint.h>
#include <string.h>

#define EM_INLINE static inline __attribute__((always_inline))

/* Two words of eight bytes: shifts and masks go through both, as through one (file_blocks.h). */
typedef uint64_t em_bytes16 __attribute__((vector_size(16)));
typedef uint32_t em_lanes4 __attribute__((vector_size(16)));

#if defined(__clang__)
#define EM_PICK2(a, b, i, j) __builtin_shufflevector(a, b, i, j)
#define EM_PICK4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define EM_PICK2(a, b, i, j) __builtin_shuffle(a, b, (em_bytes16){i, j})
#define EM_PICK4(a, b, i, j, k, l) __builtin_shuffle(a, b, (em_lanes4){i, j, k, l})
#endif

EM_INLINE em_bytes16 em_load_bytes16(const uint8_t *from) {
    em_bytes16 value;
    memcpy(&value, from, sizeof value);
    return value;
}

EM_INLINE void em_store_lanes4(uint8_t *to, em_lanes4 value) { memcpy(to, &value, sizeof value); }

/* Sixteen bytes of each of four rows. Not an array: compilers would keep one in memory. */
typedef struct em_four_rows {
    em_bytes16 a, b, c, d;
} em_four_rows;

/* Stores the first lanes of four rows at `to`, the second ones a line of 64 bytes further, and so on. */
EM_INLINE void em_store_lines4(uint8_t *to, em_four_rows rows) {
    const em_lanes4 a = (em_lanes4)rows.a, b = (em_lanes4)rows.b, c = (em_lanes4)rows.c, d = (em_lanes4)rows.d;
    const em_lanes4 low_ab = EM_PICK4(a, b, 0, 4, 1, 5), high_ab = EM_PICK4(a, b, 2, 6, 3, 7);
    const em_lanes4 low_cd = EM_PICK4(c, d, 0, 4, 1, 5), high_cd = EM_PICK4(c, d, 2, 6, 3, 7);
    em_store_lanes4(to, EM_PICK4(low_ab, low_cd, 0, 1, 4, 5));
    em_store_lanes4(to + 64, EM_PICK4(low_ab, low_cd, 2, 3, 6, 7));
    em_store_lanes4(to + 128, EM_PICK4(high_ab, high_cd, 0, 1, 4, 5));
    em_store_lanes4(to + 192, EM_PICK4(high_ab, high_cd, 2, 3, 6, 7));
}

/* Exchanges the bits of `high` under the mask with those of `low` that are `bits` above them. */
EM_INLINE void em_exchange(uint64_t *low, uint64_t *high, int32_t bits, uint64_t mask) {
    const uint64_t different = (*low >> bits ^ *high) & mask;
    *high ^= different;
    *low ^= different << bits;
}

/* Eight rows of eight bytes become eight columns: byte r of the result's word i was byte i of word r. */
EM_INLINE void em_transpose8(uint64_t w[8]) {
    em_exchange(w, w + 4, 32, 0x00000000FFFFFFFFu), em_exchange(w + 1, w + 5, 32, 0x00000000FFFFFFFFu);
    em_exchange(w + 2, w + 6, 32, 0x00000000FFFFFFFFu), em_exchange(w + 3, w + 7, 32, 0x00000000FFFFFFFFu);
    em_exchange(w, w + 2, 16, 0x0000FFFF0000FFFFu), em_exchange(w + 1, w + 3, 16, 0x0000FFFF0000FFFFu);
    em_exchange(w + 4, w + 6, 16, 0x0000FFFF0000FFFFu), em_exchange(w + 5, w + 7, 16, 0x0000FFFF0000FFFFu);
    em_exchange(w, w + 1, 8, 0x00FF00FF00FF00FFu), em_exchange(w + 2, w + 3, 8, 0x00FF00FF00FF00FFu);
    em_exchange(w + 4, w + 5, 8, 0x00FF00FF00FF00FFu), em_exchange(w + 6, w + 7, 8, 0x00FF00FF00FF00FFu);
}

#endif
