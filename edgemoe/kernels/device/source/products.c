/* Quantised activations, and the products of rows of a matrix with them or with floats.
 *
 * The layout of a matrix is that of kernels/formats.py: in a line of 64 bytes the codes of four columns of a row lie in one
 * word, so that 16 items, each with a row of its own, read a whole line. An item computes one row of the matrix for one
 * token, the groups in order. `format` is constant wherever these are called, and so is what depends on it. */
#define SCALE_F16 1
#define SCALE_E8M0 2
#define SCALE_F32 3
#define FACTOR_NONE 0
#define FACTOR_INT8 1
#define FACTOR_NIBBLE 2
#define FACTOR_E4M3 3
#define TABLE_NONE 0
#define TABLE_E2M1 1
#define TABLE_IQ4 2
#define TABLE_SIGNS 3

/* The numbers of a format whose products take int8 activations (kernels/formats.py). */
typedef struct format {
    i32 low_bits, high_bits; /* of a code, in the first plane and in the second */
    i32 zero, table;
    i32 scale, scale_shift; /* log2 of the groups that share a scale */
    i32 has_minimums, factor, halves, has_offsets;
} format;

TABLE i8 e2m1_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
TABLE i8 iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* ---- activations ---------------------------------------------------------------------------------------- */

/* Half to even, within -127 .. 127; a NaN becomes -127. */
INLINE i32 rounded(float value) {
    value = value < 127.0f ? value : value >= 127.0f ? 127.0f : -127.0f;
    value = value > -127.0f ? value : -127.0f;
    return (i32)((value + 12582912.0f) - 12582912.0f);
}

/* One group of a row of `columns` numbers: item is row * group_count + group. */
INLINE void quantise(GLOBAL const float *input, GLOBAL i8 *values, GLOBAL group *groups, i32 columns, i32 group_count,
                     i32 item) {
    const i32 start = item % group_count * GROUP_COLUMNS, left = columns - start;
    const i32 count = left < GROUP_COLUMNS ? left : GROUP_COLUMNS;
    input += (u64)(item / group_count) * (u64)columns + (u64)start;
    values += (u64)item * (u64)GROUP_COLUMNS;
    u32 largest_bits = 0; /* without their sign the bits of floats are in the order of the numbers, a NaN above all */
    for (i32 i = 0; i < count; i++) {
        const u32 bits = bits_of(input[i]) & 0x7fffffff;
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    const float found = of_bits(largest_bits), largest = found < 1e-35f ? 0.0f : found;
    const float factor = largest > 0 ? 127.0f / largest : 0.0f, scale = largest / 127.0f;
    i32 sums[2] = {0, 0};
    for (i32 i = 0; i < GROUP_COLUMNS; i++) {
        const i32 value = rounded(i < count ? input[i] * factor : 0.0f);
        values[i] = (i8)value;
        sums[i / 16] += value;
    }
    groups[item].scale = scale;
    groups[item].scaled_sum = scale * (float)(sums[0] + sums[1]);
    groups[item].half_sums[0] = sums[0];
    groups[item].half_sums[1] = sums[1];
}

/* ---- codes ---------------------------------------------------------------------------------------------- */

/* The fields of four columns of a plane of `bits` bits, one in each byte. */
INLINE u32 plane(GLOBAL const u32 *lines, i32 row, i32 quad, i32 bits) {
    return lines[quad % bits * PANEL_ROWS + row] >> (quad / bits * bits) & ((1u << bits) - 1) * 0x01010101u;
}

INLINE i32 value_of(u32 codes, i32 column, format f) {
    const u32 code = codes >> 8 * column & 255;
    if (f.table == TABLE_E2M1) return e2m1_values[code];
    if (f.table == TABLE_IQ4) return iq4_values[code];
    if (f.table == TABLE_SIGNS) return 2 * (i32)code - 1;
    return (f.low_bits == 8 ? (i32)(i8)code : (i32)code) - f.zero;
}

/* The exact dot of some quads of a row's group. */
INLINE i32 quads_dot(GLOBAL const u32 *payload, GLOBAL const u32 *x, i32 row, i32 first, i32 end, format f) {
    i32 sum = 0;
    for (i32 quad = first; quad < end; quad++) {
        u32 codes = plane(payload, row, quad, f.low_bits);
        if (f.high_bits) codes |= plane(payload + f.low_bits * PANEL_ROWS, row, quad, f.high_bits) << f.low_bits;
        const u32 inputs = x[quad];
        for (i32 c = 0; c < 4; c++) sum += value_of(codes, c, f) * (i8)(inputs >> 8 * c & 255);
    }
    return sum;
}

INLINE float half_at(GLOBAL const u8 *section, i32 number) { return of_half(((GLOBAL const u16 *)section)[number]); }

/* The number of an e4m3 code, divided by 256: its bits, moved, are those of a half. */
INLINE float e4m3(u32 code) { return of_half((code & 128) << 8 | (code & 127) << 7); }

/* Half of 2^(e - 127). */
INLINE float halved_e8m0(i32 e) { return of_bits(e > 1 ? (u32)(e - 1) << 23 : (u32)(e + 1) << 21); }

INLINE float scale_at(GLOBAL const u8 *section, i32 number, i32 kind) {
    if (kind == SCALE_F16) return half_at(section, number);
    return kind == SCALE_F32 ? ((GLOBAL const float *)section)[number] : halved_e8m0(section[number]);
}

INLINE i32 factor_of(u32 byte, format f) { return f.factor == FACTOR_NIBBLE ? (i32)(byte & 15) : (i32)(i8)byte; }

/* ---- products ------------------------------------------------------------------------------------------- */

/* A row of a panel times the quantised activations of a token. */
INLINE float product(GLOBAL const u8 *panel, GLOBAL const u32 *x, GLOBAL const group *groups, i32 group_count, i32 row,
                     format f) {
    const i32 lines = f.low_bits + f.high_bits, scale_count = (group_count + (1 << f.scale_shift) - 1) >> f.scale_shift;
    const i32 scale_bytes = f.scale == SCALE_F16 ? 2 : f.scale == SCALE_F32 ? 4 : 1;
    GLOBAL const u8 *scales = panel + group_count * lines * 64;
    GLOBAL const u8 *minimums = scales + scale_count * scale_bytes * PANEL_ROWS;
    GLOBAL const u8 *factors = minimums + (f.has_minimums ? scale_count * 2 * PANEL_ROWS : 0);
    GLOBAL const u8 *offsets = factors + (f.factor ? group_count * f.halves * PANEL_ROWS : 0);
    float sum = 0.0f;
    for (i32 g = 0; g < group_count; g++, x += QUADS) {
        GLOBAL const u32 *payload = (GLOBAL const u32 *)panel + g * lines * PANEL_ROWS;
        const i32 shared = (g >> f.scale_shift) * PANEL_ROWS + row, own = g * f.halves * PANEL_ROWS + row;
        const float scale = scale_at(scales, shared, f.scale), input_scale = groups[g].scale;
        const float minimum = f.has_minimums ? half_at(minimums, shared) : scale;
        if (f.halves == 2) {
            const i32 first = quads_dot(payload, x, row, 0, QUADS / 2, f), second = quads_dot(payload, x, row, QUADS / 2, QUADS, f);
            const u32 factor_0 = factors[own], factor_1 = factors[own + PANEL_ROWS];
            if (f.factor == FACTOR_E4M3) {
                sum = fused((float)first, scale * (e4m3(factor_0) * 128.0f) * input_scale, sum);
                sum = fused((float)second, scale * (e4m3(factor_1) * 128.0f) * input_scale, sum);
                continue;
            }
            const i32 whole = factor_of(factor_0, f) * first + factor_of(factor_1, f) * second;
            sum = fused((float)whole, scale * input_scale, sum);
            if (!f.has_offsets) continue;
            const i32 off = (i32)(factor_0 >> 4) * groups[g].half_sums[0] + (i32)(factor_1 >> 4) * groups[g].half_sums[1];
            sum = fused(-(float)off, minimum * input_scale, sum);
            continue;
        }
        const i32 whole = quads_dot(payload, x, row, 0, QUADS, f);
        const float own_scale = f.factor ? scale * (float)factor_of(factors[own], f) : scale;
        sum = fused((float)whole, own_scale * input_scale, sum);
        if (f.has_offsets) sum = fused(-(minimum * (float)offsets[own]), groups[g].scaled_sum, sum);
        else if (f.has_minimums) sum = fused(minimum, groups[g].scaled_sum, sum);
    }
    return sum;
}

#define ELEMENT_F32 0
#define ELEMENT_F16 1
#define ELEMENT_BF16 2

/* A row of a panel of floats times those of a token, the columns in order. */
INLINE float float_product(GLOBAL const u8 *panel, GLOBAL const float *input, i32 columns, i32 row, i32 element) {
    float sum = 0.0f;
    for (i32 column = 0; column < columns; column++) {
        const i32 at = column * PANEL_ROWS + row;
        const float weight = element == ELEMENT_F32   ? ((GLOBAL const float *)panel)[at]
                             : element == ELEMENT_F16 ? half_at(panel, at)
                                                      : of_bits((u32)((GLOBAL const u16 *)panel)[at] << 16);
        sum = fused(weight, input[column], sum);
    }
    return sum;
}

/* A row of a panel of e4m3 numbers times floats: a partial sum for each group, then the sum of those. */
INLINE float e4m3_product(GLOBAL const u8 *panel, GLOBAL const float *input, i32 columns, i32 row, i32 scale,
                          i32 scale_shift, float unit) {
    const i32 group_count = (columns + GROUP_COLUMNS - 1) / GROUP_COLUMNS;
    GLOBAL const u8 *scales = panel + group_count * GROUP_COLUMNS * PANEL_ROWS;
    float sum = 0.0f;
    for (i32 g = 0; g < group_count; g++) {
        const i32 start = g * GROUP_COLUMNS, left = columns - start, end = left < GROUP_COLUMNS ? columns : start + GROUP_COLUMNS;
        float partial = 0.0f;
        for (i32 c = start; c < end; c++) partial = fused(e4m3(panel[c * PANEL_ROWS + row]), input[c], partial);
        sum = fused(partial, scale_at(scales, (g >> scale_shift) * PANEL_ROWS + row, scale) * unit, sum);
    }
    return sum;
}

/* The end of a linear layer, as native/src/operations/linear.c has it. */
INLINE void finish(GLOBAL const float *bias, GLOBAL float *output, i32 has_bias, float scale, i32 accumulate, i32 row,
                   float sum) {
    const float with_bias = has_bias ? sum + bias[row] : sum;
    *output = accumulate ? *output + with_bias * scale : with_bias * scale;
}

/* Rows of a matrix times inputs: item is input * rows + row. Inputs take turns at `heads` runs of rows, each its own, and
 * leave their products `stride` numbers apart. */
INLINE void linear(GLOBAL const u8 *matrix, GLOBAL const u32 *values, GLOBAL const group *groups, GLOBAL const float *bias,
                   GLOBAL float *output, i32 rows, i32 group_count, i32 panel_bytes, i32 has_bias, float scale,
                   i32 accumulate, i32 heads, i32 stride, format f, i32 item) {
    const i32 input = item / rows, row = input % heads * rows + item % rows;
    const float sum =
        product(matrix + (u64)(row / PANEL_ROWS) * (u64)panel_bytes, values + (u64)input * (u64)(group_count * QUADS),
                groups + (u64)input * (u64)group_count, group_count, row % PANEL_ROWS, f);
    finish(bias, output + (u64)input * (u64)stride + (u64)(item % rows), has_bias, scale, accumulate, row, sum);
}

INLINE void float_linear(GLOBAL const u8 *matrix, GLOBAL const float *inputs, GLOBAL const float *bias, GLOBAL float *output,
                         i32 rows, i32 columns, i32 panel_bytes, i32 has_bias, float scale, i32 accumulate, i32 heads,
                         i32 stride, i32 element, i32 item) {
    const i32 input = item / rows, row = input % heads * rows + item % rows;
    const float sum = float_product(matrix + (u64)(row / PANEL_ROWS) * (u64)panel_bytes, inputs + (u64)input * (u64)columns,
                                    columns, row % PANEL_ROWS, element);
    finish(bias, output + (u64)input * (u64)stride + (u64)(item % rows), has_bias, scale, accumulate, row, sum);
}

INLINE void e4m3_linear(GLOBAL const u8 *matrix, GLOBAL const float *inputs, GLOBAL const float *bias, GLOBAL float *output,
                        i32 rows, i32 columns, i32 panel_bytes, i32 has_bias, float scale, i32 accumulate, i32 heads,
                        i32 stride, i32 scale_kind, i32 scale_shift, float unit, i32 item) {
    const i32 input = item / rows, row = input % heads * rows + item % rows;
    const float sum = e4m3_product(matrix + (u64)(row / PANEL_ROWS) * (u64)panel_bytes, inputs + (u64)input * (u64)columns,
                                   columns, row % PANEL_ROWS, scale_kind, scale_shift, unit);
    finish(bias, output + (u64)input * (u64)stride + (u64)(item % rows), has_bias, scale, accumulate, row, sum);
}

/* The channels of a head that pass as they are, behind its product: item is input * passed + channel. */
INLINE void pass_channels(GLOBAL const float *passed, GLOBAL float *output, i32 width, i32 rows, i32 stride, i32 item) {
    output[(u64)(item / width) * (u64)stride + (u64)(rows + item % width)] = passed[item];
}
