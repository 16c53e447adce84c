/* Quantised activations in scratch memory. */
#include "../operations.h"

em_quantised em_lay_out_quantised(em_layout *layout, int32_t rows, int32_t columns) {
    const size_t groups = (size_t)rows * em_group_count(columns);
    return (em_quantised){
        .values = em_lay_out(layout, groups * EM_GROUP_COLUMNS),
        .groups = em_lay_out(layout, groups * sizeof(em_group)),
    };
}

typedef struct quantise_task {
    const em_kernels *kernels;
    const float *input;
    const uint8_t *wanted;
    em_quantised quantised;
    int32_t columns;
} quantise_task;

static void quantise(void *context, int64_t begin, int64_t end, int32_t thread) {
    const quantise_task *task = context;
    const int64_t groups = em_group_count(task->columns);
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        if (task->wanted && !task->wanted[row]) continue;
        task->kernels->quantise(task->input + row * task->columns, task->columns,
                                task->quantised.values + row * groups * EM_GROUP_COLUMNS,
                                task->quantised.groups + row * groups);
    }
}

void em_quantise_rows(const em_run *run, const float *input, int32_t rows, int32_t columns, const uint8_t *wanted,
                      em_quantised quantised) {
    quantise_task task = {run->kernels, input, wanted, quantised, columns};
    em_pool_for(run->pool, rows, 4, quantise, &task);
}
