/* Products with matrices in the code sub1: every set against plain sums over trits that are taken from the bits one by
 * one, and nothing read behind the matrix, whatever its bytes are. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "kernels/sub1/layout.h"
#include "sets.h"

enum { ROWS = 35, PANELS = 3, MOST_COLUMNS = 1200 };

/* The next `width` bits of a stream, and of the place after them. */
static unsigned take(const uint8_t *stream, size_t *bit, int width) {
    unsigned value = 0;
    for (int i = 0; i < width; i++, ++*bit) value |= (unsigned)(stream[*bit / 8] >> *bit % 8 & 1) << i;
    return value;
}

/* A matrix of random bits, which all mean something, with the levels and the trits that they mean. */
typedef struct sample {
    uint8_t *data; /* of exactly `bytes` bytes */
    size_t bytes;
    int32_t columns, groups;
    float levels[2][PANELS * EM_PANEL_ROWS];
    int8_t trits[PANELS * EM_PANEL_ROWS][MOST_COLUMNS + EM_GROUP_COLUMNS];
} sample;

/* Random bits, of which about `share` in 16 are set. */
static uint8_t some_bits(unsigned share) {
    uint8_t byte = 0;
    for (int i = 0; i < 8; i++) byte |= (uint8_t)((random_bits() >> 9) % 16 < share) << i;
    return byte;
}

static void put_u32(uint8_t *at, size_t number) {
    const uint32_t value = (uint32_t)number;
    memcpy(at, &value, sizeof value);
}

static void fill_block(sample *s, int panel, int32_t group, int block, int q, int plus) {
    s->trits[panel * EM_PANEL_ROWS + block / 4][group * EM_GROUP_COLUMNS + block % 4 + 4 * q] = plus ? 1 : -1;
}

/* Reads one panel's trits, by the drawing in sub1.py; returns where it ends. */
static size_t read_panel(sample *s, int panel, size_t at, size_t level_bytes) {
    const uint8_t *classes = s->data + at + 32 * level_bytes, *a = classes + 16 * (size_t)s->groups;
    size_t counts[4] = {0}, bits[3] = {0}, signs = 0;
    for (int32_t b = 0; b < 64 * s->groups; b++) {
        const uint8_t *own = classes + b / 64 * 16 + b % 64 / 8;
        counts[(own[0] >> b % 8 & 1) + 2 * (own[8] >> b % 8 & 1)]++;
    }
    const uint8_t *pairs = a + (4 * counts[1] + 7) / 8, *masks = pairs + (7 * counts[2] + 7) / 8, *plus = masks + counts[3];
    for (int32_t b = 0; b < 64 * s->groups; b++) {
        const uint8_t *own = classes + b / 64 * 16 + b % 64 / 8;
        const int class = (own[0] >> b % 8 & 1) + 2 * (own[8] >> b % 8 & 1), block = b % 64;
        if (class == 1) {
            const unsigned single = take(a, &bits[0], 4);
            fill_block(s, panel, b / 64, block, single & 7, single >> 3);
        } else if (class == 2) {
            const unsigned pair = take(pairs, &bits[1], 7);
            fill_block(s, panel, b / 64, block, pair & 7, pair >> 3 & 1);
            fill_block(s, panel, b / 64, block, ((pair & 7) + (pair >> 4 & 3) + 1) % 8, pair >> 6);
        } else if (class == 3) {
            const uint8_t mask = *masks++;
            for (int q = 0; q < 8; q++) {
                if (mask >> q & 1) fill_block(s, panel, b / 64, block, q, take(plus, &signs, 1));
            }
        }
    }
    for (int i = 0; i < 32; i++) {
        const uint8_t *level = s->data + at + (size_t)i * level_bytes;
        float value = level_bytes == 2 ? em_half_to_float(em_load_u16(level)) : 0;
        if (level_bytes == 4) memcpy(&value, level, sizeof value);
        s->levels[i / 16][panel * EM_PANEL_ROWS + i % 16] = value;
    }
    return (size_t)(plus - s->data) + (signs + 7) / 8;
}

static sample *random_sample(int32_t columns, size_t level_bytes, unsigned share) {
    sample *s = calloc(1, sizeof *s);
    CHECK(s);
    s->columns = columns, s->groups = em_group_count(columns);
    const size_t room = 16 + 16 + PANELS * (32 * level_bytes + 16 * (size_t)s->groups + 64 * (size_t)s->groups * 2) + 64;
    s->data = malloc(room);
    CHECK(s->data);
    for (size_t i = 0; i < room; i++) s->data[i] = some_bits(share);
    memcpy(s->data, "sub1", 4);
    put_u32(s->data + 4, ROWS), put_u32(s->data + 8, (size_t)columns), put_u32(s->data + 12, level_bytes);
    size_t at = 16 + 4 * (PANELS + 1);
    for (int p = 0; p < PANELS; p++) {
        put_u32(s->data + 16 + 4 * p, at);
        for (size_t i = 0; i < 32; i++) {
            const float value = random_float();
            const uint16_t half = em_float_to_half(value);
            memcpy(s->data + at + i * level_bytes, level_bytes == 2 ? (const void *)&half : &value, level_bytes);
        }
        at = read_panel(s, p, at, level_bytes);
    }
    put_u32(s->data + 16 + 4 * PANELS, at);
    s->bytes = at + 64;
    CHECK(s->bytes <= room);
    s->data = realloc(s->data, s->bytes);
    CHECK(s->data);
    return s;
}

static void free_sample(sample *s) {
    free(s->data);
    free(s);
}

static void test_products(int32_t columns, size_t level_bytes, unsigned share, int32_t count) {
    enum { MOST = 40, STRIDE = PANELS * EM_PANEL_ROWS + 3 };
    sample *s = random_sample(columns, level_bytes, share);
    const size_t width = (size_t)s->groups * EM_GROUP_COLUMNS;
    float *floats = random_floats((size_t)MOST * (size_t)columns);
    int8_t *values = allocate(MOST * width);
    em_group *groups = allocate((size_t)MOST * (size_t)s->groups * sizeof *groups);
    int32_t rows[MOST];
    for (int32_t i = 0; i < MOST; i++) {
        sets[0]->quantise(floats + (size_t)i * (size_t)columns, columns, values + (size_t)i * width, groups + i * s->groups);
        rows[i] = MOST - 1 - i;
    }
    const em_activations x = {floats, values, groups, columns, s->groups};
    const em_matrix matrix = {s->data, EM_SUB1, ROWS, columns};
    CHECK(em_sub1_bytes(s->data, ROWS, columns, s->bytes) == s->bytes);
    CHECK(em_sub1_bytes(s->data, ROWS, columns, s->bytes - 1) == 0);
    static float found[2][MOST][STRIDE];
    memset(found, 0x55, sizeof found);
    for (int32_t n = 0; n < set_count; n++) {
        const int to = n > 0;
        float alone[EM_PANEL_ROWS];
        sets[n]->panels[EM_SUB1](&matrix, 0, PANELS, &x, rows, count, found[to][0], STRIDE);
        CHECK(memcmp(found[to], found[0], (size_t)count * sizeof found[0][0]) == 0);
        sets[n]->panels[EM_SUB1](&matrix, 1, 1, &x, rows + count - 1, 1, alone, 0);
        CHECK(memcmp(alone, found[0][count - 1] + EM_PANEL_ROWS, sizeof alone) == 0);
    }
    add_to_digest(found[0], (size_t)count * sizeof found[0][0]);
    for (int32_t i = 0; i < count; i++) {
        for (int row = 0; row < PANELS * EM_PANEL_ROWS; row++) {
            double sum = 0, size = 0;
            for (int32_t c = 0; c < columns; c++) {
                const int trit = s->trits[row][c];
                const float level = trit ? s->levels[trit > 0][row] : 0;
                const double term = (double)level * values[(size_t)rows[i] * width + (size_t)c] *
                                    (double)groups[rows[i] * s->groups + c / EM_GROUP_COLUMNS].scale;
                sum += term, size += fabs(term);
            }
            CHECK(fabs(found[0][i][row] - sum) <= 1e-5 * size + 1e-30);
        }
    }
    free(floats), free(values), free(groups);
    free_sample(s);
}

/* What is decoded is what the bits mean; what is encoded again is a matrix of the same trits, in as many bytes as was said. */
static void test_codec(int32_t columns, size_t level_bytes, unsigned share) {
    sample *s = random_sample(columns, level_bytes, share);
    const size_t trit_count = (size_t)ROWS * (size_t)columns;
    int8_t *trits = allocate(trit_count), *again = allocate(trit_count);
    float levels[ROWS][2], same[ROWS][2];
    uint64_t used, ends[PANELS], only_ends[PANELS];
    CHECK_STATUS(EM_OK, em_sub1_check(s->data, s->bytes, ROWS, columns, &used));
    CHECK(used == s->bytes);
    CHECK_STATUS(EM_BAD_RECORD, em_sub1_check(s->data, s->bytes - 1, ROWS, columns, &used));
    CHECK_STATUS(EM_OK, em_sub1_unpack(s->data, s->bytes, ROWS, columns, trits, levels[0]));
    for (int row = 0; row < ROWS; row++) {
        CHECK(memcmp(trits + (size_t)row * (size_t)columns, s->trits[row], (size_t)columns) == 0);
        for (int sign = 0; sign < 2; sign++) CHECK(levels[row][sign] == s->levels[sign][row]);
    }
    const size_t most = PANELS * em_sub1_panel_bytes(columns, (int32_t)level_bytes), first = 16 + 4 * (PANELS + 1);
    uint8_t *of_panels = allocate(PANELS * 32 * level_bytes), *packed = allocate(first + most + EM_SUB1_TAIL_BYTES);
    for (int p = 0; p < PANELS; p++) {
        memcpy(of_panels + (size_t)p * 32 * level_bytes, s->data + em_sub1_start(s->data, p), 32 * level_bytes);
    }
    CHECK_STATUS(EM_OK, em_sub1_pack(trits, ROWS, columns, of_panels, (int32_t)level_bytes, packed + first, ends));
    CHECK_STATUS(EM_OK, em_sub1_pack(trits, ROWS, columns, NULL, (int32_t)level_bytes, NULL, only_ends));
    CHECK(memcmp(ends, only_ends, sizeof ends) == 0 && ends[PANELS - 1] <= most);
    memcpy(packed, s->data, 16);
    for (int p = 0; p <= PANELS; p++) put_u32(packed + 16 + 4 * p, first + (p ? ends[p - 1] : 0));
    memset(packed + first + ends[PANELS - 1], 0, EM_SUB1_TAIL_BYTES);
    CHECK_STATUS(EM_OK, em_sub1_unpack(packed, first + ends[PANELS - 1] + 64, ROWS, columns, again, same[0]));
    CHECK(memcmp(trits, again, trit_count) == 0 && memcmp(levels, same, sizeof levels) == 0);
    free(trits), free(again), free(of_panels), free(packed);
    free_sample(s);
}

/* Altered bytes, checked and decoded within their own bytes alone: what is sound decodes. */
static void test_altered_matrices(int32_t columns) {
    sample *s = random_sample(columns, 2, 3);
    int8_t *trits = allocate((size_t)ROWS * (size_t)columns);
    float levels[ROWS][2];
    int refused = 0;
    for (int n = 0; n < 300; n++) {
        const size_t place = n % 3 ? random_bits() % s->bytes : random_bits() % 32;
        const uint8_t before = s->data[place];
        uint64_t used;
        s->data[place] = (uint8_t)random_bits();
        const int32_t sound = em_sub1_check(s->data, s->bytes, ROWS, columns, &used);
        const int32_t decoded = em_sub1_unpack(s->data, s->bytes, ROWS, columns, trits, levels[0]);
        CHECK(sound == EM_BAD_RECORD || (decoded == EM_OK && used <= s->bytes));
        refused += sound == EM_BAD_RECORD;
        s->data[place] = before;
    }
    CHECK(refused > 0 && refused < 300);
    free(trits);
    free_sample(s);
}

/* Altered bytes: what passes em_sub1_bytes is multiplied, with the same result in all sets, and read within its bytes. */
static void test_altered_bytes(int32_t columns) {
    sample *s = random_sample(columns, 2, 3);
    const size_t width = (size_t)s->groups * EM_GROUP_COLUMNS;
    int8_t *values = allocate(width);
    em_group *groups = allocate((size_t)s->groups * sizeof *groups);
    for (size_t i = 0; i < width; i++) values[i] = (int8_t)(random_bits() % 255 - 127);
    for (int32_t g = 0; g < s->groups; g++) groups[g] = (em_group){.scale = 1};
    const em_activations x = {NULL, values, groups, columns, s->groups};
    const em_matrix matrix = {s->data, EM_SUB1, ROWS, columns};
    const int32_t row = 0;
    int refused = 0;
    for (int n = 0; n < 300; n++) {
        const size_t place = n % 3 ? random_bits() % s->bytes : 12 + random_bits() % 20;
        const uint8_t before = s->data[place];
        s->data[place] = (uint8_t)random_bits();
        if (em_sub1_bytes(s->data, ROWS, columns, s->bytes) == 0) refused++;
        else {
            float found[2][PANELS * EM_PANEL_ROWS];
            for (int32_t i = 0; i < set_count; i++) {
                sets[i]->panels[EM_SUB1](&matrix, 0, PANELS, &x, &row, 1, found[i > 0], 0);
                for (int k = 0; k < PANELS * EM_PANEL_ROWS; k++) {
                    const float one = found[0][k], other = found[i > 0][k];
                    CHECK(one == other || (isnan(one) && isnan(other)));
                }
            }
        }
        s->data[place] = before;
    }
    CHECK(refused > 0 && refused < 300);
    free(values), free(groups);
    free_sample(s);
}

int main(void) {
    find_sets(NULL);
    static const int32_t columns[] = {1, 32, 33, 100, 1024, 1100};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        for (unsigned share = 0; share <= 16; share += 4) {
            test_products(columns[i], share % 8 ? 4 : 2, share, (int32_t)(1 + (i * 7 + share) % 36));
            test_codec(columns[i], share % 8 ? 4 : 2, share);
        }
        test_altered_matrices(columns[i]);
        test_altered_bytes(columns[i]);
    }
    print_digest("sub1");
    return 0;
}
