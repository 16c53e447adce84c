/* The grids as bytes of levels, from the packed numbers of grid_tables.h. */
#include "grid.h"

#include "grid_tables.h"

#define NUMBER(entry, bits, i) ((entry) >> (bits) * (i) & ((1 << (bits)) - 1))
#define THREE(entry, i, a, b, c) \
    ((uint64_t)(NUMBER(entry, 2, i) == 0 ? (a) : NUMBER(entry, 2, i) == 1 ? (b) : (c)) << 8 * (i))
#define EIGHT_OF_THREE(entry, a, b, c)                                                                      \
    (THREE(entry, 0, a, b, c) | THREE(entry, 1, a, b, c) | THREE(entry, 2, a, b, c) | THREE(entry, 3, a, b, c) | \
     THREE(entry, 4, a, b, c) | THREE(entry, 5, a, b, c) | THREE(entry, 6, a, b, c) | THREE(entry, 7, a, b, c))

#define IQ2(entry) EIGHT_OF_THREE(entry, 8, 25, 43),
#define IQ1(entry) EIGHT_OF_THREE(entry, 0, 8, 16),

#define TWICE (1 + ((uint64_t)1 << 32))

/* 4, 12, 20 to 52, and 62. */
#define IQ3XXS_LEVEL(entry, i) ((uint64_t)(8 * NUMBER(entry, 3, i) + 4 + 2 * (NUMBER(entry, 3, i) == 7)) << 8 * (i))
#define IQ3XXS(entry) \
    (IQ3XXS_LEVEL(entry, 0) | IQ3XXS_LEVEL(entry, 1) | IQ3XXS_LEVEL(entry, 2) | IQ3XXS_LEVEL(entry, 3)) * TWICE,
#define IQ3S_LEVEL(entry, i) ((uint64_t)(2 * NUMBER(entry, 3, i) + 1) << 8 * (i))
#define IQ3S(entry) \
    (IQ3S_LEVEL(entry, 0) | IQ3S_LEVEL(entry, 1) | IQ3S_LEVEL(entry, 2) | IQ3S_LEVEL(entry, 3)) * TWICE,

const uint64_t em_grid_iq2xxs[256] = {EM_ENTRIES_IQ2XXS(IQ2)};
const uint64_t em_grid_iq2xs[512] = {EM_ENTRIES_IQ2XS(IQ2)};
const uint64_t em_grid_iq2s[1024] = {EM_ENTRIES_IQ2S(IQ2)};
const uint64_t em_grid_iq1[2048] = {EM_ENTRIES_IQ1(IQ1)};
const uint64_t em_grid_iq3xxs[256 + 2 * EM_GRID_MARGIN] = {0, EM_ENTRIES_IQ3XXS(IQ3XXS)};
const uint64_t em_grid_iq3s[512 + 2 * EM_GRID_MARGIN] = {0, EM_ENTRIES_IQ3S(IQ3S)};

#define FIRST_FOUR(entry) (entry) & 255,
#define LAST_FOUR(entry) (entry) >> 8,
#define FIRST_TWO(entry) (entry) & 63,
#define LAST_TWO(entry) (entry) >> 6,

const uint8_t em_grid_bytes_iq2xxs[2][256] = {{EM_ENTRIES_IQ2XXS(FIRST_FOUR)}, {EM_ENTRIES_IQ2XXS(LAST_FOUR)}};
const uint8_t em_grid_bytes_iq2xs[2][512] = {{EM_ENTRIES_IQ2XS(FIRST_FOUR)}, {EM_ENTRIES_IQ2XS(LAST_FOUR)}};
const uint8_t em_grid_bytes_iq2s[2][1024] = {{EM_ENTRIES_IQ2S(FIRST_FOUR)}, {EM_ENTRIES_IQ2S(LAST_FOUR)}};
const uint8_t em_grid_bytes_iq1[2][2048] = {{EM_ENTRIES_IQ1(FIRST_FOUR)}, {EM_ENTRIES_IQ1(LAST_FOUR)}};
const uint8_t em_grid_bytes_iq3xxs[2][256] = {{EM_ENTRIES_IQ3XXS(FIRST_TWO)}, {EM_ENTRIES_IQ3XXS(LAST_TWO)}};
const uint8_t em_grid_bytes_iq3s[2][512] = {{EM_ENTRIES_IQ3S(FIRST_TWO)}, {EM_ENTRIES_IQ3S(LAST_TWO)}};
