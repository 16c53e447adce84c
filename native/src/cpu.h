/* What the processor offers and the operating system saves and restores. */
#ifndef EDGEMOE_CPU_H
#define EDGEMOE_CPU_H

#include <stdbool.h>

/* AVX2, FMA, F16C and SSE4.2, with the 256-bit registers enabled by the system. */
bool em_cpu_has_avx2(void);

/* AVX-VNNI besides AVX2. */
bool em_cpu_has_avxvnni(void);

/* AVX-512 F, BW, DQ, VL and VNNI besides AVX2, with the 512-bit registers enabled by the system. */
bool em_cpu_has_avx512(void);

/* AVX-512 VBMI besides those. */
bool em_cpu_has_avx512vbmi(void);

/* The dot products of bytes (FEAT_DotProd) and checksums (FEAT_CRC32) besides NEON, on 64-bit ARM. */
bool em_cpu_has_neon(void);

#endif
