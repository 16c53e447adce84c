/* Every kernel of every instruction set against its formula, and all sets against each other to the bit; those of the
 * KV cache are in test_caches.c.
 *
 * What it prints is the same for every processor. (Of results that are not numbers only that is the same.) */
#include <math.h>
#include <string.h>

#include "kernels/exponential.h"
#include "random_panels.h"
#include "sets.h"

enum { ROWS = 11, ROWS_MAX = 64 };

static void test_panels(int32_t format, int32_t columns, int32_t count) {
    enum { PANELS = 3, MARGIN = 5, STRIDE = PANELS * EM_PANEL_ROWS + MARGIN };
    const size_t panel_bytes = em_panel_bytes(format, columns);
    uint8_t *data = allocate(em_head_bytes(format) + PANELS * panel_bytes), *panels = data + em_head_bytes(format);
    random_tables(data, format);
    for (int p = 0; p < PANELS; p++) {
        uint8_t *panel = random_panel(format, columns);
        memcpy(panels + p * panel_bytes, panel, panel_bytes);
        free(panel);
    }
    const int32_t groups = em_group_count(columns);
    float *floats = random_floats((size_t)ROWS * columns);
    int8_t *values = allocate((size_t)ROWS * groups * EM_GROUP_COLUMNS);
    em_group *group_array = allocate((size_t)ROWS * groups * sizeof *group_array);
    int32_t rows[ROWS_MAX];
    for (int32_t i = 0; i < ROWS; i++) {
        sets[0]->quantise(floats + (size_t)i * columns, columns, values + (size_t)i * groups * EM_GROUP_COLUMNS,
                          group_array + (size_t)i * groups);
    }
    for (int32_t i = 0; i < count; i++) rows[i] = (int32_t)(random_bits() % ROWS);
    const em_activations x = {floats, values, group_array, columns, groups};
    const em_matrix matrix = {data, format, PANELS * EM_PANEL_ROWS, columns};
    static float results[2][ROWS_MAX][STRIDE];
    float alone[EM_PANEL_ROWS];
    memset(results, 0x55, sizeof results);
    for (int32_t s = 0; s < set_count; s++) {
        const int to = s > 0;
        sets[s]->panels[format](&matrix, 0, PANELS, &x, rows, count, results[to][0], STRIDE);
        /* The same bits in every set, and nothing is written beyond the panels. */
        CHECK(memcmp(results[to], results[0], (size_t)count * sizeof results[0][0]) == 0);
        /* In company and alone a row and a panel get the same. */
        sets[s]->panels[format](&matrix, PANELS - 1, 1, &x, rows + count - 1, 1, alone, 0);
        CHECK(memcmp(alone, results[0][count - 1] + (PANELS - 1) * EM_PANEL_ROWS, sizeof alone) == 0);
    }
    add_to_digest(results[0], (size_t)count * sizeof results[0][0]);
    for (int32_t i = 0; i < count; i++) {
        for (int32_t r = 0; r < PANELS * EM_PANEL_ROWS; r++) {
            const uint8_t *panel = panels + (r / EM_PANEL_ROWS) * panel_bytes;
            double sum = 0, size = 0;
            for (int32_t c = 0; c < columns; c++) {
                const size_t at = (size_t)rows[i] * groups * EM_GROUP_COLUMNS + c;
                const em_group *group = &group_array[(size_t)rows[i] * groups + c / EM_GROUP_COLUMNS];
                const double in = em_is_quantised(format) ? (double)values[at] * group->scale
                                                          : floats[(size_t)rows[i] * columns + c];
                const double term = in * weight_at(data, panel, format, columns, r % EM_PANEL_ROWS, c);
                sum += term;
                size += fabs(term) + fabs(in) * apart_at(panel, format, columns, r % EM_PANEL_ROWS, c);
            }
            CHECK(fabs(results[0][i][r] - sum) <= 1e-5 * size + 1e-30);
        }
        for (int32_t r = PANELS * EM_PANEL_ROWS; r < STRIDE; r++) {
            uint32_t bits;
            memcpy(&bits, &results[0][i][r], sizeof bits);
            CHECK(bits == 0x55555555);
        }
    }
    free(data);
    free(floats);
    free(values);
    free(group_array);
}

/* Weights with each code and each scale, times one activation of 1: what remains is the weight itself. */
static void test_m4_numbers(void) {
    static uint8_t panel[320];
    const int32_t row = 0;
    CHECK(em_panel_bytes(EM_M4, EM_GROUP_COLUMNS) == sizeof panel);
    for (int32_t e = 0; e < 255; e++) {
        const int32_t column = e % 2 ? 5 : 21; /* a low nibble, or a high one */
        int8_t values[EM_GROUP_COLUMNS] = {0};
        values[column] = 1;
        for (int code = 0; code < 16; code++) {
            /* The product is a float32 whatever the weight: no digit is lost. */
            const em_group group = {.scale = e < 128 ? 0x1p20f : 0x1p-20f, .q4_start = -8, .half_sums = {column < 16, column >= 16}};
            const em_activations x = {NULL, values, &group, EM_GROUP_COLUMNS, 1};
            const em_matrix matrix = {panel, EM_M4, EM_PANEL_ROWS, EM_GROUP_COLUMNS};
            memset(panel, code * 17, sizeof panel);
            memset(panel + 256, e, 16);
            for (int32_t s = 0; s < set_count; s++) {
                float out[EM_PANEL_ROWS];
                sets[s]->panels[EM_M4](&matrix, 0, 1, &x, &row, 1, out, 0);
                for (int r = 0; r < EM_PANEL_ROWS; r++) {
                    CHECK((double)out[r] == weight_at(panel, panel, EM_M4, EM_GROUP_COLUMNS, r, column) * (double)group.scale);
                }
            }
        }
    }
}

static void test_quantise(const float *input, int32_t columns) {
    const int32_t groups = em_group_count(columns);
    int8_t *values[2];
    em_group *found[2];
    for (int i = 0; i < 2; i++) {
        values[i] = allocate((size_t)groups * EM_GROUP_COLUMNS);
        found[i] = allocate((size_t)groups * sizeof **found);
    }
    for (int32_t s = 0; s < set_count; s++) {
        const int to = s > 0;
        sets[s]->quantise(input, columns, values[to], found[to]);
        CHECK(memcmp(values[to], values[0], (size_t)groups * EM_GROUP_COLUMNS) == 0);
        CHECK(memcmp(found[to], found[0], (size_t)groups * sizeof **found) == 0);
    }
    for (int32_t g = 0; g < groups; g++) {
        float largest = 0;
        int sum = 0, first_sum = 0;
        for (int32_t i = 0; i < EM_GROUP_COLUMNS; i++) {
            const int32_t column = g * EM_GROUP_COLUMNS + i;
            const int8_t value = values[0][column];
            sum += value;
            if (i < 16) first_sum += value;
            CHECK(value >= -127);
            if (column >= columns) CHECK(value == 0);
            if (column >= columns || isnan(largest)) continue;
            if (!(fabsf(input[column]) <= largest)) largest = fabsf(input[column]);
        }
        if (!isfinite(largest)) {
            CHECK(!isfinite(found[0][g].scale));
            continue;
        }
        add_to_digest(values[0] + g * EM_GROUP_COLUMNS, EM_GROUP_COLUMNS);
        add_to_digest(&found[0][g], sizeof found[0][g]);
        if (largest < EM_SMALLEST_ACTIVATION) largest = 0;
        CHECK(found[0][g].scale == largest / 127.0f);
        CHECK(found[0][g].q4_start == -8 * sum && found[0][g].half_sums[0] + found[0][g].half_sums[1] == sum);
        CHECK(found[0][g].half_sums[0] == first_sum);
        CHECK(found[0][g].scaled_sum == found[0][g].scale * (float)sum);
        for (int32_t i = g * 32; i < g * 32 + 32 && i < columns; i++) {
            CHECK(values[0][i] == (largest > 0 ? (int8_t)nearbyintf(input[i] * (127.0f / largest)) : 0));
        }
    }
    for (int i = 0; i < 2; i++) {
        free(values[i]);
        free(found[i]);
    }
}

static void test_quantise_extremes(void) {
    const float strange[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f, 1e-35f, 0.9e-35f,
                             -3e38f, 3.4e38f, 1.0f, -0.5f};
    enum { KINDS = sizeof strange / sizeof *strange };
    for (int first = 0; first < KINDS; first++) {
        for (int second = 0; second < KINDS; second++) {
            float input[40] = {0};
            for (int i = 0; i < 40; i++) input[i] = i % 3 ? strange[first] : strange[second];
            test_quantise(input, 40);
        }
    }
    float ties[32];
    for (int i = 0; i < 32; i++) ties[i] = (float)(i - 16) + 0.5f;
    ties[0] = 127.0f; /* factor 1: every other value lies half way between two integers */
    test_quantise(ties, 32);
}

static void compare_activations(const em_activation *activation, const float *gate, const float *up,
                                float results[2][300], int32_t count) {
    for (int32_t s = 0; s < set_count; s++) {
        const int to = s > 0;
        sets[s]->activate[activation->function](activation, gate, up, results[to], count);
        for (int32_t i = 0; i < count; i++) {
            /* The bits of a NaN are the processor's business. */
            if (isnan(results[to][i]) && isnan(results[0][i])) results[to][i] = results[0][i];
        }
        CHECK(memcmp(results[to], results[0], (size_t)count * sizeof *gate) == 0);
    }
    for (int32_t i = 0; i < count; i++) {
        if (isnan(results[0][i])) results[0][i] = NAN;
    }
    add_to_digest(results[0], (size_t)count * sizeof *gate);
}

static void test_elementwise(int32_t count) {
    float *a = random_floats(count + 1), *b = random_floats(count + 1);
    for (int32_t i = 0; i < count; i++) a[i] *= 100;
    float results[2][300];
    float sums[2][2];
    for (int32_t s = 0; s < set_count; s++) {
        const int to = s > 0;
        sums[to][0] = sets[s]->sum_squares(b, count);
        memcpy(results[to], b, (size_t)count * sizeof *b);
        sums[to][1] = sets[s]->exponentials(results[to], count, 0.5f);
        CHECK(memcmp(sums[to], sums[0], sizeof sums[0]) == 0);
        CHECK(memcmp(results[to], results[0], (size_t)count * sizeof *b) == 0);
    }
    add_to_digest(sums[0], sizeof sums[0]);
    add_to_digest(results[0], (size_t)count * sizeof *b);
    double squares = 0, total = 0;
    for (int32_t i = 0; i < count; i++) {
        squares += (double)b[i] * b[i];
        total += exp((double)(b[i] - 0.5f));
        CHECK(fabs(results[0][i] - exp((double)(b[i] - 0.5f))) <= 3e-7 * results[0][i]);
    }
    CHECK(fabs(sums[0][0] - squares) <= 1e-5 * squares && fabs(sums[0][1] - total) <= 1e-5 * total);
    const em_activation silu = {.function = EM_FUNCTION_SILU};
    compare_activations(&silu, a, b, results, count);
    for (int32_t i = 0; i < count; i++) {
        const double gated = a[i] / (1 + exp(-(double)a[i])) * b[i];
        /* exp() of a float overflows at 88.7, where the quotient is still 2.6e-37. */
        CHECK(fabs(results[0][i] - gated) <= 1e-6 * fabs(gated) + 3e-37 * fabs(b[i]) + 1e-44);
    }
    const em_activation clamped = {
        .function = EM_FUNCTION_CLAMPED_SILU, .alpha = 1.702f, .limit = 0.75f, .offset = 1};
    compare_activations(&clamped, a, b, results, count);
    for (int32_t i = 0; i < count; i++) {
        const double g = fmin(a[i], 0.75), u = fmax(fmin(b[i], 0.75), -0.75);
        const double gated = g / (1 + exp(-(double)1.702f * g)) * (u + 1);
        CHECK(fabs(results[0][i] - gated) <= 1e-6 * fabs(gated) + fabs(g) * 2e-7 + 1e-36);
    }
    const em_activation capped = {.function = EM_FUNCTION_CAPPED_SILU, .limit = 0.75f};
    compare_activations(&capped, a, b, results, count);
    for (int32_t i = 0; i < count; i++) {
        const double g = fmin(a[i] / (1 + exp(-(double)a[i])), 0.75), u = fmax(fmin(b[i], 0.75), -0.75);
        CHECK(fabs(results[0][i] - g * u) <= 1e-6 * fabs(g * u) + 1e-36);
    }
    const em_activation gelu = {.function = EM_FUNCTION_GELU_TANH};
    compare_activations(&gelu, b, a, results, count);
    for (int32_t i = 0; i < count; i++) {
        const double g = b[i], gated = 0.5 * g * (1 + tanh(0.79788456080286536 * (g + 0.044715 * g * g * g))) * a[i];
        CHECK(fabs(results[0][i] - gated) <= 2e-6 * fabs(gated) + 1e-6 * fabs(a[i]) * exp(-fabs(g)) + 1e-36);
    }
    const em_activation relu = {.function = EM_FUNCTION_RELU}, relu2 = {.function = EM_FUNCTION_RELU2};
    compare_activations(&relu, b, a, results, count);
    for (int32_t i = 0; i < count; i++) CHECK(results[0][i] == (b[i] > 0 ? b[i] : 0) * a[i]);
    compare_activations(&relu2, b, a, results, count);
    for (int32_t i = 0; i < count; i++) CHECK(results[0][i] == (b[i] > 0 ? b[i] * b[i] : 0) * a[i]);
    const em_activation normal = {.function = EM_FUNCTION_GELU};
    compare_activations(&normal, b, a, results, count);
    for (int32_t i = 0; i < count; i++) {
        const double g = b[i], gated = 0.5 * g * erfc(-g * 0.70710678118654752) * a[i];
        CHECK(fabs(results[0][i] - gated) <= 1e-6 * fabs(gated) + 1e-6 * fabs(a[i]) * exp(-fabs(g)) + 1e-36);
    }
    const float strange[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 3e38f, -3e38f};
    for (int32_t i = 0; i < count; i++) a[i] = strange[i % 7], b[i] = strange[i / 7 % 7];
    const em_activation *const all[] = {&clamped, &gelu, &relu, &relu2, &capped, &normal};
    for (int32_t kind = 0; kind < 6; kind++) {
        compare_activations(all[kind], a, b, results, count);
        for (int32_t i = 0; i < count; i++) CHECK(isnan(results[0][i]) || (!isnan(a[i]) && !isnan(b[i])));
    }
    free(a);
    free(b);
}

static void test_many_exponentials(void) {
    enum { COUNT = 20000 };
    static float in[COUNT], out[2][COUNT];
    for (int i = 0; i < COUNT; i++) in[i] = 100 * random_float() - 12;
    for (int32_t s = 0; s < set_count; s++) {
        memcpy(out[s > 0], in, sizeof in);
        sets[s]->exponentials(out[s > 0], COUNT, 0.0f);
        CHECK(memcmp(out[s > 0], out[0], sizeof out[0]) == 0);
    }
    for (int i = 0; i < COUNT; i++) CHECK(fabs(out[0][i] - exp((double)in[i])) <= 3e-7 * out[0][i] + 1.5e-45);
    add_to_digest(out[0], sizeof out[0]);
}

static void test_exponential_extremes(void) {
    const float in[] = {0, -0.0f, 88.7f, 89, 1000, INFINITY, -87, -90,
                        -103, -103.9f, -104, -1000, -INFINITY, NAN, 1e-30f, 1};
    enum { COUNT = sizeof in / sizeof *in };
    for (int32_t s = 0; s < set_count; s++) {
        float out[COUNT];
        memcpy(out, in, sizeof in);
        sets[s]->exponentials(out, COUNT, 0.0f);
        for (int i = 0; i < COUNT; i++) {
            const double expected = exp((double)in[i]);
            if (isnan(in[i])) {
                CHECK(isnan(out[i]));
            } else if (expected > 3.4028235e38) {
                CHECK(isinf(out[i]));
            } else {
                CHECK(fabs(out[i] - expected) <= 3e-7 * expected + 1.5e-45);
            }
        }
    }
}

#define COUNT_OF(array) (sizeof(array) / sizeof *(array))

int main(void) {
    find_sets(NULL);
    const int32_t columns[] = {1, 31, 32, 33, 64, 100, 257};
    const int32_t counts[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 21, 32, 37};
    for (int32_t format = 0; format < EM_FORMAT_COUNT; format++) {
        if (format == EM_SUB1) continue; /* test_sub1.c */
        /* All pairs in the formats that differ most; in the others each number of columns with two numbers of rows, as an
         * emulator takes minutes for more. */
        const int all = format <= EM_M4 || format == EM_Q2K || format == EM_Q6K || format == EM_NV4;
        for (size_t n = 0; n < COUNT_OF(counts); n++) {
            for (size_t c = 0; c < COUNT_OF(columns); c++) {
                if (all || c == n % COUNT_OF(columns)) test_panels(format, columns[c], counts[n]);
            }
        }
        test_panels(format, 640, 1); /* more groups than prefetches go ahead */
    }
    for (int32_t format = 0; format < EM_FORMAT_COUNT; format++) {
        if (format == EM_SUB1) continue; /* test_sub1.c */
        /* More groups than kernels take at a time, alone, and with more rows than they take at a time. */
        test_panels(format, 1057, 1);
        test_panels(format, 1057, 37);
    }
    test_m4_numbers();
    print_digest("products");
    for (size_t c = 0; c < sizeof columns / sizeof *columns; c++) {
        float *input = random_floats(columns[c]);
        test_quantise(input, columns[c]);
        free(input);
        test_elementwise(columns[c]);
    }
    print_digest("along vectors");
    test_quantise_extremes();
    print_digest("quantised extremes");
    test_many_exponentials();
    test_exponential_extremes();
    print_digest("exponentials");
    return 0;
}
