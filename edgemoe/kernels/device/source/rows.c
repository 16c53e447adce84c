/* Norms, whose sums run along a row in eight lanes: one item for each lane, then one for each number. */

INLINE float magnitude(float x) { return of_bits(bits_of(x) & 0x7fffffff); }
INLINE float with_sign_of(float x, float sign) { return of_bits((bits_of(x) & 0x7fffffff) | (bits_of(sign) & 0x80000000)); }

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

/* ---- positions and gates -------------------------------------------------------------------------------- */

/* A pair of channels is rotated: item is (token * heads + head) * half + pair, and the first of a head's `half` pairs lies
 * `first` channels from its beginning. */
INLINE void rope(GLOBAL float *values, GLOBAL const i32 *positions, GLOBAL const float *cosine, GLOBAL const float *sine,
                 i32 heads, i32 width, i32 half_width, i32 first, i32 neighbours, float side, i32 item) {
    const i32 pair = item % half_width, row = item / half_width;
    const u64 angle = (u64)positions[row / heads] * (u64)half_width + (u64)pair;
    GLOBAL float *own = values + (u64)row * (u64)width + (u64)(first + (neighbours ? 2 * pair : pair));
    const i32 apart = neighbours ? 1 : half_width;
    const float a = own[0], b = own[apart], c = cosine[angle], s = side * sine[angle];
    own[0] = a * c - b * s;
    own[apart] = b * c + a * s;
}

INLINE void scale_by_position(GLOBAL float *values, GLOBAL const i32 *positions, GLOBAL const float *factors, i32 width,
                              i32 item) {
    values[item] = values[item] * factors[positions[item / width]];
}

/* log(1 + y) for 0 <= y <= 1 in the steps of native/kernels/exponential.h. */
INLINE float log_of_one_plus(float y) {
    const float s = y / (2.0f + y), square = s * s;
    float sum = 1.0f / 17;
    sum = sum * square + 1.0f / 15;
    sum = sum * square + 1.0f / 13;
    sum = sum * square + 1.0f / 11;
    sum = sum * square + 1.0f / 9;
    sum = sum * square + 1.0f / 7;
    sum = sum * square + 1.0f / 5;
    sum = sum * square + 1.0f / 3;
    sum = sum * square + 1.0f;
    return 2.0f * s * sum;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
INLINE float softplus(float x) { return (x > 0.0f ? x : 0.0f) + log_of_one_plus(exponential(-magnitude(x))); }

#define SIGMOID 0
#define SOFTPLUS 1
#define IDENTITY 2

/* A number of a run of `width` times what its gate lets through. */
INLINE void gate(GLOBAL const float *gates, GLOBAL float *values, i32 width, i32 gating, i32 item) {
    const float own = gates[item / width];
    const float factor = gating == IDENTITY   ? own
                         : gating == SOFTPLUS ? softplus(own)
                                              : (gating == SIGMOID ? 1.0f : own) / (1.0f + exponential(-own));
    values[item] = values[item] * factor;
}

/* limit * tanh(value / limit). */
INLINE float capped(float value, float limit) {
    const float power = exponential(-2.0f * magnitude(value / limit));
    return with_sign_of(limit * ((1.0f - power) / (1.0f + power)), value);
}

INLINE void soft_cap(GLOBAL float *values, float limit, i32 item) { values[item] = capped(values[item], limit); }

/* ---- residual streams ----------------------------------------------------------------------------------- */

INLINE void read_streams(GLOBAL const float *streams, GLOBAL const float *shares, GLOBAL float *output, i32 count, i32 width,
                         i32 item) {
    float sum = 0.0f;
    for (i32 s = 0; s < count; s++) {
        const u64 at = ((u64)(item / width) * (u64)count + (u64)s) * (u64)width + (u64)(item % width);
        sum = sum + sigmoid(shares[at]) * streams[at];
    }
    output[item] = sum * (1.0f / (float)count);
}

INLINE void write_streams(GLOBAL const float *shares, GLOBAL const float *result, GLOBAL float *streams, i32 count, i32 width,
                          i32 item) {
    const i32 stream = item / width;
    const float factor = sigmoid(shares[stream]) * 2.0f;
    streams[item] = streams[item] + factor * result[(u64)(stream / count) * (u64)width + (u64)(item % width)];
}

/* Lane sum of the products of a stream's key and query: item is stream * LANES + lane. */
INLINE void product_lanes(GLOBAL const float *key, GLOBAL const float *query, GLOBAL float *lanes, i32 width, i32 item) {
    const u64 start = (u64)(item / LANES) * (u64)width;
    float sum = 0.0f;
    for (i32 i = item % LANES; i < width; i += LANES) sum = sum + key[start + (u64)i] * query[start + (u64)i];
    lanes[item] = sum;
}

INLINE void gate_by_agreement(GLOBAL const float *lanes, GLOBAL const float *value, GLOBAL float *output, i32 count, i32 width,
                              float least, i32 item) {
    const i32 stream = item / width;
    const float agreement = fold_lanes(lanes + stream * LANES) / root((float)width), size = magnitude(agreement);
    const float rooted = agreement == 0.0f ? 0.0f : with_sign_of(root(size >= least ? size : least), agreement);
    output[item] = sigmoid(rooted) * value[(u64)(stream / count) * (u64)width + (u64)(item % width)];
}
