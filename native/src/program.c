/* A list of operations, run one after the other. */
#include "arithmetic.h"
#include "clock.h"
#include "operations.h"

static int32_t run_one(const em_operation *operation, const em_run *run) {
#define RUN(kind, name) \
    case EM_##kind: return em_run_##name(&operation->as.name, run);
    switch (operation->kind) {
        EM_OPERATIONS(RUN)
    default: return EM_BAD_OPERATION;
    }
#undef RUN
}

static size_t scratch_of(const em_operation *operation, int32_t tokens) {
#define SCRATCH(kind, name) \
    case EM_##kind: return em_##name##_scratch_bytes(&operation->as.name, tokens);
    switch (operation->kind) {
        EM_OPERATIONS(SCRATCH)
    default: return 0;
    }
#undef SCRATCH
}

uint64_t em_program_scratch_bytes(const em_operation *operations, int32_t count, int32_t tokens) {
    size_t most = 0;
    for (int32_t i = 0; i < count; i++) {
        const size_t bytes = scratch_of(&operations[i], tokens);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static int32_t check(const em_program *program, int32_t tokens) {
    if (!program->kernels || !program->pool || !program->scratch) return EM_BAD_ARGUMENT;
    if (tokens < 1 || tokens > program->tokens_max) return EM_BAD_ARGUMENT;
    return program->scratch->bytes < program->scratch_bytes ? EM_SMALL_SCRATCH : EM_OK;
}

static int32_t run_timed(const em_operation *operation, const em_run *run, em_operation_time *time) {
    const uint64_t start = em_now_ns();
    em_run timed = *run;
    timed.disk_ns = &time->disk_ns;
    em_pool_time(run->pool, &time->waited_ns);
    const int32_t status = run_one(operation, &timed);
    time->elapsed_ns += em_now_ns() - start;
    return status;
}

static int32_t run_some(em_program *program, const em_run *run, int32_t first, int32_t count) {
    for (int32_t i = first; i < first + count; i++) {
        const em_operation *operation = &program->operations[i];
        const int32_t status =
            program->times ? run_timed(operation, run, &program->times->operations[i]) : run_one(operation, run);
        if (status != EM_OK) {
            program->failed_operation = i;
            return status;
        }
    }
    return EM_OK;
}

int32_t em_program_run_some(em_program *program, int32_t tokens, int32_t first, int32_t count) {
    if (!program) return EM_BAD_ARGUMENT;
    const uint64_t start = program->times ? em_now_ns() : 0;
    program->failed_operation = -1;
    int32_t status = check(program, tokens);
    if (status == EM_OK && (first < 0 || count < 0 || first > program->operation_count - count)) status = EM_BAD_ARGUMENT;
    if (status == EM_OK) status = em_pool_acquire(program->pool);
    if (status != EM_OK) return status;
    const em_run run = {program->kernels, program->pool, program->scratch->data, tokens, NULL};
    fenv_t callers;
    fegetenv(&callers);
    em_plain_arithmetic();
    status = run_some(program, &run, first, count);
    fesetenv(&callers);
    em_pool_release(program->pool);
    if (program->times) program->times->elapsed_ns += em_now_ns() - start;
    return status;
}

int32_t em_program_run(em_program *program, int32_t tokens) {
    return program ? em_program_run_some(program, tokens, 0, program->operation_count) : EM_BAD_ARGUMENT;
}
