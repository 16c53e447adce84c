/* CRC-32C in plain C: eight tables, so that eight bytes go in at a time (the "slicing by 8" of Kounavis and Berry).
 *
 * Table t at b is the register after byte b and t zero bytes. It is linear in b, so it is the sum (xor) of what the
 * single bits of b give; the constants are those. tests/kernels/test_checksum.py holds all to a bitwise reference. */
#include "../kernels.h"
#include "polynomial.h"

#define ENTRY(b, b0, b1, b2, b3, b4, b5, b6, b7)                                                       \
    (((b) & 1 ? b0 : 0) ^ ((b) & 2 ? b1 : 0) ^ ((b) & 4 ? b2 : 0) ^ ((b) & 8 ? b3 : 0) ^               \
     ((b) & 16 ? b4 : 0) ^ ((b) & 32 ? b5 : 0) ^ ((b) & 64 ? b6 : 0) ^ ((b) & 128 ? b7 : 0))
#define FOUR(b, ...) \
    ENTRY(b, __VA_ARGS__), ENTRY(b + 1, __VA_ARGS__), ENTRY(b + 2, __VA_ARGS__), ENTRY(b + 3, __VA_ARGS__)
#define SIXTEEN(b, ...) \
    FOUR(b, __VA_ARGS__), FOUR(b + 4, __VA_ARGS__), FOUR(b + 8, __VA_ARGS__), FOUR(b + 12, __VA_ARGS__)
#define SIXTY_FOUR(b, ...) \
    SIXTEEN(b, __VA_ARGS__), SIXTEEN(b + 16, __VA_ARGS__), SIXTEEN(b + 32, __VA_ARGS__), SIXTEEN(b + 48, __VA_ARGS__)
#define TABLE(...)                                                                                     \
    {SIXTY_FOUR(0, __VA_ARGS__), SIXTY_FOUR(64, __VA_ARGS__), SIXTY_FOUR(128, __VA_ARGS__),            \
     SIXTY_FOUR(192, __VA_ARGS__)}

static const uint32_t tables[8][256] = {
    TABLE(0xf26b8303, 0xe13b70f7, 0xc79a971f, 0x8ad958cf, 0x105ec76f, 0x20bd8ede, 0x417b1dbc, 0x82f63b78),
    TABLE(0x13a29877, 0x274530ee, 0x4e8a61dc, 0x9d14c3b8, 0x3fc5f181, 0x7f8be302, 0xff17c604, 0xfbc3faf9),
    TABLE(0xa541927e, 0x4f6f520d, 0x9edea41a, 0x38513ec5, 0x70a27d8a, 0xe144fb14, 0xc76580d9, 0x8b277743),
    TABLE(0xdd45aab8, 0xbf672381, 0x7b2231f3, 0xf64463e6, 0xe964b13d, 0xd725148b, 0xaba65fe7, 0x52a0c93f),
    TABLE(0x38116fac, 0x7022df58, 0xe045beb0, 0xc5670b91, 0x8f2261d3, 0x1ba8b557, 0x37516aae, 0x6ea2d55c),
    TABLE(0xef306b19, 0xdb8ca0c3, 0xb2f53777, 0x6006181f, 0xc00c303e, 0x85f4168d, 0x0e045beb, 0x1c08b7d6),
    TABLE(0x68032cc8, 0xd0065990, 0xa5e0c5d1, 0x4e2dfd53, 0x9c5bfaa6, 0x3d5b83bd, 0x7ab7077a, 0xf56e0ef4),
    TABLE(0x493c7d27, 0x9278fa4e, 0x211d826d, 0x423b04da, 0x847609b4, 0x0d006599, 0x1a00cb32, 0x34019664),
};

uint32_t em_crc32c_generic(uint32_t crc, const uint8_t *data, uint64_t bytes) {
    uint32_t r = ~crc;
    for (; bytes >= 8; data += 8, bytes -= 8) {
        const uint64_t word = em_load_word(data) ^ r;
        r = 0;
        for (int t = 0; t < 8; t++) r ^= tables[7 - t][word >> 8 * t & 0xff];
    }
    for (; bytes; data++, bytes--) r = r >> 8 ^ tables[0][(r ^ *data) & 0xff];
    return ~r;
}
