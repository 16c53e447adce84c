/* The pages of the KV cache: rows are written to them, and attention reads them in the written order of
 * native/src/operations/attention.c: softmax taken online over pages of 64 keys, each row and head by itself.
 *
 * Attention takes some pages at a time, in three launches: an item for each score, one for each row and head, and one for
 * each channel of the output. What is left to know of earlier pages is a row's largest score and its sum. */
#define PAGE_TOKENS 64
#define CACHE_F32 0
#define CACHE_F16 1
#define CACHE_Q8 2

INLINE u32 group_count_of(i32 width) { return (u32)(width + GROUP_COLUMNS - 1) / GROUP_COLUMNS; }

/* Half to even; what overflows becomes infinite, and a NaN stays one. */
INLINE u32 half_of(float value) {
    const u32 bits = bits_of(value), size = bits & 0x7fffffff, sign_bit = bits >> 16 & 0x8000;
    if (size > 0x7f800000) return sign_bit | 0x7e00 | (size >> 13 & 0x1ff);
    if (size >= 0x47800000) return sign_bit | 0x7c00;
    if (size < 0x38800000) return sign_bit | (bits_of(of_bits(size) + 0.5f) - 0x3f000000);
    return sign_bit | (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
}

/* Which row of a cache's rows has a position of a token's sequence. */
INLINE u64 cache_row(GLOBAL const i32 *sequences, GLOBAL const i32 *table, i32 table_pages, i32 heads, i32 token, i32 head,
                     i32 position) {
    const u64 page = (u64)table[(u64)sequences[token] * (u64)table_pages + (u64)(position / PAGE_TOKENS)];
    return (page * (u64)heads + (u64)head) * PAGE_TOKENS + (u64)(position % PAGE_TOKENS);
}

INLINE float cached(GLOBAL const u8 *elements, GLOBAL const u16 *scales, u64 row, i32 width, i32 column, i32 kind) {
    const u64 at = row * (u64)width + (u64)column;
    if (kind == CACHE_F32) return ((GLOBAL const float *)elements)[at];
    if (kind == CACHE_F16) return of_half(((GLOBAL const u16 *)elements)[at]);
    return (float)((GLOBAL const i8 *)elements)[at] *
           of_half(scales[row * (u64)group_count_of(width) + (u64)(column / GROUP_COLUMNS)]);
}

/* A group of 32 columns of a row on its way to a page: item is (token * heads + head) * groups + group. The first columns
 * come from `input`, the others, if there are any, from `rest`. */
INLINE void store(GLOBAL const float *input, GLOBAL const float *rest, GLOBAL const i32 *positions,
                  GLOBAL const i32 *sequences, GLOBAL const i32 *table, GLOBAL u8 *elements, GLOBAL u16 *scales, i32 heads,
                  i32 input_width, i32 width, i32 table_pages, i32 kind, i32 item) {
    const i32 groups = (i32)group_count_of(width), row = item / groups, start = item % groups * GROUP_COLUMNS;
    const i32 token = row / heads, count = width - start < GROUP_COLUMNS ? width - start : GROUP_COLUMNS;
    const u64 to = cache_row(sequences, table, table_pages, heads, token, row % heads, positions[token]);
    const u64 at = to * (u64)width + (u64)start;
    float values[GROUP_COLUMNS];
    u32 largest_bits = 0;
    for (i32 i = 0; i < count; i++) {
        const i32 column = start + i;
        values[i] = column < input_width ? input[(u64)row * (u64)input_width + (u64)column]
                                         : rest[(u64)row * (u64)(width - input_width) + (u64)(column - input_width)];
        const u32 bits = bits_of(values[i]) & 0x7fffffff;
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    if (kind == CACHE_F32) {
        for (i32 i = 0; i < count; i++) ((GLOBAL float *)elements)[at + (u64)i] = values[i];
        return;
    }
    if (kind == CACHE_F16) {
        for (i32 i = 0; i < count; i++) ((GLOBAL u16 *)elements)[at + (u64)i] = (u16)half_of(values[i]);
        return;
    }
    const u32 half_scale = half_of(of_bits(largest_bits) / 127.0f), finite = half_scale < 0x7c00;
    const float factor = finite && half_scale ? 1.0f / of_half(half_scale) : 0.0f;
    scales[to * (u64)groups + (u64)(start / GROUP_COLUMNS)] = (u16)(finite ? half_scale : 0x7e00);
    for (i32 i = 0; i < count; i++) ((GLOBAL i8 *)elements)[at + (u64)i] = finite ? (i8)rounded(values[i] * factor) : 0;
}

/* ---- attention ------------------------------------------------------------------------------------------ */

/* What a row sees of a page: keys `from` to `to`, none where these are equal. */
typedef struct sight {
    i32 page, from, to; /* the page's number in the sequence */
} sight;

INLINE sight seen_of(GLOBAL const i32 *positions, GLOBAL const i32 *sequences, GLOBAL const i32 *lengths,
                     GLOBAL const i32 *chosen, i32 table_pages, i32 window, i32 chunked, i32 has_lengths, i32 bit_keys,
                     i32 token, i32 number) {
    const i32 position = positions[token], end = has_lengths ? lengths[sequences[token]] : position + 1;
    i32 first = 0;
    if (window) first = chunked ? position - position % window : position - window + 1;
    if (first < 0) first = 0;
    sight s;
    s.page = first / PAGE_TOKENS + number;
    const i32 start = s.page * PAGE_TOKENS;
    s.from = first > start ? first - start : 0;
    s.to = end - start < PAGE_TOKENS ? end - start : PAGE_TOKENS;
    i32 any = s.from < s.to;
    if (any && bit_keys) {
        const u32 bits = (u32)chosen[(u64)token * (u64)table_pages + (u64)s.page];
        any = 0;
        for (i32 key = s.from; key < s.to; key++) any |= (i32)(bits >> key / bit_keys & 1);
    }
    if (!any) s.to = s.from;
    return s;
}

/* The score of a key: item is ((token * heads + head) * pages + page) * 64 + key, of the pages from `first_page` on. */
INLINE void attention_scores(GLOBAL const float *query, GLOBAL const i32 *positions, GLOBAL const i32 *sequences,
                             GLOBAL const i32 *table, GLOBAL const i32 *lengths, GLOBAL const i32 *chosen,
                             GLOBAL const u8 *elements, GLOBAL const u16 *scales, GLOBAL const float *factors,
                             GLOBAL const float *bias, GLOBAL const i32 *bucket_of, GLOBAL float *scores, i32 heads,
                             i32 kv_heads, i32 width, i32 table_pages, i32 window, i32 chunked, i32 has_lengths, i32 bit_keys,
                             i32 first_page, i32 pages, i32 has_factors, i32 distances, float scale, float cap, i32 kind,
                             i32 item) {
    const i32 key = item % PAGE_TOKENS, run = item / PAGE_TOKENS / pages, token = run / heads, head = run % heads;
    const sight s = seen_of(positions, sequences, lengths, chosen, table_pages, window, chunked, has_lengths, bit_keys, token,
                            first_page + item / PAGE_TOKENS % pages);
    if (key < s.from || key >= s.to) return;
    const u64 row = cache_row(sequences, table, table_pages, kv_heads, token, head / (heads / kv_heads),
                              s.page * PAGE_TOKENS + key);
    float lanes[LANES] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    query += (u64)run * (u64)width;
    for (i32 i = 0; i < width; i++) {
        lanes[i % LANES] = fused(query[i], cached(elements, scales, row, width, i, kind), lanes[i % LANES]);
    }
    float score = fold_own_lanes(lanes) * scale;
    if (cap > 0.0f) score = capped(score, cap);
    if (has_factors) score = score * factors[positions[token]];
    if (distances) {
        const i32 reach = distances / 2;
        i32 distance = s.page * PAGE_TOKENS + key - positions[token];
        distance = distance < -reach ? -reach : distance > reach ? reach : distance;
        score = score + bias[bucket_of[distance + reach] * heads + head];
    }
    if (bit_keys && !((u32)chosen[(u64)token * (u64)table_pages + (u64)s.page] >> key / bit_keys & 1)) score = MINUS_INFINITY;
    scores[item] = score;
}

/* Scores of a row and head become weights: item is token * heads + head. `states` has its largest score and its sum, and
 * `decays` what the output so far is multiplied with before a page is mixed in. */
INLINE void attention_weights(GLOBAL const i32 *positions, GLOBAL const i32 *sequences, GLOBAL const i32 *lengths,
                              GLOBAL const i32 *chosen, GLOBAL const float *sinks, GLOBAL float *scores, GLOBAL float *decays,
                              GLOBAL float *states, i32 heads, i32 table_pages, i32 window, i32 chunked, i32 has_lengths,
                              i32 bit_keys, i32 first_page, i32 pages, i32 has_sinks, i32 item) {
    float largest = states[2 * item], sum = states[2 * item + 1];
    if (first_page == 0) {
        largest = has_sinks ? sinks[item % heads] : MINUS_INFINITY;
        sum = has_sinks ? 1.0f : 0.0f;
    }
    for (i32 number = 0; number < pages; number++) {
        const sight s = seen_of(positions, sequences, lengths, chosen, table_pages, window, chunked, has_lengths, bit_keys,
                                item / heads, first_page + number);
        if (s.from == s.to) continue;
        GLOBAL float *own = scores + ((u64)item * (u64)pages + (u64)number) * PAGE_TOKENS;
        const float before = largest;
        for (i32 key = s.from; key < s.to; key++) largest = own[key] > largest ? own[key] : largest;
        const float decay = sum > 0.0f ? exponential(before - largest) : 0.0f;
        float lanes[LANES] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        for (i32 key = s.from; key < s.to; key++) {
            own[key] = exponential(own[key] - largest);
            lanes[(key - s.from) % LANES] += own[key];
        }
        sum = sum * decay + fold_own_lanes(lanes);
        decays[(u64)item * (u64)pages + (u64)number] = decay;
    }
    states[2 * item] = largest;
    states[2 * item + 1] = sum;
}

/* A channel of the output: item is (token * heads + head) * width + channel. */
INLINE void attention_mixture(GLOBAL const i32 *positions, GLOBAL const i32 *sequences, GLOBAL const i32 *table,
                              GLOBAL const i32 *lengths, GLOBAL const i32 *chosen, GLOBAL const u8 *elements,
                              GLOBAL const u16 *scales, GLOBAL const float *weights, GLOBAL const float *decays,
                              GLOBAL const float *states, GLOBAL float *output, i32 heads, i32 kv_heads, i32 width,
                              i32 row_width, i32 table_pages, i32 window, i32 chunked, i32 has_lengths, i32 bit_keys,
                              i32 first_page, i32 pages, i32 is_last, i32 kind, i32 item) {
    const i32 run = item / width, token = run / heads, head = run % heads;
    float sum = first_page == 0 ? 0.0f : output[item];
    for (i32 number = 0; number < pages; number++) {
        const sight s = seen_of(positions, sequences, lengths, chosen, table_pages, window, chunked, has_lengths, bit_keys,
                                token, first_page + number);
        if (s.from == s.to) continue;
        const u64 at = (u64)run * (u64)pages + (u64)number;
        const u64 row = cache_row(sequences, table, table_pages, kv_heads, token, head / (heads / kv_heads),
                                  s.page * PAGE_TOKENS);
        sum = sum * decays[at];
        for (i32 key = s.from; key < s.to; key++) {
            const float element = cached(elements, scales, row + (u64)key, row_width, item % width, kind);
            sum = fused(weights[at * PAGE_TOKENS + (u64)key], element, sum);
        }
    }
    output[item] = is_last ? sum / states[2 * run + 1] : sum;
}
