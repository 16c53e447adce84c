/* Rows go down binary trees: a feed-forward layer of which a row reads one path alone. */
#include "../operations.h"

#include <string.h>

enum {
    /* A chunk of fewer numbers than this costs more to hand out than to do. */
    CHUNK_NUMBERS = 16384,
    /* Neurons of a leaf that are computed together: the kernels take no more. */
    NEURONS_AT_ONCE = EM_PAGE_TOKENS,
};

typedef struct tree_task {
    const em_tree_ffn *tree;
    const em_run *run;
} tree_task;

/* Rows of a matrix that has them whole, from row `first` on. */
static em_cached whole_rows(const em_matrix *matrix, int64_t first, int32_t width) {
    const size_t element_bytes = matrix->format == EM_F16 ? 2 : 4;
    return (em_cached){.elements = matrix->data + (size_t)first * (size_t)width * element_bytes, .row_width = width};
}

/* Writes the dots of the input with `count` rows, from row `first` on. */
static void multiply(const tree_task *task, const em_matrix *matrix, int64_t first, int32_t count, const float *input,
                     float *dots) {
    const int32_t width = task->tree->hidden_size;
    const em_attending row = {.query = input, .weights = dots};
    task->run->kernels->scores[matrix->format](&row, 1, whole_rows(matrix, first, width), count, width, 1);
}

/* Adds the rows from row `first` on to the output, each times the activation of its neuron's number. */
static void add_neurons(const tree_task *task, int64_t first, int32_t count, const float *numbers, float *output) {
    static const float ones[NEURONS_AT_ONCE] = {[0 ... NEURONS_AT_ONCE - 1] = 1};
    const em_tree_ffn *t = task->tree;
    const em_kernels *kernels = task->run->kernels;
    float hidden[NEURONS_AT_ONCE];
    kernels->activate[t->activation.function](&t->activation, numbers, ones, hidden, count);
    const em_attending row = {.output = output, .weights = hidden, .factor = 1};
    kernels->mix[t->out.format](&row, 1, whole_rows(&t->out, first, t->hidden_size), count, t->hidden_size);
}

static void add_leaf(const tree_task *task, int64_t leaf, const float *input, float *output) {
    const em_tree_ffn *t = task->tree;
    for (int64_t done = 0; done < t->leaf_width; done += NEURONS_AT_ONCE) {
        const int64_t left = t->leaf_width - done, first = leaf * t->leaf_width + done;
        const int32_t count = left < NEURONS_AT_ONCE ? (int32_t)left : NEURONS_AT_ONCE;
        float numbers[NEURONS_AT_ONCE];
        multiply(task, &t->leaf_in, first, count, input, numbers);
        for (int32_t i = 0; t->leaf_bias && i < count; i++) numbers[i] += t->leaf_bias[first + i];
        add_neurons(task, first, count, numbers, output);
    }
    const float *bias = t->output_bias ? t->output_bias + leaf * t->hidden_size : NULL;
    for (int32_t i = 0; bias && i < t->hidden_size; i++) output[i] += bias[i];
}

static void walk(const tree_task *task, int64_t number, const float *input, float *output) {
    const em_tree_ffn *t = task->tree;
    const int leaves = t->leaf_width > 0;
    const int64_t nodes = (leaves ? INT64_C(1) << t->depth : INT64_C(2) << t->depth) - 1;
    int64_t place = 0;
    for (int64_t level = leaves; level <= t->depth; level++) {
        const int64_t node = number * nodes + place;
        float logit;
        multiply(task, &t->nodes, node, 1, input, &logit);
        logit += t->node_bias[node];
        if (!leaves) add_neurons(task, node, 1, &logit, output);
        place = 2 * place + 1 + (leaves ? logit >= 0 : logit > 0);
    }
    if (leaves) add_leaf(task, (number << t->depth) + place - nodes, input, output);
}

static void walk_rows(void *context, int64_t begin, int64_t end, int32_t thread) {
    const tree_task *task = context;
    const em_tree_ffn *t = task->tree;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        float *output = t->output + row * t->hidden_size;
        memset(output, 0, (size_t)t->hidden_size * sizeof *output);
        for (int64_t tree = 0; tree < t->trees; tree++) walk(task, tree, t->input + row * t->hidden_size, output);
    }
}

EM_NO_SCRATCH(tree_ffn)

int32_t em_run_tree_ffn(const em_tree_ffn *tree, const em_run *run) {
    const tree_task task = {tree, run};
    const int64_t numbers = tree->hidden_size * tree->trees * (tree->depth + 2 * tree->leaf_width + 1);
    em_pool_for(run->pool, run->tokens, (CHUNK_NUMBERS + numbers - 1) / numbers, walk_rows, (void *)(uintptr_t)&task);
    return EM_OK;
}
