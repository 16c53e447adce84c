#include "cpu.h"

#if defined(__x86_64__) || defined(__i386__)

#include <cpuid.h>
#include <stdint.h>

enum {
    LEAF1_ECX_FMA = 1 << 12,
    LEAF1_ECX_SSE42 = 1 << 20,
    LEAF1_ECX_OSXSAVE = 1 << 27,
    LEAF1_ECX_AVX = 1 << 28,
    LEAF1_ECX_F16C = 1 << 29,
    LEAF7_EBX_AVX2 = 1 << 5,
    LEAF7_EBX_BMI2 = 1 << 8,
    LEAF7_EBX_AVX512F = 1 << 16,
    LEAF7_EBX_AVX512DQ = 1 << 17,
    LEAF7_EBX_AVX512BW = 1 << 30,
    LEAF7_ECX_AVX512_VBMI = 1 << 1,
    LEAF7_ECX_AVX512_VBMI2 = 1 << 6,
    LEAF7_ECX_AVX512_VNNI = 1 << 11,
    LEAF7_1_EAX_AVX_VNNI = 1 << 4,
    XCR0_SSE_AND_AVX = 6,
    XCR0_AVX512 = 0xe0,
};
#define LEAF7_EBX_AVX512VL (1u << 31)

enum { KNOWN = 1, HAS_AVX2 = 2, HAS_AVXVNNI = 4, HAS_AVX512 = 8, HAS_AVX512VBMI = 16 };

/* The register files that the system saves and restores at a context switch. */
static uint32_t enabled_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int detect(void) {
    const unsigned wanted =
        LEAF1_ECX_FMA | LEAF1_ECX_SSE42 | LEAF1_ECX_OSXSAVE | LEAF1_ECX_AVX | LEAF1_ECX_F16C;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & wanted) != wanted) return KNOWN;
    const uint32_t registers = enabled_registers();
    if ((registers & XCR0_SSE_AND_AVX) != XCR0_SSE_AND_AVX) return KNOWN;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & LEAF7_EBX_AVX2)) return KNOWN;
    const unsigned wide = LEAF7_EBX_AVX512F | LEAF7_EBX_AVX512DQ | LEAF7_EBX_AVX512BW | LEAF7_EBX_AVX512VL;
    const bool has_wide =
        (b & wide) == wide && (c & LEAF7_ECX_AVX512_VNNI) && (registers & XCR0_AVX512) == XCR0_AVX512;
    const unsigned bytes = LEAF7_ECX_AVX512_VBMI | LEAF7_ECX_AVX512_VBMI2;
    const bool has_vbmi = has_wide && (b & LEAF7_EBX_BMI2) && (c & bytes) == bytes;
    const bool has_vnni = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & LEAF7_1_EAX_AVX_VNNI);
    return KNOWN | HAS_AVX2 | (has_vnni ? HAS_AVXVNNI : 0) | (has_wide ? HAS_AVX512 : 0) | (has_vbmi ? HAS_AVX512VBMI : 0);
}

static bool has(int feature) {
    /* Detected once: under a hypervisor each cpuid takes some 20 us. Threads that race here find the same value. */
    static _Atomic int found;
    if (found == 0) found = detect();
    return found & feature;
}

bool em_cpu_has_avx2(void) { return has(HAS_AVX2); }
bool em_cpu_has_avxvnni(void) { return has(HAS_AVXVNNI); }
bool em_cpu_has_avx512(void) { return has(HAS_AVX512); }
bool em_cpu_has_avx512vbmi(void) { return has(HAS_AVX512VBMI); }

#else

bool em_cpu_has_avx2(void) { return false; }
bool em_cpu_has_avxvnni(void) { return false; }
bool em_cpu_has_avx512(void) { return false; }
bool em_cpu_has_avx512vbmi(void) { return false; }

#endif

#if defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>

enum { HWCAP_CHECKSUMS = 1 << 7, HWCAP_DOT_PRODUCTS = 1 << 20, HWCAP_WANTED = HWCAP_CHECKSUMS | HWCAP_DOT_PRODUCTS };

bool em_cpu_has_neon(void) { return (getauxval(AT_HWCAP) & HWCAP_WANTED) == HWCAP_WANTED; }

#elif defined(__aarch64__) && defined(__APPLE__)

#include <stddef.h>
#include <sys/sysctl.h>

bool em_cpu_has_neon(void) {
    int has = 0;
    size_t bytes = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &bytes, NULL, 0) == 0 && has;
}

#else

bool em_cpu_has_neon(void) { return false; }

#endif
