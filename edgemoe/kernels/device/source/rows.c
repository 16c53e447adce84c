/* Norms, whose sums run along a row in eight lanes: one item for each lane, then one for each number. */

/* Lane sum of squares of a run of `width` numbers: item is run * LANES + lane. */
INLINE void square_lanes(GLOBAL const float *input, GLOBAL float *lanes, i32 width, i32 item) {
    float sum = 0.0f;
    input += (u64)(item / LANES) * (u64)width;
    for (i32 i = item % LANES; i < width; i += LANES) sum = fused(input[i], input[i], sum);
    lanes[item] = sum;
}

/* output = input / rms * weight, times silu(gate): item is the number's place. The output may be input or gate. */
INLINE void rms_norm(GLOBAL const float *input, GLOBAL const float *lanes, GLOBAL const float *weight,
                     GLOBAL const float *gate, GLOBAL float *output, i32 width, i32 has_weight, i32 own_weights,
                     i32 has_gate, float epsilon, i32 item) {
    const i32 run = item / width, column = item % width;
    const float mean = fold_lanes(lanes + run * LANES) / (float)width;
    const float factor = 1.0f / root(mean + epsilon);
    float normed = input[item] * factor;
    if (has_weight) normed = normed * weight[run % own_weights * width + column];
    if (has_gate) normed = gate[item] / (1.0f + exponential(-gate[item])) * normed;
    output[item] = normed;
}

/* Lane sum of a run: item is run * LANES + lane. */
INLINE void sum_lanes(GLOBAL const float *input, GLOBAL float *lanes, i32 width, i32 item) {
    float sum = 0.0f;
    input += (u64)(item / LANES) * (u64)width;
    for (i32 i = item % LANES; i < width; i += LANES) sum = sum + input[i];
    lanes[item] = sum;
}

/* Lane sum of squares of what a run's numbers are above its mean. */
INLINE void centred_lanes(GLOBAL const float *input, GLOBAL const float *sums, GLOBAL float *lanes, i32 width, i32 item) {
    const float mean = fold_lanes(sums + item / LANES * LANES) / (float)width;
    float sum = 0.0f;
    input += (u64)(item / LANES) * (u64)width;
    for (i32 i = item % LANES; i < width; i += LANES) {
        const float centred = input[i] - mean;
        sum = fused(centred, centred, sum);
    }
    lanes[item] = sum;
}

INLINE void layer_norm(GLOBAL const float *input, GLOBAL const float *sums, GLOBAL const float *squares,
                       GLOBAL const float *weight, GLOBAL const float *bias, GLOBAL float *output, i32 width, i32 has_bias,
                       float epsilon, i32 item) {
    const i32 run = item / width, column = item % width;
    const float mean = fold_lanes(sums + run * LANES) / (float)width;
    const float variance = fold_lanes(squares + run * LANES) / (float)width;
    const float factor = 1.0f / root(variance + epsilon);
    const float normed = (input[item] - mean) * factor * weight[column];
    output[item] = has_bias ? normed + bias[column] : normed;
}

INLINE void clip(GLOBAL float *values, float limit, i32 item) {
    const float value = values[item];
    values[item] = value > limit ? limit : value < -limit ? -limit : value;
}

/* A block's result joins the stream: `output` may be `base`. */
INLINE void join_stream(GLOBAL const float *base, GLOBAL const float *result, GLOBAL const float *keep,
                        GLOBAL const float *share, GLOBAL const float *shift, GLOBAL const float *factor,
                        GLOBAL float *output, i32 width, float scale, i32 has_keep, i32 has_share, i32 has_shift,
                        i32 has_factor, i32 item) {
    const i32 column = item % width;
    const float kept = has_keep ? keep[column] * base[item] : base[item];
    const float scaled = scale * result[item];
    float sum = kept + (has_share ? share[column] * scaled : scaled);
    if (has_shift) sum = sum + shift[column];
    output[item] = has_factor ? sum * factor[0] : sum;
}

/* The experts of a token, summed in the router's order, and the shared one. */
INLINE void combine(GLOBAL const float *routed, GLOBAL const float *weights, GLOBAL const float *shared,
                    GLOBAL const float *shared_gate, GLOBAL float *output, i32 width, i32 top_k, i32 has_weights,
                    i32 has_shared, i32 has_gate, float scale, i32 accumulate, i32 item) {
    const i32 token = item / width, column = item % width;
    float sum = 0.0f;
    for (i32 k = 0; k < top_k; k++) {
        const i32 pair = token * top_k + k;
        const float weighed = (has_weights ? weights[pair] : 1.0f) * routed[(u64)pair * (u64)width + (u64)column];
        sum = k == 0 ? weighed : sum + weighed;
    }
    if (has_shared) {
        const float open = has_gate ? 1.0f / (1.0f + exponential(-shared_gate[token])) : 1.0f;
        sum = sum + open * shared[item];
    }
    sum = scale * sum;
    output[item] = accumulate ? output[item] + sum : sum;
}
