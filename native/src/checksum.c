/* CRC-32C of bytes, and of two parts put together. */
#include "../kernels/checksum/polynomial.h"
#include "../kernels/kernels.h"

uint32_t em_crc32c(const em_kernels *kernels, uint32_t crc, const void *data, uint64_t bytes) {
    return kernels->crc32c(crc, data, bytes);
}

uint32_t em_crc32c_combine(uint32_t first, uint32_t second, uint64_t second_bytes) {
    uint32_t shift = EM_SHIFT_1;
    for (; second_bytes; second_bytes >>= 1) {
        if (second_bytes & 1) first = em_multiply_polynomials(shift, first);
        shift = em_multiply_polynomials(shift, shift);
    }
    return first ^ second;
}
