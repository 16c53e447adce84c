/* The search for codes of trellis formats: every instruction set finds the same, and bad arguments are refused. */
#include "sets.h"

enum { ROWS = 19, COLUMNS = 384, GROUPS = COLUMNS / 32, LEVELS = 61 };

typedef struct format {
    int32_t step_bits, step_weights, lag, window_bits;
} format;

static const format formats[] = {{4, 1, 1, 8}, {3, 1, 1, 7}, {2, 1, 2, 8}, {1, 1, 4, 8}, {3, 2, 1, 7}, {3, 4, 1, 7}};

/* Codes and what is left of errors, by every set, in 2 blocks and those behind them; in one call or in two. */
static void test_feedback(format f, const em_trellis *trellis, const float *weights, const float *inverses, const float *gains,
                          const float *importance) {
    const int32_t unit = 8 * f.step_weights, kept = 2 * 4 * unit;
    float *factors = random_floats((size_t)(kept * unit)), *rates = random_floats((size_t)kept * COLUMNS);
    float *steps = allocate(ROWS * GROUPS * sizeof *steps);
    for (int32_t i = 0; i < ROWS * GROUPS; i++) steps[i] = inverses[i] ? 1 / inverses[i] : 0;
    for (int32_t i = 0; i < kept * COLUMNS; i++) rates[i] *= 0.1f;
    const em_trellis_fed fed = {weights, inverses, gains, steps, importance, factors, rates, COLUMNS, COLUMNS, ROWS, COLUMNS, kept,
                                4 * unit};
    const uint64_t bytes = em_trellis_feedback_scratch_bytes(trellis, &fed);
    CHECK(bytes > 0);
    const size_t codes = (size_t)(ROWS * kept / f.step_weights), rests = (size_t)(ROWS * kept);
    void *scratch = malloc(bytes);
    uint8_t *found[2] = {malloc(codes), malloc(codes)}, states[2][ROWS * 4], before[ROWS * 4];
    float *left[2] = {malloc(rests * sizeof(float)), malloc(rests * sizeof(float))};
    CHECK(scratch && found[0] && found[1] && left[0] && left[1]);
    for (size_t i = 0; i < sizeof before; i++) before[i] = (uint8_t)random_bits();
    for (int32_t s = 0; s < set_count; s++) {
        const int to = s > 0;
        memcpy(states[to], before, sizeof before);
        CHECK_STATUS(EM_OK, em_trellis_feed_back(sets[s], trellis, &fed, states[to], found[to], left[to], scratch));
        CHECK(memcmp(found[to], found[0], codes) == 0 && memcmp(left[to], left[0], rests * sizeof(float)) == 0);
        CHECK(memcmp(states[to], states[0], sizeof before) == 0);
    }
    for (size_t i = 0; i < codes; i++) CHECK(found[0][i] < 1 << f.step_bits);
    add_to_digest(found[0], codes);
    add_to_digest(left[0], rests * sizeof(float));
    em_trellis_fed wrong = fed;
    wrong.kept = COLUMNS + 4 * unit;
    CHECK(em_trellis_feedback_scratch_bytes(trellis, &wrong) == 0);
    wrong = fed, wrong.kept = 4 * unit - 4;
    CHECK(em_trellis_feedback_scratch_bytes(trellis, &wrong) == 0);
    wrong = fed, wrong.ahead = -1;
    CHECK_STATUS(EM_BAD_ARGUMENT, em_trellis_feed_back(sets[0], trellis, &wrong, states[0], found[0], left[0], scratch));
    free(scratch), free(factors), free(rates), free(steps);
    for (int i = 0; i < 2; i++) free(found[i]), free(left[i]);
}

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
        CHECK_STATUS(EM_OK, em_trellis_search(sets[s], &trellis, weights, inverses, gains, importance, ROWS, COLUMNS, own,
                                              scratch));
        CHECK(memcmp(own, expected, codes) == 0);
    }
    for (size_t i = 0; i < codes; i++) CHECK(expected[i] < 1 << f.step_bits);
    add_to_digest(expected, codes);

    test_feedback(f, &trellis, weights, inverses, gains, importance);

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
                 em_trellis_search(sets[0], &kept, weights, inverses, gains, importance, -1, COLUMNS, found, scratch));
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
