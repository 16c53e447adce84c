/* A small decoder: every operation once, with all buffers, for the tests that run whole programs. */
#ifndef EDGEMOE_DECODER_H
#define EDGEMOE_DECODER_H

#include <string.h>

#include "check.h"
#include "kernels/half.h"
#include "kernels/kernels.h"

enum {
    TOKENS = 75, /* more than one tile of rows and block of keys, and not a whole number of them */
    VOCABULARY = 50,
    WIDTH = 72,
    HEADS = 4,
    GROUPS = 2,
    HEAD_WIDTH = 18,
    PAGES = 2,
    CONTEXT = 90, /* less than what the pages hold */
    EXPERTS = 5,
    USED = 2,
    FFN = 40,
    SLOTS = 4,
    TAPS = 3,
    RING = 4,
    DELTA_KEY_HEADS = 2,
    DELTA_HEADS = 4,
    DELTA_KEYS = 10,
    DELTA_VALUES = 20, /* more than a panel, and not a whole number of them */
    DELTA_CHANNELS = 2 * DELTA_KEY_HEADS * DELTA_KEYS + DELTA_HEADS * DELTA_VALUES,
    DELTA_OUTPUTS = DELTA_HEADS * DELTA_VALUES,
    LATENT = 40, /* of which the second group in 8 bits has only a part */
    LATENT_ROTARY = 8,
    LATENT_WIDTH = LATENT + LATENT_ROTARY,
    NOPE = 12,
    STREAMS = 3,
    JOINING = STREAMS * (1 + STREAMS),
    RATE = 4,
    BLOCKS = EM_PAGE_TOKENS / RATE,
    GATED_STREAMS = 4, /* each as wide as a head */
    PAGE_BLOCKS = 16,
    RETRIEVERS = 2,
    KEYS = 10,
    RETRIEVED = 3,
    NEURON_BYTES = 512, /* of which 2 * WIDTH halves are weights */
    NEURONS_PER_PAGE = 8,
    NEURON_PAGES = (KEYS * KEYS + NEURONS_PER_PAGE - 1) / NEURONS_PER_PAGE,
    MIX_SLOTS = 6, /* of two experts */
    OPERATIONS = 96, /* at most, with one that begins to read experts */
};

static inline em_matrix random_matrix(int32_t format, int32_t rows, int32_t columns) {
    const size_t bytes = em_panel_count(rows) * em_panel_bytes(format, columns);
    uint8_t *data = allocate(bytes);
    for (size_t i = 0; i < bytes; i += 2) {
        /* As scales and f16 weights small numbers, as f32 and m4 weights too, as nibbles anything. */
        const uint16_t half = em_float_to_half(random_float() / 8);
        memcpy(data + i, &half, sizeof half);
    }
    for (size_t i = 0; format == EM_F32 && i < bytes / 4; i++) ((float *)(void *)data)[i] = random_float() / 8;
    for (size_t i = 0; format == EM_M4 && i < bytes; i++) data[i] = (uint8_t)(118 + random_bits() % 8);
    return (em_matrix){data, format, rows, columns};
}

/* A small decoder's worth of operations and all its buffers. */
typedef struct model {
    em_operation operations[OPERATIONS];
    int32_t count;
    int32_t ids[TOKENS], positions[TOKENS], sequences[TOKENS], pages[1][PAGES];
    int32_t slots[EXPERTS];
    uint8_t layout_of[EXPERTS]; /* of every other one the second */
    float hidden[TOKENS][WIDTH], normed[TOKENS][WIDTH], query[TOKENS][WIDTH], key[TOKENS][GROUPS * HEAD_WIDTH];
    float value[TOKENS][GROUPS * HEAD_WIDTH], attended[TOKENS][WIDTH], logits[TOKENS][EXPERTS];
    int32_t chosen[TOKENS][USED];
    float weights[TOKENS][USED], routed[TOKENS][USED][WIDTH], shared[TOKENS][WIDTH], shared_gate[TOKENS][1];
    float gates[TOKENS][3 * WIDTH], taps[WIDTH][TAPS], ring[1][RING][WIDTH], convolved[TOKENS][WIDTH];
    float delta_in[TOKENS][DELTA_CHANNELS], delta_gate[TOKENS][DELTA_OUTPUTS], delta_strength[TOKENS][DELTA_HEADS];
    float delta_decay[TOKENS][DELTA_HEADS], delta_taps[DELTA_CHANNELS][TAPS], delta_rate[DELTA_HEADS];
    float delta_ring[1][TAPS - 1][DELTA_CHANNELS], mixed[TOKENS][DELTA_CHANNELS], delta_out[TOKENS][DELTA_OUTPUTS];
    float apart_queries[TOKENS][DELTA_KEY_HEADS * DELTA_KEYS], apart_keys[TOKENS][DELTA_KEY_HEADS * DELTA_KEYS];
    float apart_decays[TOKENS][DELTA_HEADS * DELTA_KEYS], apart_out[TOKENS][DELTA_OUTPUTS];
    float states[1][DELTA_HEADS][2 * EM_PANEL_ROWS][DELTA_KEYS];
    float scan_states[1][DELTA_HEADS][2 * EM_PANEL_ROWS][DELTA_KEYS], own_norm[DELTA_OUTPUTS];
    float still_states[1][DELTA_HEADS][2 * EM_PANEL_ROWS][DELTA_KEYS];
    float apart_states[1][DELTA_HEADS][2 * EM_PANEL_ROWS][DELTA_KEYS];
    float channel_rates[WIDTH][LATENT_ROTARY], channel_states[1][(WIDTH + 15) / 16 * EM_PANEL_ROWS][LATENT_ROTARY];
    float stream[TOKENS][WIDTH / GATED_STREAMS], agreed[TOKENS][WIDTH];
    float index_ring[1][EM_PAGE_TOKENS / PAGE_BLOCKS - 1][HEAD_WIDTH], index_scores[3][PAGES][PAGE_BLOCKS];
    float block_keys[PAGES][PAGE_BLOCKS][HEAD_WIDTH]; /* large enough for every format */
    uint16_t index_scales[PAGES][PAGE_BLOCKS][1];
    int32_t chosen_blocks[TOKENS][PAGES];
    float norm[WIDTH], bias[WIDTH], cosine[CONTEXT][HEAD_WIDTH / 2], sine[CONTEXT][HEAD_WIDTH / 2];
    float caches[2][PAGES][GROUPS][EM_PAGE_TOKENS][HEAD_WIDTH]; /* large enough for every format */
    uint16_t cache_scales[2][PAGES][GROUPS][EM_PAGE_TOKENS][1];
    float latent[TOKENS][LATENT], rotary[TOKENS][LATENT_ROTARY], nope[TOKENS][HEADS * NOPE];
    float query_rotary[TOKENS][HEADS * LATENT_ROTARY], absorbed[TOKENS][HEADS * LATENT_WIDTH];
    float gathered[TOKENS][HEADS * LATENT];
    float latents[PAGES][EM_PAGE_TOKENS][LATENT_WIDTH]; /* large enough for every format */
    uint16_t latent_scales[PAGES][EM_PAGE_TOKENS][2];
    float streams[TOKENS][STREAMS * WIDTH], shares[TOKENS][STREAMS], joining[TOKENS][JOINING];
    float block_values[TOKENS][2 * HEAD_WIDTH], block_gates[TOKENS][2 * HEAD_WIDTH], index[TOKENS][HEADS];
    float block_ring[1][2 * RATE + 1][4 * HEAD_WIDTH], block_bias[RATE * 2 * HEAD_WIDTH];
    float blocks[PAGES][BLOCKS][HEAD_WIDTH]; /* large enough for every format */
    uint16_t block_scales[PAGES][BLOCKS][1];
    float singles[PAGES][EM_PAGE_TOKENS][HEAD_WIDTH]; /* and so are these */
    uint16_t single_scales[PAGES][EM_PAGE_TOKENS][1];
    float block_scores[2][PAGES][BLOCKS], table[VOCABULARY][USED], named_weights[TOKENS][USED];
    int32_t seen[TOKENS][PAGES], named[TOKENS][USED];
    float halves[2][TOKENS][RETRIEVERS * KEYS], retrieved_weights[TOKENS][RETRIEVERS * RETRIEVED];
    int32_t retrieved[TOKENS][RETRIEVERS * RETRIEVED], neuron_slots[NEURON_PAGES];
    float slot_logits[TOKENS][MIX_SLOTS], mix_slots[MIX_SLOTS][WIDTH], slot_results[MIX_SLOTS][WIDTH];
    float slot_vectors[MIX_SLOTS][WIDTH], variance[EXPERTS], mixture[TOKENS][WIDTH], pairs[TOKENS][4 * 9];
    void *owned[OPERATIONS];
    int32_t owned_count;
} model;

static inline em_operation *add(model *m, em_kind kind) {
    CHECK(m->count < OPERATIONS);
    m->operations[m->count].kind = kind;
    return &m->operations[m->count++];
}

static inline em_matrix owned_matrix(model *m, int32_t format, int32_t rows, int32_t columns) {
    const em_matrix matrix = random_matrix(format, rows, columns);
    CHECK(m->owned_count < OPERATIONS);
    m->owned[m->owned_count++] = (void *)(uintptr_t)matrix.data;
    return matrix;
}

/* A matrix that has rows of WIDTH whole. */
static inline em_matrix owned_rows(model *m, int32_t format, int32_t rows) {
    const int32_t panel = EM_PANEL_ROWS * EM_GROUP_COLUMNS;
    return owned_matrix(m, format, (rows * WIDTH + panel - 1) / panel * EM_PANEL_ROWS, EM_GROUP_COLUMNS);
}

static inline em_linear_part part_of(em_matrix matrix, const float *bias, float *output) {
    return (em_linear_part){.matrix = matrix, .bias = bias, .output = output};
}

static inline em_rope rope_of(model *m, float *values, int32_t heads) {
    return (em_rope){.values = values,
                     .heads = heads,
                     .positions = m->positions,
                     .cosine = *m->cosine,
                     .sine = *m->sine,
                     .head_dim = HEAD_WIDTH,
                     .rotated = HEAD_WIDTH,
                     .context = CONTEXT};
}

static inline void add_attention(model *m, int32_t cache_format) {
    add(m, EM_RMS_NORM)->as.rms_norm = (em_rms_norm){
        .input = *m->hidden, .weight = m->norm, .output = *m->normed, .epsilon = 1e-5f, .heads = 1, .own_weights = 1, .head_dim = WIDTH};
    em_linear *qkv = &add(m, EM_LINEAR)->as.linear;
    *qkv = (em_linear){.input = *m->normed, .parts_count = 3, .scale = 1};
    qkv->parts[0] = part_of(owned_matrix(m, EM_Q4M, WIDTH, WIDTH), m->bias, *m->query);
    qkv->parts[1] = part_of(owned_matrix(m, EM_F16, GROUPS * HEAD_WIDTH, WIDTH), NULL, *m->key);
    qkv->parts[2] = part_of(owned_matrix(m, EM_Q8, GROUPS * HEAD_WIDTH, WIDTH), NULL, *m->value);
    add(m, EM_CLIP)->as.clip = (em_clip){.values = *m->query, .limit = 1, .columns = WIDTH};
    add(m, EM_RMS_NORM)->as.rms_norm = (em_rms_norm){
        .input = *m->key, .output = *m->value, .epsilon = 1e-5f, .heads = GROUPS, .own_weights = 1, .head_dim = HEAD_WIDTH};
    add(m, EM_ROPE)->as.rope = rope_of(m, *m->query, HEADS);
    em_rope *keys_rope = &add(m, EM_ROPE)->as.rope;
    *keys_rope = rope_of(m, *m->key, GROUPS);
    keys_rope->neighbours = 1;
    add(m, EM_SCALE_BY_POSITION)->as.scale_by_position = (em_scale_by_position){
        .values = *m->query, .positions = m->positions, .factors = *m->cosine, .columns = WIDTH, .context = CONTEXT};
    const em_cache keys = {m->caches[0], ***m->cache_scales[0], cache_format};
    const em_cache values = {m->caches[1], ***m->cache_scales[1], cache_format};
    add(m, EM_STORE_KV)->as.store_kv =
        (em_store_kv){
        .keys = *m->key, .values = *m->value, .positions = m->positions, .sequences = m->sequences, .pages = *m->pages,
        .key_cache = keys, .value_cache = values, .sequence_count = 1, .table_pages = PAGES, .page_count = PAGES,
        .kv_heads = GROUPS, .head_dim = HEAD_WIDTH, .value_dim = HEAD_WIDTH};
    add(m, EM_ATTENTION)->as.attention = (em_attention){
        .query = *m->query, .positions = m->positions, .sequences = m->sequences, .pages = *m->pages, .key_cache = keys,
        .value_cache = values, .scale = 0.2f, .output = *m->attended, .sequence_count = 1, .table_pages = PAGES,
        .page_count = PAGES, .kv_heads = GROUPS, .head_dim = HEAD_WIDTH, .heads = HEADS,
        .value_dim = HEAD_WIDTH, .window = 20, .chunked = 1, .cap = 2, .factors = *m->cosine, .context = CONTEXT};
    add(m, EM_GATE)->as.gate = (em_gate){
        .gate = *m->query, .values = *m->attended, .gating = EM_GATING_SIGMOID, .runs = WIDTH, .width = 1};
    add(m, EM_GATE)->as.gate = (em_gate){
        .gate = *m->key, .values = *m->attended, .gating = EM_GATING_SOFTPLUS, .runs = GROUPS * HEAD_WIDTH, .width = 2};
    em_linear *output = &add(m, EM_LINEAR)->as.linear;
    *output = (em_linear){.input = *m->attended, .parts_count = 1, .scale = 0.5f, .accumulate = 1};
    output->parts[0] = part_of(owned_matrix(m, EM_Q4, WIDTH, WIDTH), NULL, *m->hidden);
}

static inline void add_latent_attention(model *m, int32_t cache_format) {
    em_linear *in = &add(m, EM_LINEAR)->as.linear;
    *in = (em_linear){.input = *m->normed, .parts_count = 4, .scale = 1};
    in->parts[0] = part_of(owned_matrix(m, EM_Q8, LATENT, WIDTH), NULL, *m->latent);
    in->parts[1] = part_of(owned_matrix(m, EM_Q4, LATENT_ROTARY, WIDTH), NULL, *m->rotary);
    in->parts[2] = part_of(owned_matrix(m, EM_F16, HEADS * NOPE, WIDTH), NULL, *m->nope);
    in->parts[3] = part_of(owned_matrix(m, EM_Q4, HEADS * LATENT_ROTARY, WIDTH), NULL, *m->query_rotary);
    const em_cache latents = {**m->latents, **m->latent_scales, cache_format};
    add(m, EM_STORE_LATENT)->as.store_latent = (em_store_latent){
        .latent = *m->latent, .rotary = *m->rotary, .positions = m->positions, .sequences = m->sequences,
        .pages = *m->pages, .latent_cache = latents, .value_dim = LATENT, .rotated = LATENT_ROTARY, .sequence_count = 1,
        .table_pages = PAGES, .page_count = PAGES, .head_dim = LATENT_WIDTH};
    add(m, EM_HEAD_LINEAR)->as.head_linear = (em_head_linear){
        .input = *m->nope, .matrix = owned_matrix(m, EM_Q8, HEADS * LATENT, NOPE), .passed = *m->query_rotary,
        .heads = HEADS, .output = *m->absorbed, .columns = NOPE, .rows = LATENT, .rotated = LATENT_ROTARY,
        .head_dim = LATENT_WIDTH};
    add(m, EM_ATTENTION)->as.attention = (em_attention){
        .query = *m->absorbed, .positions = m->positions, .sequences = m->sequences, .pages = *m->pages,
        .key_cache = latents, .scale = 0.2f, .output = *m->gathered, .sequence_count = 1, .table_pages = PAGES,
        .page_count = PAGES, .kv_heads = 1, .head_dim = LATENT_WIDTH, .heads = HEADS, .value_dim = LATENT};
    add(m, EM_HEAD_LINEAR)->as.head_linear = (em_head_linear){
        .input = *m->gathered, .matrix = owned_matrix(m, EM_Q4, HEADS * HEAD_WIDTH, LATENT), .heads = HEADS,
        .output = *m->attended, .columns = LATENT, .rows = HEAD_WIDTH, .head_dim = HEAD_WIDTH};
    em_linear *output = &add(m, EM_LINEAR)->as.linear;
    *output = (em_linear){.input = *m->attended, .parts_count = 1, .scale = 0.5f, .accumulate = 1};
    output->parts[0] = part_of(owned_matrix(m, EM_Q4, WIDTH, WIDTH), NULL, *m->hidden);
}

static inline void add_convolution(model *m) {
    em_linear *in = &add(m, EM_LINEAR)->as.linear;
    *in = (em_linear){.input = *m->normed, .parts_count = 1, .scale = 1};
    in->parts[0] = part_of(owned_matrix(m, EM_Q8, 3 * WIDTH, WIDTH), NULL, *m->gates);
    add(m, EM_SHORT_CONV)->as.short_conv = (em_short_conv){
        .input = *m->gates, .parts = 3, .dilation = 1, .taps = *m->taps, .bias = m->bias, .positions = m->positions, .sequences = m->sequences,
        .inputs = **m->ring, .output = *m->convolved, .hidden_size = WIDTH, .length = TAPS, .sequence_count = 1,
        .ring = RING};
    em_linear *out = &add(m, EM_LINEAR)->as.linear;
    *out = (em_linear){.input = *m->convolved, .parts_count = 1, .scale = 0.5f, .accumulate = 1};
    out->parts[0] = part_of(owned_matrix(m, EM_Q4, WIDTH, WIDTH), NULL, *m->hidden);
}

static inline void add_delta(model *m) {
    em_linear *in = &add(m, EM_LINEAR)->as.linear;
    *in = (em_linear){.input = *m->normed, .parts_count = 4, .scale = 1};
    in->parts[0] = part_of(owned_matrix(m, EM_Q8, DELTA_CHANNELS, WIDTH), NULL, *m->delta_in);
    in->parts[1] = part_of(owned_matrix(m, EM_Q4, DELTA_OUTPUTS, WIDTH), NULL, *m->delta_gate);
    in->parts[2] = part_of(owned_matrix(m, EM_F32, DELTA_HEADS, WIDTH), NULL, *m->delta_strength);
    in->parts[3] = part_of(owned_matrix(m, EM_F32, DELTA_HEADS, WIDTH), NULL, *m->delta_decay);
    add(m, EM_SHORT_CONV)->as.short_conv = (em_short_conv){
        .input = *m->delta_in, .parts = 1, .dilation = 1, .taps = *m->delta_taps, .positions = m->positions,
        .sequences = m->sequences, .inputs = **m->delta_ring, .output = *m->mixed, .hidden_size = DELTA_CHANNELS,
        .length = TAPS, .sequence_count = 1, .ring = TAPS - 1};
    add(m, EM_DELTA_RULE)->as.delta_rule = (em_delta_rule){
        .mixed = *m->mixed, .strength = *m->delta_strength, .decay_input = *m->delta_decay, .decay_bias = m->bias,
        .rate = m->delta_rate, .epsilon = 1e-6f, .key_heads = DELTA_KEY_HEADS, .positions = m->positions,
        .sequences = m->sequences, .states = ***m->states, .output = *m->delta_out, .columns = DELTA_CHANNELS,
        .heads = DELTA_HEADS, .decays = DELTA_HEADS, .sequence_count = 1, .head_dim = DELTA_KEYS,
        .value_dim = DELTA_VALUES};
    /* The same values, with queries and keys apart and a decay for each row of a state. */
    em_linear *apart = &add(m, EM_LINEAR)->as.linear;
    *apart = (em_linear){.input = *m->normed, .parts_count = 3, .scale = 1};
    apart->parts[0] = part_of(owned_matrix(m, EM_Q8, DELTA_KEY_HEADS * DELTA_KEYS, WIDTH), NULL, *m->apart_queries);
    apart->parts[1] = part_of(owned_matrix(m, EM_Q4, DELTA_KEY_HEADS * DELTA_KEYS, WIDTH), NULL, *m->apart_keys);
    apart->parts[2] = part_of(owned_matrix(m, EM_F32, DELTA_HEADS * DELTA_KEYS, WIDTH), NULL, *m->apart_decays);
    add(m, EM_DELTA_RULE)->as.delta_rule = (em_delta_rule){
        .mixed = *m->apart_queries, .keys = *m->apart_keys, .values = *m->delta_out, .strength = *m->delta_strength,
        .decay_input = *m->apart_decays, .decay_bias = m->bias, .rate = m->delta_rate, .lower_bound = -2.0f,
        .epsilon = 1e-6f, .key_heads = DELTA_KEY_HEADS, .positions = m->positions, .sequences = m->sequences,
        .states = ***m->apart_states, .output = *m->apart_out, .columns = DELTA_KEY_HEADS * DELTA_KEYS,
        .heads = DELTA_HEADS, .decays = DELTA_HEADS * DELTA_KEYS, .sequence_count = 1, .head_dim = DELTA_KEYS,
        .value_dim = DELTA_VALUES};
    add(m, EM_MIX)->as.mix = (em_mix){
        .base = *m->delta_out, .result = *m->apart_out, .scale = 1, .output = *m->delta_out,
        .hidden_size = DELTA_OUTPUTS};
    add(m, EM_RMS_NORM)->as.rms_norm = (em_rms_norm){
        .input = *m->delta_out, .weight = m->norm, .output = *m->delta_out, .gate = *m->delta_gate, .epsilon = 1e-5f,
        .heads = DELTA_HEADS, .own_weights = 1, .head_dim = DELTA_VALUES};
    em_linear *out = &add(m, EM_LINEAR)->as.linear;
    *out = (em_linear){.input = *m->delta_out, .parts_count = 1, .scale = 0.5f, .accumulate = 1};
    out->parts[0] = part_of(owned_matrix(m, EM_Q4, WIDTH, DELTA_OUTPUTS), NULL, *m->hidden);
}

static inline void add_scan(model *m) {
    add(m, EM_SELECTIVE_SCAN)->as.selective_scan = (em_selective_scan){
        .mixed = *m->mixed, .step = *m->delta_decay, .step_bias = m->bias, .rate = m->delta_rate, .skip = m->bias + 1,
        .groups = DELTA_KEY_HEADS, .positions = m->positions, .sequences = m->sequences, .states = ***m->scan_states,
        .output = *m->delta_out, .columns = DELTA_CHANNELS, .heads = DELTA_HEADS, .sequence_count = 1,
        .head_dim = DELTA_KEYS, .value_dim = DELTA_VALUES};
    add(m, EM_SELECTIVE_SCAN)->as.selective_scan = (em_selective_scan){ /* without steps */
        .mixed = *m->mixed, .rate = m->delta_rate, .groups = DELTA_KEY_HEADS, .positions = m->positions,
        .sequences = m->sequences, .states = ***m->still_states, .output = *m->apart_out, .columns = DELTA_CHANNELS,
        .heads = DELTA_HEADS, .sequence_count = 1, .head_dim = DELTA_KEYS, .value_dim = DELTA_VALUES};
    add(m, EM_MIX)->as.mix = (em_mix){
        .base = *m->delta_out, .result = *m->apart_out, .scale = 1, .output = *m->delta_out,
        .hidden_size = DELTA_OUTPUTS};
    add(m, EM_GATE)->as.gate = (em_gate){
        .gate = *m->delta_gate, .values = *m->delta_out, .gating = EM_GATING_SILU, .runs = DELTA_OUTPUTS, .width = 1};
    add(m, EM_RMS_NORM)->as.rms_norm = (em_rms_norm){
        .input = *m->delta_out, .weight = m->own_norm, .output = *m->delta_out, .epsilon = 1e-5f, .heads = DELTA_HEADS,
        .own_weights = DELTA_HEADS, .head_dim = DELTA_VALUES};
    em_linear *out = &add(m, EM_LINEAR)->as.linear;
    *out = (em_linear){.input = *m->delta_out, .parts_count = 1, .scale = 0.5f, .accumulate = 1};
    out->parts[0] = part_of(owned_matrix(m, EM_Q8, WIDTH, DELTA_OUTPUTS), NULL, *m->hidden);
}

static inline void add_streams(model *m) {
    add(m, EM_EMBED)->as.embed = (em_embed){.ids = m->ids, .output = *m->streams, .copies = STREAMS, .scale = 1.5f,
                                            .matrix = owned_matrix(m, EM_F16, VOCABULARY, WIDTH)};
    em_linear *in = &add(m, EM_LINEAR)->as.linear;
    *in = (em_linear){.input = *m->normed, .parts_count = 2, .scale = 1};
    in->parts[0] = part_of(owned_matrix(m, EM_F32, STREAMS, WIDTH), NULL, *m->shares);
    in->parts[1] = part_of(owned_matrix(m, EM_F32, JOINING, WIDTH), NULL, *m->joining);
    add(m, EM_BALANCE_STREAMS)->as.balance_streams = (em_balance_streams){
        .numbers = *m->joining, .base = m->bias, .scales = m->norm, .epsilon = 1e-3f, .iterations = 3, .count = STREAMS,
        .J = JOINING};
    add(m, EM_JOIN_STREAMS)->as.join_streams = (em_join_streams){
        .result = *m->hidden, .joining = *m->joining, .count = STREAMS, .streams = *m->streams, .hidden_size = WIDTH,
        .J = JOINING};
    add(m, EM_COLLAPSE_STREAMS)->as.collapse_streams = (em_collapse_streams){
        .streams = *m->streams, .numbers = *m->shares, .base = m->bias, .scale = m->norm, .epsilon = 1e-3f,
        .count = STREAMS, .output = *m->hidden, .hidden_size = WIDTH};
}

static inline void add_trees(model *m) {
    const int32_t depth = 3, nodes = 2 * 7, leaves = 2 * 8, leaf_width = 2;
    em_tree_ffn *tree = &add(m, EM_TREE_FFN)->as.tree_ffn;
    *tree = (em_tree_ffn){.input = *m->normed, .node_bias = m->bias, .leaf_bias = m->norm, .trees = 2, .depth = depth,
                          .leaf_width = leaf_width, .output = *m->shared,
                          .activation = {.function = EM_FUNCTION_RELU}, .hidden_size = WIDTH};
    tree->nodes = owned_rows(m, EM_F16, nodes);
    tree->leaf_in = owned_rows(m, EM_F32, leaves * leaf_width);
    tree->out = owned_rows(m, EM_F16, leaves * leaf_width);
    em_tree_ffn *plain = &add(m, EM_TREE_FFN)->as.tree_ffn;
    *plain = *tree;
    plain->input = *m->shared, plain->output = *m->normed, plain->trees = 1, plain->leaf_width = 0;
    plain->leaf_in = (em_matrix){0}, plain->leaf_bias = NULL;
    plain->nodes = owned_rows(m, EM_F32, 15);
    plain->out = owned_rows(m, EM_F16, 15);
}

static inline void add_compressed_attention(model *m, int32_t cache_format) {
    em_linear *in = &add(m, EM_LINEAR)->as.linear;
    *in = (em_linear){.input = *m->normed, .parts_count = 4, .scale = 1};
    in->parts[0] = part_of(owned_matrix(m, EM_Q8, 2 * HEAD_WIDTH, WIDTH), NULL, *m->block_values);
    in->parts[1] = part_of(owned_matrix(m, EM_Q4, 2 * HEAD_WIDTH, WIDTH), NULL, *m->block_gates);
    in->parts[2] = part_of(owned_matrix(m, EM_Q8, HEAD_WIDTH, WIDTH), NULL, *m->latent);
    in->parts[3] = part_of(owned_matrix(m, EM_F32, HEADS, WIDTH), NULL, *m->index);
    em_rope *back = &add(m, EM_ROPE)->as.rope;
    *back = rope_of(m, *m->query, HEADS);
    back->neighbours = back->last = back->back = 1;
    const em_cache blocks = {**m->blocks, **m->block_scales, cache_format};
    add(m, EM_COMPRESS)->as.compress = (em_compress){
        .values = *m->block_values, .gates = *m->block_gates, .bias = m->block_bias, .norm = m->norm, .epsilon = 1e-5f,
        .cosine = *m->cosine, .sine = *m->sine, .rate = RATE, .parts = 2, .positions = m->positions,
        .sequences = m->sequences, .pages = *m->pages, .inputs = **m->block_ring, .compressed = blocks,
        .head_dim = HEAD_WIDTH, .context = CONTEXT, .rotated = HEAD_WIDTH, .sequence_count = 1, .table_pages = PAGES,
        .ring = 2 * RATE + 1, .page_count = PAGES, .block_rows = BLOCKS};
    const em_cache singles = {**m->singles, **m->single_scales, cache_format};
    add(m, EM_STORE_LATENT)->as.store_latent = (em_store_latent){
        .latent = *m->latent, .positions = m->positions, .sequences = m->sequences, .pages = *m->pages,
        .latent_cache = singles, .value_dim = HEAD_WIDTH, .sequence_count = 1, .table_pages = PAGES,
        .page_count = PAGES, .head_dim = HEAD_WIDTH};
    add(m, EM_CHOOSE_BLOCKS)->as.choose_blocks = (em_choose_blocks){
        .query = *m->query, .shares = *m->index, .positions = m->positions, .sequences = m->sequences,
        .pages = *m->pages, .keys = blocks, .rate = RATE, .scale = 0.2f, .most = 3, .scores = **m->block_scores,
        .chosen = *m->seen, .head_dim = HEAD_WIDTH, .heads = HEADS, .sequence_count = 1, .table_pages = PAGES,
        .page_count = PAGES, .block_rows = BLOCKS, .at_once = 2};
    add(m, EM_COMPRESSED_ATTENTION)->as.compressed_attention = (em_compressed_attention){
        .query = *m->query, .positions = m->positions, .sequences = m->sequences, .window_pages = *m->pages,
        .window_cache = singles, .pages = *m->pages, .compressed = blocks, .rate = RATE, .scale = 0.2f, .window = 20,
        .output = *m->attended, .sinks = m->norm, .chosen = *m->seen, .sequence_count = 1, .table_pages = PAGES,
        .page_count = PAGES, .head_dim = HEAD_WIDTH, .heads = HEADS, .compressed_pages = PAGES, .block_rows = BLOCKS};
    em_linear *output = &add(m, EM_LINEAR)->as.linear;
    *output = (em_linear){.input = *m->attended, .parts_count = 1, .scale = 0.5f, .accumulate = 1};
    output->parts[0] = part_of(owned_matrix(m, EM_Q4, WIDTH, WIDTH), NULL, *m->hidden);
}

static inline void add_channels(model *m) {
    add(m, EM_CHANNEL_SCAN)->as.channel_scan = (em_channel_scan){
        .input = *m->convolved, .step = *m->normed, .keys = *m->rotary, .queries = *m->rotary, .rate = *m->channel_rates,
        .skip = m->bias, .positions = m->positions, .sequences = m->sequences, .states = **m->channel_states,
        .output = *m->shared, .channels = WIDTH, .head_dim = LATENT_ROTARY, .sequence_count = 1};
    add(m, EM_MIX)->as.mix = (em_mix){
        .base = *m->hidden, .result = *m->shared, .output = *m->hidden, .hidden_size = WIDTH, .scale = 0.1f};
}

static inline void add_moe(model *m) {
    em_linear *router = &add(m, EM_LINEAR)->as.linear;
    *router = (em_linear){.input = *m->hidden, .parts_count = 2, .scale = 1};
    router->parts[0] = part_of(owned_matrix(m, EM_F32, EXPERTS, WIDTH), NULL, *m->logits);
    router->parts[1] = part_of(owned_matrix(m, EM_F32, 1, WIDTH), NULL, *m->shared_gate);
    add(m, EM_SOFT_CAP)->as.soft_cap = (em_soft_cap){.values = *m->logits, .limit = 2, .columns = EXPERTS};
    add(m, EM_ROUTE)->as.route = (em_route){
        .logits = *m->logits, .experts = *m->chosen, .weights = *m->weights, .num_experts = EXPERTS, .top_k = USED,
        .renormalise = 1, .groups = 1, .kept_groups = 1, .scale = 1, .expert_scales = m->norm};
    add(m, EM_TABLE_ROUTE)->as.table_route = (em_table_route){
        .ids = m->ids, .table = *m->table, .logits = *m->logits, .num_experts = EXPERTS, .epsilon = 1e-20f, .scale = 1.5f,
        .experts = *m->named, .weights = *m->named_weights, .top_k = USED, .vocab_size = VOCABULARY};
    add(m, EM_LEVEL_ROUTE)->as.level_route = (em_level_route){ /* of 2 groups, each with 4 experts, 10 numbers of a row */
        .logits = *m->hidden, .levels = {{2, 1}, {4, 2}}, .levels_count = 2, .renormalise = 1, .scale = 1,
        .experts = *m->named, .weights = *m->named_weights, .numbers = 2 + 8, .top_k = USED};
    add(m, EM_CAPACITY)->as.capacity = (em_capacity){ /* never reached: it counts the choices of a run */
        .experts = *m->chosen, .weights = *m->weights, .num_experts = EXPERTS, .capacity = TOKENS * USED, .top_k = USED};
    em_gated_ffn *shared = &add(m, EM_GATED_FFN)->as.gated_ffn;
    const em_activation clamped = {
        .function = EM_FUNCTION_CLAMPED_SILU, .alpha = 1.702f, .limit = 0.5f, .offset = 1, .gated = 1};
    *shared = (em_gated_ffn){.input = *m->hidden, .output = *m->shared, .activation = clamped};
    shared->biases = (em_ffn_biases){m->bias, m->bias + 1, m->bias}; /* of 40, 40 and 72 numbers */
    shared->apart = (em_unlike_matrices){owned_matrix(m, EM_Q8, FFN, WIDTH), owned_matrix(m, EM_F16, FFN, WIDTH)};
    shared->down = owned_matrix(m, EM_F16, WIDTH, FFN);
    const em_activation squared = {.function = EM_FUNCTION_RELU2};
    em_plain_ffn *plain = &add(m, EM_PLAIN_FFN)->as.plain_ffn;
    *plain = (em_plain_ffn){.input = *m->shared, .output = *m->normed, .activation = squared};
    plain->biases = (em_ffn_biases){NULL, m->bias + 1, m->bias};
    plain->up = owned_matrix(m, EM_Q4, FFN, WIDTH);
    plain->down = owned_matrix(m, EM_F16, WIDTH, FFN);
    const int64_t gate_up_bytes = 2 * em_panel_count(FFN) * (int64_t)em_panel_bytes(EM_Q4, WIDTH);
    const int64_t down_bytes = em_panel_count(WIDTH) * (int64_t)em_panel_bytes(EM_Q8, FFN);
    const int64_t biases_offset = gate_up_bytes + down_bytes, bias_count = 48 + 48 + 80;
    const int64_t slot_bytes = biases_offset + bias_count * (int64_t)sizeof(float);
    const em_matrix arena = owned_matrix(m, EM_Q8, 16 * SLOTS * (int32_t)(slot_bytes / 544 + 1), 32);
    for (int64_t i = 0; i < SLOTS * bias_count; i++) {
        uint8_t *place = (uint8_t *)(uintptr_t)arena.data + i / bias_count * slot_bytes + biases_offset;
        ((float *)(void *)place)[i % bias_count] = random_float();
    }
    em_experts *experts = &add(m, EM_EXPERTS)->as.experts;
    *experts = (em_experts){
        .input = *m->hidden,
        .experts = *m->chosen,
        .slots = m->slots,
        .arena = arena.data,
        .output = **m->routed,
        .layouts = {{.hidden_size = WIDTH,
                     .intermediate_size = FFN,
                     .gate_format = EM_Q4,
                     .up_format = EM_Q4,
                     .down_format = EM_Q8,
                     .down_offset = gate_up_bytes,
                     .biases_offset = biases_offset,
                     .gated = 1}},
        .layouts_count = 1,
        .layout_of = m->layout_of,
        .slot_bytes = (int32_t)slot_bytes,
        .activation = clamped,
        .slot_count = SLOTS,
        .num_experts = EXPERTS,
        .hidden_size = WIDTH,
        .top_k = USED,
    };
    experts->layouts[1] = experts->layouts[0]; /* gate and up one after the other */
    experts->layouts[1].up_offset = gate_up_bytes / 2;
    experts->layouts_count = 2;
    for (int32_t i = 1; i < EXPERTS; i += 2) m->layout_of[i] = 1;
    add(m, EM_COMBINE)->as.combine =
        (em_combine){
        .output = *m->hidden, .routed = **m->routed, .weights = *m->weights, .shared = *m->normed,
        .shared_gate = *m->shared_gate, .top_k = USED, .hidden_size = WIDTH, .scale = 0.7f,
        .accumulate = 1};
    add(m, EM_LAYER_NORM)->as.layer_norm = (em_layer_norm){
        .input = *m->hidden, .weight = m->norm, .output = *m->normed, .epsilon = 1e-5f, .bias = m->bias, .hidden_size = WIDTH};
    add(m, EM_MIX)->as.mix =
        (em_mix){
        .base = *m->hidden, .result = *m->shared, .keep = m->norm, .share = m->bias, .shift = m->norm, .output = *m->hidden,
        .hidden_size = WIDTH, .scale = 0.3f, .factor = m->bias};
}

/* Neurons that two heads retrieve, whose pages lie in the arena in another order. */
static inline void add_neurons(model *m) {
    em_linear *in = &add(m, EM_LINEAR)->as.linear;
    *in = (em_linear){.input = *m->normed, .parts_count = 2, .scale = 1};
    for (int i = 0; i < 2; i++) {
        in->parts[i] = part_of(owned_matrix(m, EM_F16, RETRIEVERS * KEYS, WIDTH), NULL, *m->halves[i]);
    }
    add(m, EM_RETRIEVE_BY_KEYS)->as.retrieve_by_keys = (em_retrieve_by_keys){
        .first = *m->halves[0], .second = *m->halves[1], .heads = RETRIEVERS, .experts = *m->retrieved,
        .weights = *m->retrieved_weights, .scoring = EM_SCORING_SOFTMAX, .keys = KEYS, .retrieved = RETRIEVED};
    /* A panel of 16 rows and 32 columns in float16 has 1024 bytes. */
    const em_matrix arena = owned_matrix(m, EM_F16, NEURON_PAGES * NEURONS_PER_PAGE * NEURON_BYTES / 64, 32);
    for (int32_t i = 0; i < NEURON_PAGES; i++) m->neuron_slots[i] = NEURON_PAGES - 1 - i;
    add(m, EM_NEURONS)->as.neurons = (em_neurons){
        .input = *m->normed, .experts = *m->retrieved, .weights = *m->retrieved_weights, .arena = arena.data,
        .slots = m->neuron_slots,
        .layout = {.element = EM_ELEMENT_F16, .neuron_bytes = NEURON_BYTES, .neurons_per_page = NEURONS_PER_PAGE},
        .count = KEYS * KEYS, .activation = {.function = EM_FUNCTION_GELU}, .output = *m->hidden, .scale = 0.5f,
        .accumulate = 1, .hidden_size = WIDTH, .top_k = RETRIEVERS * RETRIEVED, .slot_count = NEURON_PAGES,
        .slot_bytes = NEURONS_PER_PAGE * NEURON_BYTES, .page_count = NEURON_PAGES};
}

/* The residual stream as four of a quarter of its width. */
static inline void add_gated_streams(model *m) {
    add(m, EM_READ_STREAMS)->as.read_streams = (em_read_streams){
        .streams = *m->hidden, .shares = *m->normed, .output = *m->stream, .count = GATED_STREAMS, .hidden_size = WIDTH / GATED_STREAMS};
    add(m, EM_GATE_BY_AGREEMENT)->as.gate_by_agreement = (em_gate_by_agreement){
        .key = *m->hidden, .query = *m->normed, .value = *m->stream, .least = 1e-6f, .output = *m->agreed, .count = GATED_STREAMS,
        .hidden_size = WIDTH / GATED_STREAMS};
    add(m, EM_WRITE_STREAMS)->as.write_streams = (em_write_streams){
        .shares = *m->delta_decay, .result = *m->stream, .streams = *m->hidden, .count = GATED_STREAMS, .hidden_size = WIDTH / GATED_STREAMS};
    add(m, EM_MIX)->as.mix = (em_mix){
        .base = *m->hidden, .result = *m->agreed, .output = *m->hidden, .hidden_size = WIDTH, .scale = 1};
}

/* Attention once more, to some blocks of four tokens. */
static inline void add_choice(model *m, int32_t cache_format) {
    const em_cache keys = {m->caches[0], ***m->cache_scales[0], cache_format};
    const em_cache values = {m->caches[1], ***m->cache_scales[1], cache_format};
    const em_cache blocks = {m->block_keys, **m->index_scales, cache_format};
    add(m, EM_STORE_BLOCK_KEYS)->as.store_block_keys = (em_store_block_keys){
        .keys = *m->stream, .norm = m->norm, .epsilon = 1e-5f, .cosine = *m->cosine, .sine = *m->sine,
        .rate = EM_PAGE_TOKENS / PAGE_BLOCKS, .positions = m->positions, .sequences = m->sequences, .pages = *m->pages,
        .inputs = **m->index_ring, .block_keys = blocks, .head_dim = HEAD_WIDTH, .context = CONTEXT,
        .rotated = HEAD_WIDTH, .sequence_count = 1, .table_pages = PAGES, .ring = EM_PAGE_TOKENS / PAGE_BLOCKS - 1,
        .page_count = PAGES, .block_rows = PAGE_BLOCKS};
    add(m, EM_CHOOSE_BLOCKS)->as.choose_blocks = (em_choose_blocks){
        .query = *m->query, .positions = m->positions, .sequences = m->sequences, .pages = *m->pages, .keys = blocks,
        .rate = EM_PAGE_TOKENS / PAGE_BLOCKS, .scale = 1, .most = 5, .scores = **m->index_scores,
        .chosen = *m->chosen_blocks, .own = 1, .head_dim = HEAD_WIDTH, .heads = HEADS, .sequence_count = 1,
        .table_pages = PAGES, .page_count = PAGES, .block_rows = PAGE_BLOCKS, .at_once = 3};
    add(m, EM_ATTENTION)->as.attention = (em_attention){
        .query = *m->query, .positions = m->positions, .sequences = m->sequences, .pages = *m->pages, .key_cache = keys,
        .value_cache = values, .scale = 0.2f, .output = *m->attended, .chosen = *m->chosen_blocks,
        .page_blocks = PAGE_BLOCKS, .sequence_count = 1, .table_pages = PAGES, .page_count = PAGES, .kv_heads = GROUPS,
        .head_dim = HEAD_WIDTH, .heads = HEADS, .value_dim = HEAD_WIDTH};
    add(m, EM_MIX)->as.mix = (em_mix){
        .base = *m->hidden, .result = *m->attended, .output = *m->hidden, .hidden_size = WIDTH, .scale = 0.1f};
}

/* What Soft MoE and muMoE compute. A slot is a mean of all rows of a run, so no later operation reads what slots give. */
static inline void add_mixtures(model *m) {
    add(m, EM_BATCH_NORM)->as.batch_norm = (em_batch_norm){
        .values = *m->logits, .mean = m->bias, .variance = m->variance, .epsilon = 1e-5f, .columns = EXPERTS};
    add(m, EM_ENTMAX)->as.entmax = (em_entmax){.values = *m->logits, .num_experts = EXPERTS};
    em_linear *factors = &add(m, EM_LINEAR)->as.linear;
    *factors = (em_linear){.input = *m->logits, .parts_count = 1, .scale = 1, .columns = EXPERTS};
    factors->parts[0] = part_of(owned_matrix(m, EM_F32, WIDTH, EXPERTS), NULL, *m->mixture);
    add(m, EM_PAIR_PRODUCTS)->as.pair_products = (em_pair_products){
        .left = *m->mixture, .right = *m->hidden, .count = 1, .inner = 8, .output = *m->pairs, .height = 4, .width = 9};
    add(m, EM_PAIR_PRODUCTS)->as.pair_products = (em_pair_products){
        .left = *m->mixture, .right = *m->hidden, .count = WIDTH, .inner = 1, .output = *m->agreed, .height = 1, .width = 1};
    add(m, EM_MIX)->as.mix = (em_mix){
        .base = *m->hidden, .result = *m->agreed, .output = *m->hidden, .hidden_size = WIDTH, .scale = 0.1f};
    add(m, EM_LEAST_WEIGHT)->as.least_weight = (em_least_weight){.weights = *m->weights, .least = 0.3f, .top_k = USED};
    add(m, EM_SLOT_LOGITS)->as.slot_logits = (em_slot_logits){
        .input = *m->hidden, .slots = *m->slot_vectors, .gain = m->norm, .scale = m->norm, .factor = 2, .logits = *m->slot_logits,
        .unit_slots = 1, .unit_input = 1, .hidden_size = WIDTH, .slot_count = MIX_SLOTS};
    add(m, EM_DISPATCH)->as.dispatch = (em_dispatch){
        .logits = *m->slot_logits, .input = *m->hidden, .slots = *m->mix_slots, .slot_count = MIX_SLOTS, .hidden_size = WIDTH};
    for (int32_t expert = 0; expert < 2; expert++) {
        em_slot_ffn *ffn = &add(m, EM_SLOT_FFN)->as.slot_ffn;
        *ffn = (em_slot_ffn){.slots = *m->mix_slots, .first = expert * MIX_SLOTS / 2, .count = MIX_SLOTS / 2,
                             .output = *m->slot_results, .activation = {.function = EM_FUNCTION_RELU},
                             .biases = {NULL, m->bias + 1, m->bias}, .slot_count = MIX_SLOTS, .hidden_size = WIDTH,
                             .intermediate_size = FFN};
        ffn->up = owned_matrix(m, EM_Q8, FFN, WIDTH);
        ffn->down = owned_matrix(m, EM_Q4, WIDTH, FFN);
    }
    add(m, EM_COLLECT)->as.collect = (em_collect){
        .logits = *m->slot_logits, .values = *m->slot_results, .output = *m->mixture, .slot_count = MIX_SLOTS,
        .hidden_size = WIDTH};
}

static inline model *make_model_with(int32_t cache_format) {
    random_state = 88172645u;
    model *m = calloc(1, sizeof *m);
    CHECK(m);
    for (int i = 0; i < TOKENS; i++) m->ids[i] = (int32_t)(random_bits() % VOCABULARY);
    for (int i = 0; i < PAGES; i++) m->pages[0][i] = PAGES - 1 - i;
    for (int i = 0; i < EXPERTS; i++) m->slots[i] = i < SLOTS ? SLOTS - 1 - i : -1;
    for (int i = 0; i < WIDTH; i++) m->norm[i] = m->bias[i] = random_float();
    for (int i = 0; i < WIDTH * TAPS; i++) m->taps[i / TAPS][i % TAPS] = random_float();
    for (int i = 0; i < DELTA_CHANNELS * TAPS; i++) m->delta_taps[i / TAPS][i % TAPS] = random_float();
    for (int i = 0; i < DELTA_OUTPUTS; i++) m->own_norm[i] = random_float();
    for (int i = 0; i < DELTA_HEADS; i++) m->delta_rate[i] = -1.5f - random_float();
    for (int i = 0; i < WIDTH * LATENT_ROTARY; i++) {
        m->channel_rates[i / LATENT_ROTARY][i % LATENT_ROTARY] = -1.5f - random_float();
    }
    for (int i = 0; i < MIX_SLOTS * WIDTH; i++) m->slot_vectors[i / WIDTH][i % WIDTH] = random_float();
    for (int i = 0; i < EXPERTS; i++) m->variance[i] = 1.1f + random_float();
    /* What lies in states and rings before the first position is never read. */
    memset(m->states, 0xff, sizeof m->states);
    memset(m->scan_states, 0xff, sizeof m->scan_states);
    memset(m->apart_states, 0xff, sizeof m->apart_states);
    memset(m->still_states, 0xff, sizeof m->still_states);
    memset(m->delta_ring, 0xff, sizeof m->delta_ring);
    memset(m->block_ring, 0xff, sizeof m->block_ring);
    for (int i = 0; i < RATE * 2 * HEAD_WIDTH; i++) m->block_bias[i] = random_float();
    for (int i = 0; i < VOCABULARY * USED; i++) m->table[i / USED][i % USED] = (float)(random_bits() % EXPERTS);
    memset(m->channel_states, 0xff, sizeof m->channel_states);
    for (int i = 0; i < CONTEXT * HEAD_WIDTH / 2; i++) {
        /* Not cosf and sinf, which no two C libraries compute alike. */
        m->cosine[i / (HEAD_WIDTH / 2)][i % (HEAD_WIDTH / 2)] = random_float();
        m->sine[i / (HEAD_WIDTH / 2)][i % (HEAD_WIDTH / 2)] = random_float();
    }
    add(m, EM_EMBED)->as.embed = (em_embed){
        .ids = m->ids, .output = *m->hidden, .matrix = owned_matrix(m, EM_M4, VOCABULARY, WIDTH), .scale = 2.0f,
        .copies = 1};
    add_attention(m, cache_format);
    add_latent_attention(m, cache_format);
    add_convolution(m);
    add_delta(m);
    add_scan(m);
    add_channels(m);
    add_compressed_attention(m, cache_format);
    add_streams(m);
    add_moe(m);
    add_neurons(m);
    add_gated_streams(m);
    add_choice(m, cache_format);
    add_mixtures(m);
    add_trees(m);
    return m;
}

static inline model *make_model(void) { return make_model_with(EM_F16); }

static inline void free_model(model *m) {
    for (int32_t i = 0; i < m->owned_count; i++) free(m->owned[i]);
    free(m);
}

static inline em_program program_of(const char *isa, em_pool *pool, const em_operation *operations, int32_t count,
                                    int32_t tokens_max, const em_scratch *scratch) {
    return (em_program){.kernels = em_kernels_for(isa),
                        .pool = pool,
                        .operations = operations,
                        .scratch = scratch,
                        .scratch_bytes = em_program_scratch_bytes(operations, count, tokens_max),
                        .operation_count = count,
                        .tokens_max = tokens_max,
                        .failed_operation = -1};
}

/* The first `tokens` tokens, from `position` on, on `threads` threads. */
static inline int32_t run(model *m, const char *isa, int32_t threads, int32_t tokens, int32_t position) {
    em_pool *pool;
    for (int32_t t = 0; t < tokens; t++) m->positions[t] = position + t;
    CHECK_STATUS(EM_OK, em_pool_create(threads, 20, &pool));
    const uint64_t bytes = em_program_scratch_bytes(m->operations, m->count, TOKENS);
    const em_scratch scratch = {allocate(bytes), bytes};
    em_program program = program_of(isa, pool, m->operations, m->count, TOKENS, &scratch);
    const int32_t status = em_program_run(&program, tokens);
    CHECK((status == EM_OK) == (program.failed_operation == -1));
    free(scratch.data);
    em_pool_destroy(pool);
    return status;
}

#endif
