/* Panel products with AVX-512 and its VNNI (vectors512.h). Entries of a grid are loaded one by one. */
#include <immintrin.h>

#include "grid256.h"

/* The weights of a group of a format with a grid, as unsigned bytes: two sides beside each other. */
INLINE void unpack_grid(const uint8_t *payload, int format, __m512i weights[2 * GRID_HALF_QUADS]) {
    for (int first = 0; first < 2 * GRID_HALF_QUADS; first += GRID_HALF_QUADS) {
        __m256i sides[2][GRID_HALF_QUADS];
        for (int side = 0; side < 2; side++) grid_unpack(payload, side, format, first, sides[side]);
        for (int i = 0; i < GRID_HALF_QUADS; i++) {
            weights[first + i] = _mm512_inserti64x4(_mm512_castsi256_si512(sides[0][i]), sides[1][i], 1);
        }
    }
}

#include "vectors512.h"

#define DEFINE_PANELS(NAME, name, products)                                                                         \
    void em_panels_##name##_avx512(const em_matrix *matrix, int32_t first, int32_t panel_count,                    \
                                   const em_activations *x, const int32_t *rows, int32_t count, float *out,        \
                                   size_t out_stride) {                                                            \
        if (count == 1 && em_numbers(EM_##NAME).grid != EM_GRID_NONE) { /* its loops keep more entries in flight */ \
            em_panels_##name##_avx2(matrix, first, panel_count, x, rows, count, out, out_stride);                  \
            return;                                                                                                \
        }                                                                                                          \
        products(matrix->data, em_panel(matrix, first, EM_##NAME), panel_count, x, rows, count, out, out_stride,   \
                 EM_##NAME);                                                                                       \
    }

DEFINE_PANELS(F32, f32, float_panels)
DEFINE_PANELS(F16, f16, float_panels)
DEFINE_PANELS(BF16, bf16, float_panels)
DEFINE_PANELS(F8, f8, float_panels)
DEFINE_PANELS(M8, m8, float_panels)
#define DEFINE_QUANTISED(NAME, name) DEFINE_PANELS(NAME, name, quantised_panels)
EM_QUANTISED_FORMATS(DEFINE_QUANTISED)
