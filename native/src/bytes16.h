/* Sixteen bytes of codes at a time, in the vectors that GCC and Clang have for every processor. */
#ifndef EDGEMOE_BYTES16_H
#define EDGEMOE_BYTES16_H

#include <stdint.h>
#include <string.h>

#include "../kernels/unrolled.h"

#define EM_INLINE static inline __attribute__((always_inline))

/* Two words of eight bytes: shifts and masks go through both, as through one (file_blocks.h). */
typedef uint64_t em_bytes16 __attribute__((vector_size(16)));
typedef uint32_t em_lanes4 __attribute__((vector_size(16)));
typedef uint16_t em_lanes8 __attribute__((vector_size(16)));
typedef uint8_t em_lanes16 __attribute__((vector_size(16)));

/* Elements of two vectors of a type, by number; those of `b` follow those of `a`. */
#if defined(__clang__)
#define EM_PICK(type, a, b, ...) __builtin_shufflevector((type)(a), (type)(b), __VA_ARGS__)
#else
#define EM_PICK(type, a, b, ...) __builtin_shuffle((type)(a), (type)(b), (type){__VA_ARGS__})
#endif
#define EM_PICK2(a, b, ...) EM_PICK(em_bytes16, a, b, __VA_ARGS__)
#define EM_PICK4(a, b, ...) EM_PICK(em_lanes4, a, b, __VA_ARGS__)

EM_INLINE em_bytes16 em_load_bytes16(const uint8_t *from) {
    em_bytes16 value;
    memcpy(&value, from, sizeof value);
    return value;
}

EM_INLINE void em_store_bytes16(uint8_t *to, em_bytes16 value) { memcpy(to, &value, sizeof value); }

/* The bytes of the first halves, and of the second halves, of two vectors in turn; and every other byte of both. */
EM_INLINE em_bytes16 em_zip_first(em_bytes16 a, em_bytes16 b) {
    return (em_bytes16)EM_PICK(em_lanes16, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

EM_INLINE em_bytes16 em_zip_second(em_bytes16 a, em_bytes16 b) {
    return (em_bytes16)EM_PICK(em_lanes16, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

EM_INLINE em_bytes16 em_even_bytes(em_bytes16 a, em_bytes16 b) {
    return (em_bytes16)EM_PICK(em_lanes16, a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}

/* Eight rows of 16 bytes become 16 columns: vector i has the columns 2i and 2i + 1, of 8 bytes each. */
EM_INLINE void em_turn_bytes(em_bytes16 v[8]) {
    EM_UNROLLED for (int round = 0; round < 3; round++) { /* each brings a bit of the row below the column's */
        const em_bytes16 a = v[0], b = v[1], c = v[2], d = v[3];
        v[0] = em_zip_first(a, v[4]), v[1] = em_zip_second(a, v[4]);
        v[2] = em_zip_first(b, v[5]), v[3] = em_zip_second(b, v[5]);
        const em_bytes16 g = v[6], h = v[7];
        v[4] = em_zip_first(c, g), v[5] = em_zip_second(c, g);
        v[6] = em_zip_first(d, h), v[7] = em_zip_second(d, h);
    }
}

/* Sixteen bytes of each of four rows. Not an array: compilers would keep one in memory. */
typedef struct em_four_rows {
    em_bytes16 a, b, c, d;
} em_four_rows;

/* The first lanes of four rows become a vector, the second ones the next, and so on. */
EM_INLINE em_four_rows em_turn_lanes(em_four_rows rows) {
    const em_lanes4 low_ab = EM_PICK4(rows.a, rows.b, 0, 4, 1, 5), high_ab = EM_PICK4(rows.a, rows.b, 2, 6, 3, 7);
    const em_lanes4 low_cd = EM_PICK4(rows.c, rows.d, 0, 4, 1, 5), high_cd = EM_PICK4(rows.c, rows.d, 2, 6, 3, 7);
    return (em_four_rows){
        (em_bytes16)EM_PICK4(low_ab, low_cd, 0, 1, 4, 5), (em_bytes16)EM_PICK4(low_ab, low_cd, 2, 3, 6, 7),
        (em_bytes16)EM_PICK4(high_ab, high_cd, 0, 1, 4, 5), (em_bytes16)EM_PICK4(high_ab, high_cd, 2, 3, 6, 7)};
}

/* Stores the first lanes of four rows at `to`, the second ones a line of 64 bytes further, and so on. */
EM_INLINE void em_store_lines4(uint8_t *to, em_four_rows rows) {
    const em_four_rows turned = em_turn_lanes(rows);
    em_store_bytes16(to, turned.a);
    em_store_bytes16(to + 64, turned.b);
    em_store_bytes16(to + 128, turned.c);
    em_store_bytes16(to + 192, turned.d);
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
