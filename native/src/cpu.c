#include "cpu.h"

#if defined(__x86_64__) || defined(__i386__)

#include <cpuid.h>
#include <stdint.h>

enum {
    LEAF1_ECX_FMA = 1 << 12,
    LEAF1_ECX_OSXSAVE = 1 << 27,
    LEAF1_ECX_AVX = 1 << 28,
    LEAF1_ECX_F16C = 1 << 29,
    LEAF7_EBX_AVX2 = 1 << 5,
    XCR0_SSE_AND_AVX = 6,
};

/* Which register files the system keeps over a context switch. */
static uint32_t enabled_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool detect_avx2(void) {
    const unsigned wanted = LEAF1_ECX_FMA | LEAF1_ECX_OSXSAVE | LEAF1_ECX_AVX | LEAF1_ECX_F16C;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & wanted) != wanted) return false;
    if ((enabled_registers() & XCR0_SSE_AND_AVX) != XCR0_SSE_AND_AVX) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & LEAF7_EBX_AVX2);
}

bool em_cpu_has_avx2(void) {
    /* Asked once: under a hypervisor each cpuid takes some 20 us. Threads that ask at the same time agree. */
    static _Atomic int known; /* 0: not yet, 1: no, 2: yes */
    if (known == 0) known = detect_avx2() ? 2 : 1;
    return known == 2;
}

#else

bool em_cpu_has_avx2(void) { return false; }

#endif
