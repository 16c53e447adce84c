/* Between the products of a feed-forward layer: biases, and the activation in the steps of native/kernels/kernels.h. */
#define SILU 0
#define CLAMPED_SILU 1
#define GELU_TANH 2
#define RELU 3
#define RELU2 4
#define CAPPED_SILU 5

INLINE float positive(float x) { return x < 0.0f ? 0.0f : x; }

INLINE float activated(float gate, float up, i32 function, float alpha, float limit, float offset) {
    if (function == RELU) return positive(gate) * up;
    if (function == RELU2) return positive(gate) * positive(gate) * up;
    if (function == SILU) return gate / (1.0f + exponential(-gate)) * up;
    if (function == GELU_TANH) {
        const float argument_of = gate * (gate * gate * 0.0713548163f + 1.59576912f);
        return gate / (1.0f + exponential(-argument_of)) * up;
    }
    float held = limit < up ? limit : up;
    held = -limit > held ? -limit : held;
    if (function == CAPPED_SILU) {
        const float open = gate / (1.0f + exponential(-gate));
        return (limit < open ? limit : open) * held;
    }
    const float g = limit < gate ? limit : gate;
    return g / (1.0f + exponential(-(alpha * g))) * (held + offset);
}

/* One hidden column of a token. From a row's products to the next row's are `stride` floats, from a panel's to the next
 * panel's `step`; without a gate the products of up stand in its place. */
INLINE void activate(GLOBAL const float *gate, GLOBAL const float *up, GLOBAL const float *gate_bias,
                     GLOBAL const float *up_bias, GLOBAL float *hidden, i32 columns, i32 stride, i32 step, i32 has_gate,
                     i32 has_bias, i32 function, float alpha, float limit, float offset, i32 item) {
    const i32 token = item / columns, column = item % columns;
    const u64 at = (u64)token * (u64)stride + (u64)(column / PANEL_ROWS * step + column % PANEL_ROWS);
    float u = up[at];
    if (has_bias) u = u + up_bias[column];
    float g = has_gate ? gate[at] : u;
    if (has_gate && has_bias) g = g + gate_bias[column];
    hidden[item] = activated(g, has_gate ? u : 1.0f, function, alpha, limit, offset);
}
