/* EM_UNROLLED before a loop: compilers write out all of its steps. */
#ifndef EDGEMOE_UNROLLED_H
#define EDGEMOE_UNROLLED_H

#ifdef __clang__
#define EM_UNROLLED _Pragma("unroll")
#else
#define EM_UNROLLED _Pragma("GCC unroll 32")
#endif

#endif
