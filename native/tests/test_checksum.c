/* CRC-32C of every instruction set against the published example and a bitwise reference, and of parts put together.
 *
 * usage: test_checksum [SET]   SET: the set that must be the best that is found here */
#include "sets.h"

enum { BYTES = 1 << 16 };

static uint32_t bitwise(uint32_t crc, const uint8_t *data, uint64_t bytes) {
    uint32_t r = ~crc;
    for (; bytes; data++, bytes--) {
        r ^= *data;
        for (int bit = 0; bit < 8; bit++) r = r >> 1 ^ (r & 1 ? 0x82f63b78u : 0);
    }
    return ~r;
}

int main(int argc, char **argv) {
    find_sets(argc > 1 ? argv[1] : NULL);
    static uint8_t data[BYTES];
    for (int i = 0; i < BYTES; i++) data[i] = (uint8_t)random_bits();
    for (int32_t s = 0; s < set_count; s++) {
        CHECK(em_crc32c(sets[s], 0, "123456789", 9) == 0xe3069283u);
        CHECK(em_crc32c(sets[s], 7, data, 0) == 7);
    }
    for (uint32_t bytes = 1; bytes <= BYTES - 8; bytes += 1 + bytes / 7) {
        for (uint32_t offset = 0; offset < 8; offset += 3) {
            const uint32_t start = random_bits(), cut = random_bits() % (bytes + 1);
            uint8_t *part = malloc(bytes); /* so that a sanitizer sees a step too far */
            CHECK(part);
            memcpy(part, data + offset, bytes);
            const uint32_t expected = bitwise(start, part, bytes);
            add_to_digest(&expected, sizeof expected);
            for (int32_t s = 0; s < set_count; s++) {
                CHECK(sets[s]->crc32c(start, part, bytes) == expected);
                const uint32_t first = sets[s]->crc32c(start, part, cut);
                CHECK(sets[s]->crc32c(first, part + cut, bytes - cut) == expected);
                const uint32_t second = sets[s]->crc32c(0, part + cut, bytes - cut);
                CHECK(em_crc32c_combine(first, second, bytes - cut) == expected);
            }
            free(part);
        }
    }
    print_digest("checksums");
    return 0;
}
