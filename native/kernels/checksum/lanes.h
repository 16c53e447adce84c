/* CRC-32C by an instruction that takes eight bytes into a register.
 *
 * On x86 the instruction's result is there after three cycles, and another can begin in each (Agner Fog's tables: Intel
 * since Nehalem, AMD since Zen), so three lanes side by side keep it busy. A file that includes this defines
 * TAKE_WORD(register, word) and TAKE_BYTE(register, byte) before. */
#include "../kernels.h"
#include "polynomial.h"

static inline uint32_t take(uint32_t crc, const uint8_t *data, uint64_t bytes) {
    uint32_t r = ~crc, shift;
    for (uint64_t lane; (lane = em_lane_bytes(bytes, &shift)); data += 3 * lane, bytes -= 3 * lane) {
        uint32_t second = 0, third = 0;
        for (uint64_t i = 0; i < lane; i += 8) {
            r = TAKE_WORD(r, em_load_word(data + i));
            second = TAKE_WORD(second, em_load_word(data + lane + i));
            third = TAKE_WORD(third, em_load_word(data + 2 * lane + i));
        }
        r = em_multiply_polynomials(shift, r) ^ second;
        r = em_multiply_polynomials(shift, r) ^ third;
    }
    for (; bytes >= 8; data += 8, bytes -= 8) r = TAKE_WORD(r, em_load_word(data));
    for (; bytes; data++, bytes--) r = TAKE_BYTE(r, *data);
    return ~r;
}
