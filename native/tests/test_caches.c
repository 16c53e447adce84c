/* The kernels of the KV cache, in every instruction set: rows into it in each format, scores and mixtures from it,
 * against their formulas, and all sets against each other to the bit.
 *
 * What it prints is the same for every processor. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "kernels/half.h"
#include "sets.h"

static void test_halves(void) {
    for (uint32_t half = 0; half < 65536; half++) {
        const float value = em_half_to_float((uint16_t)half);
        const int fraction = half & 1023, exponent = half >> 10 & 31;
        const double sign = half & 0x8000 ? -1 : 1;
        if (exponent == 31) {
            CHECK(fraction ? isnan(value) : isinf(value) && (value > 0) == (sign > 0));
        } else {
            const double expected = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
            CHECK(value == sign * expected);
        }
        if (!isnan(value)) CHECK(em_float_to_half(value) == half);
    }
    enum { COUNT = 20000 };
    static float in[COUNT];
    static uint16_t out[2][COUNT];
    for (int i = 0; i < COUNT; i++) {
        in[i] = em_from_bits(random_bits());
        const int exponent = (int)(random_bits() % 44) - 26;
        if (i % 2) in[i] = ldexpf(random_float(), exponent);
        if (isnan(in[i])) in[i] = 0;
    }
    for (int32_t s = 0; s < set_count; s++) {
        sets[s]->to_half(in, out[s > 0], COUNT);
        CHECK(memcmp(out[s > 0], out[0], sizeof out[0]) == 0);
    }
    add_to_digest(out[0], sizeof out[0]);
    for (int i = 0; i < COUNT; i++) { /* the nearest: half a step of the float16s there at most */
        const double back = em_half_to_float(out[0][i]), size = fabs((double)in[i]);
        if (size >= 65520) {
            CHECK(isinf(back));
        } else {
            const double step = size < 0x1p-14 ? 0x1p-24 : ldexp(1, ilogb(size) - 10);
            CHECK(fabs(back - in[i]) <= step / 2);
        }
    }
}

/* A row of a cache in 8 bits, against the formula of reference.quantise_cache_rows. */
static void test_to_q8(const float *input, int32_t count) {
    enum { MARGIN = 3 };
    const int32_t groups = em_group_count(count);
    int8_t *values[2];
    uint16_t *scales[2];
    for (int i = 0; i < 2; i++) {
        values[i] = allocate((size_t)count + MARGIN);
        scales[i] = allocate((size_t)groups * sizeof **scales);
        memset(values[i], 99, (size_t)count + MARGIN);
    }
    for (int32_t s = 0; s < set_count; s++) {
        const int to = s > 0;
        sets[s]->to_q8(input, values[to], scales[to], count);
        CHECK(memcmp(values[to], values[0], (size_t)count + MARGIN) == 0);
        CHECK(memcmp(scales[to], scales[0], (size_t)groups * sizeof **scales) == 0);
    }
    for (int i = 0; i < MARGIN; i++) CHECK(values[0][count + i] == 99);
    add_to_digest(values[0], (size_t)count);
    add_to_digest(scales[0], (size_t)groups * sizeof **scales);
    for (int32_t i = 0; i < count; i++) {
        float largest = 0;
        const int32_t first = i / EM_GROUP_COLUMNS * EM_GROUP_COLUMNS;
        for (int32_t c = first; c < first + EM_GROUP_COLUMNS && c < count; c++) {
            if (!isnan(largest) && !(fabsf(input[c]) <= largest)) largest = fabsf(input[c]);
        }
        uint16_t half = em_float_to_half(largest / 127.0f);
        float expected = 0;
        if (!isfinite(em_half_to_float(half))) {
            half = 0x7e00;
        } else if (half) {
            expected = nearbyintf(input[i] * (1.0f / em_half_to_float(half)));
            expected = expected > 127 ? 127 : expected < -127 ? -127 : expected;
        }
        CHECK(scales[0][i / EM_GROUP_COLUMNS] == half && values[0][i] == expected);
    }
    for (int i = 0; i < 2; i++) {
        free(values[i]);
        free(scales[i]);
    }
}

static void test_to_q8_extremes(void) {
    const float strange[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f, 7e-6f, -3e38f, 8.3e6f, 8.4e6f, 1.0f, -0.5f};
    enum { KINDS = sizeof strange / sizeof *strange };
    for (int first = 0; first < KINDS; first++) {
        for (int second = 0; second < KINDS; second++) {
            float input[40];
            for (int i = 0; i < 40; i++) input[i] = i % 3 ? strange[first] : strange[second];
            test_to_q8(input, 40);
        }
    }
    float ties[32];
    for (int i = 0; i < 32; i++) ties[i] = (float)(i - 16) + 0.5f;
    ties[0] = 127.0f; /* scale 1: every other value lies half way between two integers */
    test_to_q8(ties, 32);
    for (int exponent = -40; exponent <= 30; exponent++) { /* scales of zero, denormals, and beyond the range */
        float sized[40];
        for (int i = 0; i < 40; i++) sized[i] = ldexpf(random_float(), exponent);
        test_to_q8(sized, 40);
    }
}

enum { ROWS = 8, COUNT_MAX = EM_PAGE_TOKENS, WIDTH_MAX = 520 };

/* Scores and mixtures of some rows, which go together. */
static void attend(const em_kernels *kernels, int32_t rows, const float *queries, const float *shares, em_cached cache,
                   int32_t count, int32_t width, int32_t format, float scores[][COUNT_MAX], float mixed[][WIDTH_MAX]) {
    em_attending attending[ROWS] = {{0}};
    float weights[ROWS][COUNT_MAX] = {{0}};
    for (int32_t r = 0; r < rows; r++) {
        attending[r] = (em_attending){queries + (size_t)r * width, mixed[r], scores[r], 0.5f};
        for (int32_t i = 0; i < width; i++) mixed[r][i] = (float)i;
    }
    kernels->scores[format](attending, rows, cache, count, width, 0.25f);
    for (int32_t r = 0; r < rows; r++) {
        memcpy(weights[r], shares + (size_t)r * count, (size_t)count * sizeof(float));
        attending[r].weights = weights[r];
    }
    kernels->mix[format](attending, rows, cache, count, width);
}

/* Rows of the cache are `extra` wider than what is read of them. */
static void test_attention(int32_t width, int32_t extra, int32_t count, int32_t format) {
    const int32_t row_width = width + extra;
    float *queries = random_floats((size_t)ROWS * width), *shares = random_floats((size_t)ROWS * count);
    float *plain = random_floats((size_t)count * row_width);
    uint16_t *halves = allocate((size_t)count * row_width * sizeof *halves);
    int8_t *bytes = allocate((size_t)count * row_width);
    uint16_t *scales = allocate((size_t)count * em_group_count(row_width) * sizeof *scales);
    for (int32_t row = 0; row < count; row++) {
        const size_t at = (size_t)row * row_width, groups_at = (size_t)row * em_group_count(row_width);
        sets[0]->to_half(plain + at, halves + at, row_width);
        sets[0]->to_q8(plain + at, bytes + at, scales + groups_at, row_width);
        for (int32_t i = 0; i < row_width; i++) {
            if (format == EM_F16) plain[at + i] = em_half_to_float(halves[at + i]);
            if (format == EM_Q8) plain[at + i] = bytes[at + i] * em_half_to_float(scales[groups_at + i / 32]);
        }
    }
    const void *elements[EM_CACHE_FORMATS] = {[EM_F32] = plain, [EM_F16] = halves, [EM_Q8] = bytes};
    const em_cached cache = {elements[format], format == EM_Q8 ? scales : NULL, row_width};
    static float scores[2][ROWS][COUNT_MAX], mixed[2][ROWS][WIDTH_MAX];
    attend(sets[0], ROWS, queries, shares, cache, count, width, format, scores[0], mixed[0]);
    for (int32_t s = 0; s < set_count; s++) { /* any number of rows, each with the bits that it has alone */
        for (int32_t first = 0; first < ROWS; first++) {
            const int32_t rows = ROWS - first;
            attend(sets[s], rows, queries + (size_t)first * width, shares + (size_t)first * count, cache, count, width,
                   format, scores[1], mixed[1]);
            for (int32_t r = 0; r < rows; r++) {
                CHECK(memcmp(scores[1][r], scores[0][first + r], (size_t)count * sizeof(float)) == 0);
                CHECK(memcmp(mixed[1][r], mixed[0][first + r], (size_t)width * sizeof(float)) == 0);
            }
        }
    }
    add_to_digest(scores[0][0], (size_t)count * sizeof(float));
    add_to_digest(mixed[0][0], (size_t)width * sizeof(float));
    for (int32_t r = 0; r < ROWS; r++) {
        for (int32_t key = 0; key < count; key++) {
            double sum = 0;
            for (int32_t i = 0; i < width; i++) sum += (double)queries[r * width + i] * plain[key * row_width + i];
            CHECK(fabs(scores[0][r][key] - 0.25 * sum) <= 1e-6 * width);
        }
        for (int32_t i = 0; i < width; i++) {
            double sum = 0.5 * i;
            for (int32_t row = 0; row < count; row++) sum += (double)shares[r * count + row] * plain[row * row_width + i];
            CHECK(fabs(mixed[0][r][i] - sum) <= 1e-6 * (count + i));
        }
    }
    free(queries);
    free(shares);
    free(plain);
    free(halves);
    free(bytes);
    free(scales);
}

int main(void) {
    find_sets(NULL);
    test_halves();
    print_digest("halves");
    const int32_t widths[] = {1, 31, 32, 33, 64, 80, 100, 257, WIDTH_MAX};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        float *input = random_floats(widths[w]);
        test_to_q8(input, widths[w]);
        free(input);
        for (int32_t format = 0; format < EM_CACHE_FORMATS; format++) {
            for (int32_t count = 1; count <= 64; count += 9) {
                test_attention(widths[w], 0, count, format);
                test_attention(widths[w], 40, count, format);
            }
        }
    }
    test_to_q8_extremes();
    print_digest("caches");
    return 0;
}
