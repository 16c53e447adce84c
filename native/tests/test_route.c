/* Which experts are chosen: order, ties, the bonus for experts in memory, groups, numbers that are not finite. */
#include <math.h>
#include <string.h>

#include "decoder.h"

/* By falling logit, on a tie the lower number, a NaN after all numbers. */
static void test_route_order(void) {
    const float logits[2][6] = {{NAN, 1, NAN, 2, -INFINITY, 2}, {0.5f, -0.0f, 0.0f, 0.5f, 7, -1}};
    const int32_t expected[2][6] = {{3, 5, 1, 4, 0, 2}, {4, 0, 3, 1, 2, 5}};
    int32_t chosen[2][6];
    float weights[2][6], sum = 0;
    em_operation operation = {.kind = EM_ROUTE};
    operation.as.route = (em_route){
        .logits = *logits, .experts = *chosen, .weights = *weights, .num_experts = 6, .top_k = 6, .renormalise = 1,
        .groups = 1, .kept_groups = 1, .scale = 1};
    em_pool *pool;
    CHECK_STATUS(EM_OK, em_pool_create(1, 0, &pool));
    const em_scratch scratch = {NULL, 0};
    em_program program = program_of("generic", pool, &operation, 1, 2, &scratch);
    CHECK_STATUS(EM_OK, em_program_run(&program, 2));
    CHECK(memcmp(chosen, expected, sizeof chosen) == 0);
    for (int k = 0; k < 6; k++) sum += weights[1][k];
    CHECK(fabsf(sum - 1) < 1e-6f && isnan(weights[0][5]));
    CHECK(fabsf(weights[1][1] / weights[1][0] - expf(-6.5f)) < 1e-6f);
    em_pool_destroy(pool);
}

/* With a bonus for experts in memory: the largest logit stays, scores choose the others, logits order them. */
static void test_route_bonus(void) {
    const float logits[4][6] = {
        {0, 6, 5, 4, 3, 2}, {1, 1, 1, 1, 1, 1}, {NAN, 1, INFINITY, 2, 3, 2}, {3e38f, -3e38f, 1, 2, 3, 4}};
    const int32_t slots[6] = {1, -1, -7, 0, -1, 4};
    /* Of a range of 6 half is 3: scores 3, 6, 5, 7, 3, 5, with 2 before 5 by its logit. A range that is not finite gives
     * no bonus. */
    const int32_t expected[4][3] = {{1, 2, 3}, {0, 1, 2}, {2, 4, 3}, {0, 5, 4}};
    for (int32_t set = 0; set < em_isa_count(); set++) {
        int32_t chosen[4][3];
        float weights[4][3];
        em_operation operation = {.kind = EM_ROUTE};
        operation.as.route = (em_route){
            .logits = *logits, .experts = *chosen, .weights = *weights, .slots = slots, .num_experts = 6,
            .top_k = 3, .renormalise = 1, .bonus = 0.5f, .groups = 1, .kept_groups = 1, .scale = 1};
        em_pool *pool;
        CHECK_STATUS(EM_OK, em_pool_create(2, 0, &pool));
        const em_scratch scratch = {NULL, 0};
        em_program program = program_of(em_isa_name(set), pool, &operation, 1, 4, &scratch);
        CHECK_STATUS(EM_OK, em_program_run(&program, 4));
        CHECK(memcmp(chosen, expected, sizeof chosen) == 0);
        CHECK(fabsf(weights[0][2] / weights[0][0] - expf(-2)) < 1e-6f); /* of the logits, not the scores */
        operation.as.route.bonus = 1; /* scores 6, 6, 5, 10, 3, 8 */
        CHECK_STATUS(EM_OK, em_program_run(&program, 1));
        CHECK(chosen[0][0] == 1 && chosen[0][1] == 3 && chosen[0][2] == 5);
        em_pool_destroy(pool);
    }
}

/* By sigmoid plus bias within kept groups; a NaN comes after all numbers and spoils the sum. */
static void test_route_groups(void) {
    const float logits[2][6] = {{0, 0, 9, NAN, 0, 0}, {NAN, NAN, NAN, NAN, NAN, NAN}};
    const float bias[6] = {0, 0.25f, 5, 0, 0.5f, 0};
    /* Sums of groups 1.25, NaN, 1.5: the second comes last. */
    const int32_t expected[2][4] = {{4, 1, 0, 5}, {0, 1, 2, 3}};
    for (int32_t set = 0; set < em_isa_count(); set++) {
        int32_t chosen[2][4];
        float weights[2][4], memory[64];
        em_operation operation = {.kind = EM_ROUTE};
        operation.as.route = (em_route){
            .logits = *logits, .experts = *chosen, .weights = *weights, .choice_bias = bias, .num_experts = 6, .top_k = 4,
            .score = EM_SCORE_SIGMOID, .renormalise = 1, .groups = 3, .kept_groups = 2, .scale = 2};
        em_pool *pool;
        CHECK_STATUS(EM_OK, em_pool_create(2, 0, &pool));
        const em_scratch scratch = {(uint8_t *)memory, sizeof memory};
        CHECK(em_program_scratch_bytes(&operation, 1, 2) <= sizeof memory);
        em_program program = program_of(em_isa_name(set), pool, &operation, 1, 2, &scratch);
        CHECK_STATUS(EM_OK, em_program_run(&program, 2));
        CHECK(memcmp(chosen[0], expected[0], sizeof chosen[0]) == 0);
        for (int k = 0; k < 4; k++) CHECK(weights[0][k] == 0.5f && chosen[1][k] >= 0 && chosen[1][k] < 6);
        em_pool_destroy(pool);
    }
}

int main(void) {
    test_route_order();
    test_route_bonus();
    test_route_groups();
    return 0;
}
