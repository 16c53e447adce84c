/* Which kernels this processor can run. */
#include <string.h>

#include "../kernels/kernels.h"
#include "cpu.h"

#define KERNELS_OF(set)                                                                                        \
    {                                                                                                          \
        .isa = #set,                                                                                           \
        .panel = {[EM_F32] = em_panel_f32_##set,                                                               \
                  [EM_F16] = em_panel_f16_##set,                                                               \
                  [EM_Q8] = em_panel_q8_##set,                                                                 \
                  [EM_Q4] = em_panel_q4_##set,                                                                 \
                  [EM_Q4M] = em_panel_q4m_##set},                                                              \
        .quantise = em_quantise_##set,                                                                         \
        .sum_squares = em_sum_squares_##set,                                                                   \
        .exponentials = em_exponentials_##set,                                                                 \
        .gate = em_gate_##set,                                                                                 \
        .to_half = em_to_half_##set,                                                                           \
        .scores = {em_scores_f32_##set, em_scores_f16_##set},                                                  \
        .mix = {em_mix_f32_##set, em_mix_f16_##set},                                                           \
    }

/* Best first. */
static const struct {
    bool (*runs_here)(void); /* NULL: everywhere */
    em_kernels kernels;
} sets[] = {
#ifdef EDGEMOE_HAVE_AVX2
    {em_cpu_has_avx2, KERNELS_OF(avx2)},
#endif
    {NULL, KERNELS_OF(generic)},
};

enum { SET_COUNT = sizeof sets / sizeof sets[0] };

static const em_kernels *usable(int32_t wanted) {
    for (size_t i = 0; i < SET_COUNT; i++) {
        if (sets[i].runs_here && !sets[i].runs_here()) continue;
        if (wanted-- == 0) return &sets[i].kernels;
    }
    return NULL;
}

int32_t em_isa_count(void) {
    int32_t count = 0;
    while (usable(count)) count++;
    return count;
}

const char *em_isa_name(int32_t index) {
    const em_kernels *kernels = index < 0 ? NULL : usable(index);
    return kernels ? kernels->isa : NULL;
}

const em_kernels *em_kernels_for(const char *isa) {
    for (int32_t i = 0; isa && usable(i); i++) {
        if (strcmp(usable(i)->isa, isa) == 0) return usable(i);
    }
    return NULL;
}
