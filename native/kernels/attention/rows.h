/* Scores against keys and mixtures of values over vectors of 8 lanes; the same bits as generic.c. An including file
 * says before what a vector is, and what it does with it:
 *
 *   typedef ... em_lanes;                                   8 floats
 *   em_lanes em_load_lanes(const float *at);                and em_store_lanes(float *at, em_lanes lanes)
 *   em_lanes broadcast(float number);
 *   em_lanes times(em_lanes a, em_lanes b);
 *   em_lanes add_products(em_lanes sums, em_lanes a, em_lanes b);   fused
 *   em_lanes load8(em_cached rows, size_t at, em_lanes scale, int format);   elements as floats
 *   em_lanes load_scale(em_cached rows, size_t row, int32_t column, int format);
 *   void store_folded(float *at, const em_lanes lanes[KEYS_TOGETHER], float scale);   scale * em_fold_lanes of each
 *
 * A score is one chain of fused multiply-adds over the width, 4 cycles each, and so is an element of a mixture over the
 * keys. Chains that do not depend on each other go side by side: one row's scores with four keys, or its mixture of 64
 * columns. Where three rows or more read the same block, its elements are converted to floats once for all of them, a
 * few keys or columns at a time, so that they stay in the first-level cache; then three or two rows go side by side,
 * and a vector is loaded once for these. (For two rows alone the conversion costs more than it saves.) No row's order
 * of summation depends on how many there are. */
#ifndef EDGEMOE_ROWS_H
#define EDGEMOE_ROWS_H

enum {
    ROWS_TOGETHER = 3,          /* at most; the least for which elements are converted once */
    VECTORS_TOGETHER = 8,       /* of one row's mixture */
    VECTORS_OF_A_STRIP = 4,     /* of a mixture of several rows: the columns of one scale */
    VECTORS_OF_A_GROUP = EM_GROUP_COLUMNS / EM_LANES,
    STRIP = VECTORS_OF_A_STRIP * EM_LANES,
    CONVERTED_WIDTH_MAX = 640,  /* of keys that are converted for several rows */
};

/* ---- scores ------------------------------------------------------------------------------------------- */

/* One row with four keys, whose width is a multiple of 8. */
INLINE void score_four(const float *query, em_cached keys, size_t first, int32_t width, float scale, float *results,
                       int format) {
    em_lanes sums[KEYS_TOGETHER], scales[KEYS_TOGETHER];
    for (int k = 0; k < KEYS_TOGETHER; k++) sums[k] = scales[k] = broadcast(0);
    for (int32_t i = 0; i < width; i += EM_LANES) {
        const em_lanes q = em_load_lanes(query + i);
        for (int k = 0; k < KEYS_TOGETHER; k++) {
            if (i % EM_GROUP_COLUMNS == 0) scales[k] = load_scale(keys, first + k, i, format);
            sums[k] = add_products(sums[k], q, load8(keys, (first + k) * keys.row_width + i, scales[k], format));
        }
    }
    store_folded(results, sums, scale);
}

INLINE float score_one(const float *query, em_cached keys, size_t key, int32_t width, int format) {
    em_lanes scale = broadcast(0), sums = broadcast(0);
    int32_t i = 0;
    for (; i + EM_LANES <= width; i += EM_LANES) {
        if (i % EM_GROUP_COLUMNS == 0) scale = load_scale(keys, key, i, format);
        sums = add_products(sums, em_load_lanes(query + i), load8(keys, key * keys.row_width + i, scale, format));
    }
    float lanes[EM_LANES];
    em_store_lanes(lanes, sums);
    for (; i < width; i++) {
        const float element = em_cached_element(keys, key, i, format);
        lanes[i % EM_LANES] = __builtin_fmaf(query[i], element, lanes[i % EM_LANES]);
    }
    return em_fold_lanes(lanes);
}

/* `together` rows with four keys in float32. */
INLINE void score_rows(const em_attending *rows, int together, const float *keys, size_t stride, int32_t width,
                       float scale, int32_t first) {
    em_lanes sums[ROWS_TOGETHER][KEYS_TOGETHER];
    for (int r = 0; r < together; r++) {
        for (int k = 0; k < KEYS_TOGETHER; k++) sums[r][k] = broadcast(0);
    }
    for (int32_t i = 0; i < width; i += EM_LANES) {
        em_lanes queries[ROWS_TOGETHER];
        for (int r = 0; r < together; r++) queries[r] = em_load_lanes(rows[r].query + i);
        for (int k = 0; k < KEYS_TOGETHER; k++) {
            const em_lanes key = em_load_lanes(keys + (size_t)k * stride + i);
            for (int r = 0; r < together; r++) sums[r][k] = add_products(sums[r][k], queries[r], key);
        }
    }
    for (int r = 0; r < together; r++) store_folded(rows[r].weights + first, sums[r], scale);
}

/* Three rows or more with four keys. */
INLINE void score_four_of_all(const em_attending *rows, int32_t row_count, em_cached keys, int32_t first,
                              int32_t width, float scale, int format) {
    float converted[KEYS_TOGETHER * CONVERTED_WIDTH_MAX];
    const float *floats = converted;
    size_t stride = (size_t)width;
    if (format == EM_F32) {
        stride = (size_t)keys.row_width;
        floats = (const float *)keys.elements + (size_t)first * stride;
    } else {
        for (int k = 0; k < KEYS_TOGETHER; k++) {
            em_lanes key_scale = broadcast(0);
            for (int32_t i = 0; i < width; i += EM_LANES) {
                if (i % EM_GROUP_COLUMNS == 0) key_scale = load_scale(keys, (size_t)first + k, i, format);
                em_store_lanes(converted + k * width + i,
                               load8(keys, ((size_t)first + k) * keys.row_width + i, key_scale, format));
            }
        }
    }
    int32_t row = 0;
    for (; row_count - row == 3 || row_count - row > 4; row += 3) {
        score_rows(rows + row, 3, floats, stride, width, scale, first);
    }
    for (; row < row_count; row += 2) score_rows(rows + row, 2, floats, stride, width, scale, first);
}

INLINE void scores(const em_attending *rows, int32_t row_count, em_cached keys, int32_t count, int32_t width,
                   float scale, int format) {
    int32_t key = 0;
    for (; width % EM_LANES == 0 && key + KEYS_TOGETHER <= count; key += KEYS_TOGETHER) {
        if (row_count >= ROWS_TOGETHER && width <= CONVERTED_WIDTH_MAX) {
            score_four_of_all(rows, row_count, keys, key, width, scale, format);
        } else {
            for (int32_t row = 0; row < row_count; row++) {
                score_four(rows[row].query, keys, key, width, scale, rows[row].weights + key, format);
            }
        }
    }
    for (; key < count; key++) {
        for (int32_t row = 0; row < row_count; row++) {
            rows[row].weights[key] = score_one(rows[row].query, keys, key, width, format) * scale;
        }
    }
}

/* ---- mixtures ----------------------------------------------------------------------------------------- */

/* `vectors` vectors of one row's output, from element `start` on. */
INLINE void mix_columns(const em_attending *row, em_cached values, int32_t count, int format, int32_t start,
                        int vectors) {
    float *output = row->output + start;
    const em_lanes factor = broadcast(row->factor);
    em_lanes sums[VECTORS_TOGETHER];
    for (int v = 0; v < vectors; v++) sums[v] = times(em_load_lanes(output + v * EM_LANES), factor);
    for (int32_t key = 0; key < count; key++) {
        const em_lanes weight = broadcast(row->weights[key]);
        const size_t at = (size_t)key * values.row_width + start;
        em_lanes scale = broadcast(0);
        for (int v = 0; v < vectors; v++) {
            if (v % VECTORS_OF_A_GROUP == 0) scale = load_scale(values, key, start + v * EM_LANES, format);
            sums[v] = add_products(sums[v], weight, load8(values, at + v * EM_LANES, scale, format));
        }
    }
    for (int v = 0; v < vectors; v++) em_store_lanes(output + v * EM_LANES, sums[v]);
}

/* One row's output, from element `start` on. */
INLINE void mix_row(const em_attending *row, em_cached values, int32_t count, int32_t width, int format,
                    int32_t start) {
    int32_t i = start;
    for (; i + VECTORS_TOGETHER * EM_LANES <= width; i += VECTORS_TOGETHER * EM_LANES) {
        mix_columns(row, values, count, format, i, VECTORS_TOGETHER);
    }
    for (; i + 4 * EM_LANES <= width; i += 4 * EM_LANES) mix_columns(row, values, count, format, i, 4);
    for (; i + EM_LANES <= width; i += EM_LANES) mix_columns(row, values, count, format, i, 1);
    for (; i < width; i++) {
        float sum = row->output[i] * row->factor;
        for (int32_t key = 0; key < count; key++) {
            const float element = em_cached_element(values, key, i, format);
            sum = __builtin_fmaf(row->weights[key], element, sum);
        }
        row->output[i] = sum;
    }
}

/* A strip of the outputs of `together` rows, from values in float32 whose rows are `stride` apart. */
INLINE void mix_strip(const em_attending *rows, int together, const float *values, size_t stride, int32_t count,
                      int32_t start) {
    em_lanes sums[ROWS_TOGETHER][VECTORS_OF_A_STRIP];
    for (int r = 0; r < together; r++) {
        for (int v = 0; v < VECTORS_OF_A_STRIP; v++) {
            sums[r][v] = times(em_load_lanes(rows[r].output + start + v * EM_LANES), broadcast(rows[r].factor));
        }
    }
    for (int32_t key = 0; key < count; key++) {
        em_lanes weights[ROWS_TOGETHER];
        for (int r = 0; r < together; r++) weights[r] = broadcast(rows[r].weights[key]);
        for (int v = 0; v < VECTORS_OF_A_STRIP; v++) {
            const em_lanes value = em_load_lanes(values + (size_t)key * stride + v * EM_LANES);
            for (int r = 0; r < together; r++) sums[r][v] = add_products(sums[r][v], weights[r], value);
        }
    }
    for (int r = 0; r < together; r++) {
        for (int v = 0; v < VECTORS_OF_A_STRIP; v++) {
            em_store_lanes(rows[r].output + start + v * EM_LANES, sums[r][v]);
        }
    }
}

/* A strip of the outputs of three rows or more. */
INLINE void mix_strip_of_all(const em_attending *rows, int32_t row_count, em_cached values, int32_t count, int format,
                             int32_t start) {
    float converted[EM_PAGE_TOKENS * STRIP];
    const float *floats = converted;
    size_t stride = STRIP;
    if (format == EM_F32) {
        floats = (const float *)values.elements + start;
        stride = (size_t)values.row_width;
    } else {
        for (int32_t key = 0; key < count; key++) {
            const em_lanes scale = load_scale(values, key, start, format);
            for (int v = 0; v < VECTORS_OF_A_STRIP; v++) {
                const size_t at = (size_t)key * values.row_width + start + v * EM_LANES;
                em_store_lanes(converted + key * STRIP + v * EM_LANES, load8(values, at, scale, format));
            }
        }
    }
    int32_t row = 0;
    for (; row_count - row == 3 || row_count - row > 4; row += 3) {
        mix_strip(rows + row, 3, floats, stride, count, start);
    }
    for (; row < row_count; row += 2) mix_strip(rows + row, 2, floats, stride, count, start);
}

INLINE void mix(const em_attending *rows, int32_t row_count, em_cached values, int32_t count, int32_t width,
                int format) {
    int32_t start = 0;
    for (; row_count >= ROWS_TOGETHER && start + STRIP <= width; start += STRIP) {
        mix_strip_of_all(rows, row_count, values, count, format, start);
    }
    for (int32_t row = 0; row < row_count; row++) mix_row(rows + row, values, count, width, format, start);
}

#define DEFINE_ATTENTION(isa, type, format)                                                                    \
    void em_scores_##type##_##isa(const em_attending *rows, int32_t row_count, em_cached keys, int32_t count,   \
                                  int32_t width, float scale) {                                                \
        scores(rows, row_count, keys, count, width, scale, format);                                            \
    }                                                                                                          \
    void em_mix_##type##_##isa(const em_attending *rows, int32_t row_count, em_cached values, int32_t count,    \
                               int32_t width) {                                                                \
        mix(rows, row_count, values, count, width, format);                                                    \
    }

#endif
