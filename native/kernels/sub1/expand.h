/* How vectors of 16 bytes spread the words of a class over 8 blocks (sub1/avx2.c, sub1/neon.c). */
#ifndef EDGEMOE_SUB1_EXPAND_H
#define EDGEMOE_SUB1_EXPAND_H

#include <stdint.h>

/* For each set of 8 blocks the byte of the next 16 bytes of words that goes to each: low bytes of 8 blocks, then their high
 * bytes; 128, for which byte shuffles write 0, where a block is not among them. */
#define MEMBER(m, i) ((m) >> (i) & 1)
#define BEFORE(m, i) __builtin_popcount((m) & ((1 << (i)) - 1))
#define PLACE(m, i, high) (uint8_t)(MEMBER(m, i) ? 2 * BEFORE(m, i) + (high) : 128)
#define EIGHT(m, high)                                                                                              \
    PLACE(m, 0, high), PLACE(m, 1, high), PLACE(m, 2, high), PLACE(m, 3, high), PLACE(m, 4, high), PLACE(m, 5, high), \
        PLACE(m, 6, high), PLACE(m, 7, high)
#define ONE(m) {EIGHT(m, 0), EIGHT(m, 1)}
#define FOUR(m) ONE(m), ONE((m) + 1), ONE((m) + 2), ONE((m) + 3)
#define SIXTEEN(m) FOUR(m), FOUR((m) + 4), FOUR((m) + 8), FOUR((m) + 12)
static const uint8_t em_sub1_places[256][16] __attribute__((aligned(64))) = {
    SIXTEEN(0),   SIXTEEN(16),  SIXTEEN(32),  SIXTEEN(48),  SIXTEEN(64),  SIXTEEN(80),  SIXTEEN(96),  SIXTEEN(112),
    SIXTEEN(128), SIXTEEN(144), SIXTEEN(160), SIXTEEN(176), SIXTEEN(192), SIXTEEN(208), SIXTEEN(224), SIXTEEN(240)};
#undef SIXTEEN
#undef FOUR
#undef ONE
#undef EIGHT
#undef PLACE
#undef BEFORE
#undef MEMBER

/* Byte k: the bits of bytes 0 to k that are set. */
static inline uint64_t em_sub1_running_counts(uint64_t bits) {
    bits -= bits >> 1 & 0x5555555555555555;
    bits = (bits & 0x3333333333333333) + (bits >> 2 & 0x3333333333333333);
    bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0f;
    return bits * 0x0101010101010101;
}

/* The words of a class in a group: the places of those that come next in each 8 blocks. */
typedef struct em_sub1_spread {
    const uint16_t *words;
    uint64_t members;
    uint64_t before; /* byte k: the members in the blocks before 8k */
} em_sub1_spread;

static inline em_sub1_spread em_sub1_spread_of(const uint16_t **words, uint64_t members) {
    const uint64_t counts = em_sub1_running_counts(members);
    const em_sub1_spread found = {*words, members, counts << 8};
    *words += counts >> 56;
    return found;
}

#endif
