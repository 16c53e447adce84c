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
