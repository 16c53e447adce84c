/* Products of formats with a grid with AVX-512's VBMI, whose tables lie in registers (grid512.h, vectors512.h). */
#include "grid512.h"
#include "vectors512.h"

#define DEFINE_GRID(NAME, name)                                                                                    \
    void em_panels_##name##_avx512vbmi(const em_matrix *matrix, int32_t first, int32_t panel_count,               \
                                       const em_activations *x, const int32_t *rows, int32_t count, float *out,   \
                                       size_t out_stride) {                                                       \
        quantised_panels(matrix->data, em_panel(matrix, first, EM_##NAME), panel_count, x, rows, count, out,      \
                         out_stride, EM_##NAME);                                                                  \
    }

DEFINE_GRID(IQ2XXS, iq2xxs)
DEFINE_GRID(IQ2XS, iq2xs)
DEFINE_GRID(IQ2S, iq2s)
DEFINE_GRID(IQ3XXS, iq3xxs)
DEFINE_GRID(IQ3S, iq3s)
DEFINE_GRID(IQ1S, iq1s)
DEFINE_GRID(IQ1M, iq1m)
