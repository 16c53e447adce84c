/* The search for codes of trellis formats: every instruction set finds the same, and bad arguments are refused. */
#include "sets.h"

enum { ROWS = 19, COLUMNS = 384, GROUPS = COLUMNS / 32, LEVELS = 61 };

typedef struct format {
    int32_t step_bits, step_weights, lag, window_bits;
} format;

static const format formats[] = {{4, 1, 1, 8}, {3, 1, 1, 7}, {2, 1, 2, 8}, {1, 1, 4, 8}, {3, 2, 1, 7}, {3, 4, 1, 7}};

static void test_format(format f) {
    float levels[4 * LEVELS];
    uint8_t numbers[256 * 4];
    for (int32_t i = 0; i < f.step_weights * LEVELS; i++) levels[i] = (float)(i % LEVELS - LEVELS / 2);
    for (int32_t i = 0; i < f.step_weights << f.window_bits; i++) numbers[i] = (uint8_t)(random_bits() % LEVELS);
    em_trellis trellis = {
        .step_bits = f.step_bits,
        .step_weights = f.step_weights,
        .lag = f.lag,
        .level_count = LEVELS,
        .levels = levels,
        .numbers = numbers,
        .dearest = (float)(1 << ((f.step_bits == 1 ? 26 : 28) - f.step_bits)) / (float)f.step_weights,
    };
    float *weights = random_floats((size_t)ROWS * COLUMNS), *inverses = random_floats((size_t)ROWS * GROUPS);
    float *gains = random_floats((size_t)ROWS * GROUPS), *importance = random_floats(COLUMNS);
    for (int32_t i = 0; i < ROWS * GROUPS; i++) {
        inverses[i] = 20 + 10 * inverses[i];
        gains[i] = (1 + gains[i]) * (i % 5 == 4 ? 1e9f : trellis.dearest / 16384);
    }
    for (int32_t i = 0; i < COLUMNS; i++) importance[i] = i % 7 == 3 ? 0 : importance[i] * importance[i];
    for (int32_t i = 0; i < ROWS * COLUMNS; i += 31) weights[i] *= 1e20f;

    const size_t codes = (size_t)ROWS * COLUMNS / (size_t)f.step_weights;
    const uint64_t bytes = em_trellis_scratch_bytes(&trellis, COLUMNS);
    CHECK(bytes > 0);
    uint8_t *expected = malloc(codes), *found = malloc(codes); /* so that a sanitizer sees a step too far */
    void *scratch = malloc(bytes);
    CHECK(expected && found && scratch);
    for (int32_t s = 0; s < set_count; s++) {
        uint8_t *own = s ? found : expected;
        memset(own, 255, codes);
        CHECK_STATUS(EM_OK, em_trellis_search(sets[s], &trellis, weights, inverses, gains, importance, ROWS, COLUMNS, NULL,
                                              -1, own, scratch));
        CHECK(memcmp(own, expected, codes) == 0);
    }
    for (size_t i = 0; i < codes; i++) CHECK(expected[i] < 1 << f.step_bits);
    add_to_digest(expected, codes);

    uint8_t starts[ROWS * 4];
    for (size_t i = 0; i < sizeof starts; i++) starts[i] = (uint8_t)random_bits();
    uint8_t *whole = malloc(codes);
    CHECK(whole);
    for (int32_t s = 0; s < set_count; s++) {
        CHECK_STATUS(EM_OK, em_trellis_search(sets[s], &trellis, weights, inverses, gains, importance, ROWS, COLUMNS, starts, -1,
                                              s ? found : whole, scratch));
        CHECK(s == 0 || memcmp(whole, found, codes) == 0);
        memset(found, 255, codes);
        CHECK_STATUS(EM_OK, em_trellis_search(sets[s], &trellis, weights, inverses, gains, importance, ROWS, COLUMNS, starts, 2,
                                              found, scratch));
        for (size_t i = 0; i < codes; i++) CHECK(found[i] == (i % 4 == 2 ? whole[i] : 255));
    }
    CHECK(memcmp(whole, expected, codes) != 0);
    add_to_digest(whole, codes);
    free(whole);

    const em_trellis kept = trellis;
    trellis.dearest *= 2;
    CHECK(em_trellis_scratch_bytes(&trellis, COLUMNS) == 0);
    trellis = kept;
    trellis.lag++;
    CHECK(em_trellis_scratch_bytes(&trellis, COLUMNS) == 0);
    trellis = kept;
    trellis.level_count = 257;
    CHECK(em_trellis_scratch_bytes(&trellis, COLUMNS) == 0);
    CHECK(em_trellis_scratch_bytes(&kept, COLUMNS + 16) == 0 && em_trellis_scratch_bytes(&kept, 0) == 0);
    CHECK_STATUS(EM_BAD_ARGUMENT,
                 em_trellis_search(sets[0], &kept, weights, inverses, gains, importance, -1, COLUMNS, NULL, -1, found,
                                   scratch));
    CHECK_STATUS(EM_BAD_ARGUMENT, em_trellis_search(sets[0], &kept, weights, inverses, gains, importance, ROWS, COLUMNS, NULL, 4,
                                                    found, scratch));
    free(expected);
    free(found);
    free(scratch);
    free(weights);
    free(inverses);
    free(gains);
    free(importance);
}

int main(void) {
    find_sets(NULL);
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) test_format(formats[i]);
    print_digest("trellis");
    return 0;
}
