/* Which kernels this processor can run. */
#include <string.h>

#include "../kernels/kernels.h"
#include "cpu.h"

/* The element of `panels` for a format (see EM_FORMATS). */
#define PANELS_generic(NAME, name, ...) [EM_##NAME] = em_panels_##name##_generic,
#define PANELS_avx2(NAME, name, ...) [EM_##NAME] = em_panels_##name##_avx2,
#define PANELS_avxvnni(NAME, name, ...) [EM_##NAME] = em_panels_##name##_avxvnni,
#define PANELS_avx512(NAME, name, ...) [EM_##NAME] = em_panels_##name##_avx512,
/* VBMI is for formats with a grid, and for those whose panels differ in length. */
#define PANELS_avx512vbmi(NAME, name, floating, bits, scale, share, minimums, factor, halves, offsets, zero, table, grid, ...) \
    [EM_##NAME] = VBMI_##grid(name),
#define VBMI_EM_GRID_NONE(name) em_panels_##name##_avx512
#define VBMI_EM_GRID_IQ2XXS(name) em_panels_##name##_avx512vbmi
#define VBMI_EM_GRID_IQ2XS(name) em_panels_##name##_avx512vbmi
#define VBMI_EM_GRID_IQ2S(name) em_panels_##name##_avx512vbmi
#define VBMI_EM_GRID_IQ3XXS(name) em_panels_##name##_avx512vbmi
#define VBMI_EM_GRID_IQ3S(name) em_panels_##name##_avx512vbmi
#define VBMI_EM_GRID_IQ1(name) em_panels_##name##_avx512vbmi
#define PANELS_neon(NAME, name, ...) [EM_##NAME] = em_panels_##name##_neon,
#define VARYING_generic PANELS_generic
#define VARYING_avx2 PANELS_avx2
#define VARYING_avx512vbmi(NAME, name, ...) [EM_##NAME] = em_panels_##name##_avx512vbmi,
#define VARYING_neon PANELS_neon

/* Products use one instruction set, those of formats whose panels differ in length another, recurrent states a third, all else
 * a fourth: short and rare operations gain nothing from wider vectors. */
#define KERNELS_OF(name, matmul, varying, states, vectors)                                                     \
    {                                                                                                          \
        .isa = name,                                                                                           \
        .panels = {EM_FORMATS(PANELS_##matmul) EM_VARYING_FORMATS(VARYING_##varying)},                        \
        .quantise = em_quantise_##vectors,                                                                     \
        .sum_squares = em_sum_squares_##vectors,                                                               \
        .exponentials = em_exponentials_##vectors,                                                             \
        .activate = {[EM_FUNCTION_SILU] = em_silu_##vectors,                                                   \
                     [EM_FUNCTION_CLAMPED_SILU] = em_clamped_silu_##vectors,                                   \
                     [EM_FUNCTION_GELU_TANH] = em_gelu_tanh_##vectors,                                         \
                     [EM_FUNCTION_RELU] = em_relu_##vectors,                                                   \
                     [EM_FUNCTION_RELU2] = em_relu2_##vectors,                                                 \
                     [EM_FUNCTION_CAPPED_SILU] = em_capped_silu_##vectors,                                     \
                     [EM_FUNCTION_GELU] = em_gelu_##vectors},                                                  \
        .to_half = em_to_half_##vectors,                                                                       \
        .to_q8 = em_to_q8_##vectors,                                                                           \
        .scores = {[EM_F32] = em_scores_f32_##vectors,                                                         \
                   [EM_F16] = em_scores_f16_##vectors,                                                         \
                   [EM_Q8] = em_scores_q8_##vectors},                                                          \
        .mix = {[EM_F32] = em_mix_f32_##vectors,                                                               \
                [EM_F16] = em_mix_f16_##vectors,                                                               \
                [EM_Q8] = em_mix_q8_##vectors},                                                                \
        .delta = em_delta_##states,                                                                            \
        .scan = em_scan_##states,                                                                              \
        .channels = em_channels_##states,                                                                      \
        .crc32c = em_crc32c_##vectors,                                                                         \
        .search_trellis = em_search_trellis_##vectors,                                                         \
        .feed_trellis = em_feed_trellis_##vectors,                                                             \
    }

/* Best first. */
static const struct {
    bool (*runs_here)(void); /* NULL: everywhere */
    em_kernels kernels;
} sets[] = {
#ifdef EDGEMOE_HAVE_AVX512VBMI
    {em_cpu_has_avx512vbmi, KERNELS_OF("avx512vbmi", avx512vbmi, avx512vbmi, avx512, avx2)},
#endif
#ifdef EDGEMOE_HAVE_AVX512
    {em_cpu_has_avx512, KERNELS_OF("avx512", avx512, avx2, avx512, avx2)},
#endif
#ifdef EDGEMOE_HAVE_AVXVNNI
    {em_cpu_has_avxvnni, KERNELS_OF("avxvnni", avxvnni, avx2, avx2, avx2)},
#endif
#ifdef EDGEMOE_HAVE_AVX2
    {em_cpu_has_avx2, KERNELS_OF("avx2", avx2, avx2, avx2, avx2)},
#endif
#ifdef EDGEMOE_HAVE_NEON
    {em_cpu_has_neon, KERNELS_OF("neon", neon, neon, neon, neon)},
#endif
    {NULL, KERNELS_OF("generic", generic, generic, generic, generic)},
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
