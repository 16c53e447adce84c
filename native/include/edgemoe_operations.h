/* Written by native/write_header.py from the operations of edgemoe/kernels: do not edit. edgemoe.h has it.
 *
 * T is the number of rows of a run; the other letters of shapes are fields of their struct. */
#ifndef EDGEMOE_OPERATIONS_DEFINED_H
#define EDGEMOE_OPERATIONS_DEFINED_H

/* Formats of weights (edgemoe/kernels/formats.py); the first three are those of a KV cache too. */
typedef enum em_format { EM_F32 = 0, EM_F16 = 1, EM_Q8 = 2, EM_Q4 = 3, EM_Q4M = 4, EM_M4 = 5, EM_Q5 = 6, EM_Q5M = 7, EM_Q8M = 8, EM_Q4Z = 9, EM_IQ4NL = 10, EM_IQ4XS = 11, EM_Q2K = 12, EM_Q3K = 13, EM_Q4K = 14, EM_Q5K = 15, EM_Q6K = 16, EM_NV4 = 17, EM_TQ2 = 18, EM_Q2 = 19, EM_Q1 = 20, EM_F8 = 21, EM_M8 = 22, EM_IQ2XXS = 23, EM_IQ2XS = 24, EM_IQ2S = 25, EM_IQ3XXS = 26, EM_IQ3S = 27, EM_IQ1S = 28, EM_IQ1M = 29, EM_BF16 = 30, EM_N4 = 31, EM_N3 = 32, EM_N2 = 33, EM_N15 = 34, EM_N1 = 35, EM_N075 = 36, EM_SUB1 = 37, EM_FORMAT_COUNT = 38 } em_format;

/* FORMAT(NAME, name, ...) for each format; the numbers that follow are those of em_format_numbers. */
enum { EM_SCALE_NONE, EM_SCALE_F16, EM_SCALE_E8M0, EM_SCALE_F32, EM_SCALE_WORDS };
enum { EM_FACTOR_NONE, EM_FACTOR_INT8, EM_FACTOR_NIBBLE, EM_FACTOR_E4M3, EM_FACTOR_PAIRS, EM_FACTOR_INNER, EM_FACTOR_BESIDE };
enum { EM_TABLE_NONE, EM_TABLE_E2M1, EM_TABLE_IQ4, EM_TABLE_SIGNS };
enum { EM_GRID_NONE, EM_GRID_IQ2XXS, EM_GRID_IQ2XS, EM_GRID_IQ2S, EM_GRID_IQ3XXS, EM_GRID_IQ3S, EM_GRID_IQ1 };
#define EM_QUANTISED_FORMATS(FORMAT) \
    FORMAT(Q8, q8) \
    FORMAT(Q4, q4) \
    FORMAT(Q4M, q4m) \
    FORMAT(M4, m4) \
    FORMAT(Q5, q5) \
    FORMAT(Q5M, q5m) \
    FORMAT(Q8M, q8m) \
    FORMAT(Q4Z, q4z) \
    FORMAT(IQ4NL, iq4nl) \
    FORMAT(IQ4XS, iq4xs) \
    FORMAT(Q2K, q2k) \
    FORMAT(Q3K, q3k) \
    FORMAT(Q4K, q4k) \
    FORMAT(Q5K, q5k) \
    FORMAT(Q6K, q6k) \
    FORMAT(NV4, nv4) \
    FORMAT(TQ2, tq2) \
    FORMAT(Q2, q2) \
    FORMAT(Q1, q1) \
    FORMAT(IQ2XXS, iq2xxs) \
    FORMAT(IQ2XS, iq2xs) \
    FORMAT(IQ2S, iq2s) \
    FORMAT(IQ3XXS, iq3xxs) \
    FORMAT(IQ3S, iq3s) \
    FORMAT(IQ1S, iq1s) \
    FORMAT(IQ1M, iq1m) \
    FORMAT(N4, n4) \
    FORMAT(N3, n3) \
    FORMAT(N2, n2) \
    FORMAT(N15, n15) \
    FORMAT(N1, n1) \
    FORMAT(N075, n075)
#define EM_FORMATS(FORMAT) \
    \
        FORMAT(F32, f32, 1, 32, EM_SCALE_NONE, 0, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(F16, f16, 1, 16, EM_SCALE_NONE, 0, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    FORMAT(Q8, q8, 0, 8, EM_SCALE_F16, 0, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    FORMAT(Q4, q4, 0, 4, EM_SCALE_F16, 0, 0, EM_FACTOR_NONE, 1, 0, 8, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q4M, q4m, 0, 4, EM_SCALE_F16, 0, 1, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(M4, m4, 0, 4, EM_SCALE_E8M0, 0, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_E2M1, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q5, q5, 0, 5, EM_SCALE_F16, 0, 0, EM_FACTOR_NONE, 1, 0, 16, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q5M, q5m, 0, 5, EM_SCALE_F16, 0, 1, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q8M, q8m, 0, 8, EM_SCALE_F16, 0, 1, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q4Z, q4z, 0, 4, EM_SCALE_F16, 0, 0, EM_FACTOR_NONE, 1, 1, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(IQ4NL, iq4nl, 0, 4, EM_SCALE_F16, 0, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_IQ4, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(IQ4XS, iq4xs, 0, 4, EM_SCALE_F16, 3, 0, EM_FACTOR_INT8, 1, 0, 0, EM_TABLE_IQ4, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q2K, q2k, 0, 2, EM_SCALE_F16, 3, 1, EM_FACTOR_NIBBLE, 2, 1, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q3K, q3k, 0, 3, EM_SCALE_F16, 3, 0, EM_FACTOR_INT8, 2, 0, 4, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q4K, q4k, 0, 4, EM_SCALE_F16, 3, 1, EM_FACTOR_INT8, 1, 1, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q5K, q5k, 0, 5, EM_SCALE_F16, 3, 1, EM_FACTOR_INT8, 1, 1, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q6K, q6k, 0, 6, EM_SCALE_F16, 3, 0, EM_FACTOR_INT8, 2, 0, 32, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(NV4, nv4, 0, 4, EM_SCALE_F32, 30, 0, EM_FACTOR_E4M3, 2, 0, 0, EM_TABLE_E2M1, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(TQ2, tq2, 0, 2, EM_SCALE_F16, 3, 0, EM_FACTOR_NONE, 1, 0, 1, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    FORMAT(Q2, q2, 0, 2, EM_SCALE_F16, 1, 0, EM_FACTOR_NONE, 1, 0, 1, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(Q1, q1, 0, 1, EM_SCALE_F16, 2, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_SIGNS, EM_GRID_NONE, 0, 0, 0, 0) \
    FORMAT(F8, f8, 1, 8, EM_SCALE_F32, 2, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(M8, m8, 1, 8, EM_SCALE_E8M0, 0, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(IQ2XXS, iq2xxs, 0, 2, EM_SCALE_F16, 3, 0, EM_FACTOR_INNER, 1, 0, 0, EM_TABLE_NONE, EM_GRID_IQ2XXS, 0, 3, 0, 0) \
    \
        FORMAT(IQ2XS, iq2xs, 0, 2, EM_SCALE_F16, 3, 0, EM_FACTOR_PAIRS, 2, 0, 0, EM_TABLE_NONE, EM_GRID_IQ2XS, 0, 3, 0, 0) \
    \
        FORMAT(IQ2S, iq2s, 0, 2, EM_SCALE_F16, 3, 0, EM_FACTOR_PAIRS, 2, 0, 0, EM_TABLE_NONE, EM_GRID_IQ2S, 1, 3, 0, 0) \
    \
        FORMAT(IQ3XXS, iq3xxs, 0, 3, EM_SCALE_F16, 3, 0, EM_FACTOR_INNER, 1, 0, 0, EM_TABLE_NONE, EM_GRID_IQ3XXS, 0, 2, 0, 0) \
    \
        FORMAT(IQ3S, iq3s, 0, 3, EM_SCALE_F16, 3, 0, EM_FACTOR_PAIRS, 1, 0, 0, EM_TABLE_NONE, EM_GRID_IQ3S, 1, 0, 0, 0) \
    \
        FORMAT(IQ1S, iq1s, 0, 1, EM_SCALE_F16, 3, 0, EM_FACTOR_INNER, 1, 0, 0, EM_TABLE_NONE, EM_GRID_IQ1, 2, 3, 0, 0) \
    \
        FORMAT(IQ1M, iq1m, 0, 1, EM_SCALE_WORDS, 3, 0, EM_FACTOR_INNER, 2, 0, 0, EM_TABLE_NONE, EM_GRID_IQ1, 2, 3, 0, 0) \
    \
        FORMAT(BF16, bf16, 1, 16, EM_SCALE_NONE, 0, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0) \
    \
        FORMAT(N4, n4, 0, 4, EM_SCALE_F16, 3, 0, EM_FACTOR_BESIDE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 1, 0) \
    \
        FORMAT(N3, n3, 0, 3, EM_SCALE_F16, 3, 0, EM_FACTOR_BESIDE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 1, 0) \
    \
        FORMAT(N2, n2, 0, 2, EM_SCALE_F16, 3, 0, EM_FACTOR_BESIDE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 2, 0) \
    \
        FORMAT(N15, n15, 0, 3, EM_SCALE_F16, 3, 0, EM_FACTOR_BESIDE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 1, 1) \
    \
        FORMAT(N1, n1, 0, 1, EM_SCALE_F16, 30, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 4, 0) \
    \
        FORMAT(N075, n075, 0, 3, EM_SCALE_F16, 30, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 1, 2)
/* Likewise, of formats whose panels differ in length, and which have kernels of their own. */
#define EM_VARYING_FORMATS(FORMAT) \
    \
        FORMAT(SUB1, sub1, 0, 1, EM_SCALE_NONE, 0, 0, EM_FACTOR_NONE, 1, 0, 0, EM_TABLE_NONE, EM_GRID_NONE, 0, 0, 0, 0)

/* Types of numbers in files (edgemoe/kernels/row_types.py): rows of floats, or of blocks. */
typedef enum em_rows { EM_ROWS_F32 = 0, EM_ROWS_F16 = 1, EM_ROWS_BF16 = 2, EM_ROWS_Q8_0 = 3, EM_ROWS_Q4_0 = 4, EM_ROWS_Q4_1 = 5, EM_ROWS_MXFP4 = 6, EM_ROWS_Q5_0 = 7, EM_ROWS_Q5_1 = 8, EM_ROWS_Q2_K = 9, EM_ROWS_Q3_K = 10, EM_ROWS_Q4_K = 11, EM_ROWS_Q5_K = 12, EM_ROWS_Q6_K = 13, EM_ROWS_IQ4_NL = 14, EM_ROWS_IQ4_XS = 15, EM_ROWS_NVFP4 = 16, EM_ROWS_TQ1_0 = 17, EM_ROWS_TQ2_0 = 18, EM_ROWS_Q2_0 = 19, EM_ROWS_Q1_0 = 20, EM_ROWS_IQ2_XXS = 21, EM_ROWS_IQ2_XS = 22, EM_ROWS_IQ2_S = 23, EM_ROWS_IQ3_XXS = 24, EM_ROWS_IQ3_S = 25, EM_ROWS_IQ1_S = 26, EM_ROWS_IQ1_M = 27, EM_ROWS_COUNT = 28 } em_rows;
enum { EM_FACTORS_NONE, EM_FACTORS_BYTES, EM_FACTORS_NIBBLES, EM_FACTORS_PAIRS, EM_FACTORS_SIXTEEN, EM_FACTORS_EIGHT };

/* TYPE(NAME, ...) for each of them; the numbers that follow are those of em_row_type. */
#define EM_ROW_TYPES(TYPE) \
    TYPE(F32, EM_F32, 1, 4, 0, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0) \
    TYPE(F16, EM_F16, 1, 2, 0, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0) \
    TYPE(BF16, EM_BF16, 1, 2, 0, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0) \
    TYPE(Q8_0, EM_Q8, 32, 34, 0, 0, EM_FACTORS_NONE, 0, 2, 8, 32, 0, 0, 0) \
    TYPE(Q4_0, EM_Q4, 32, 18, 0, 0, EM_FACTORS_NONE, 0, 2, 4, 16, 0, 0, 0) \
    TYPE(Q4_1, EM_Q4M, 32, 20, 0, 2, EM_FACTORS_NONE, 0, 4, 4, 16, 0, 0, 0) \
    TYPE(MXFP4, EM_M4, 32, 17, 0, 0, EM_FACTORS_NONE, 0, 1, 4, 16, 0, 0, 0) \
    TYPE(Q5_0, EM_Q5, 32, 22, 0, 0, EM_FACTORS_NONE, 0, 6, 4, 16, 2, 1, 1) \
    TYPE(Q5_1, EM_Q5M, 32, 24, 0, 2, EM_FACTORS_NONE, 0, 8, 4, 16, 4, 1, 1) \
    TYPE(Q2_K, EM_Q2K, 256, 84, 80, 82, EM_FACTORS_NIBBLES, 0, 16, 2, 32, 0, 0, 0) \
    TYPE(Q3_K, EM_Q3K, 256, 110, 108, 0, EM_FACTORS_SIXTEEN, 96, 32, 2, 32, 0, 1, 32) \
    TYPE(Q4_K, EM_Q4K, 256, 144, 0, 2, EM_FACTORS_PAIRS, 4, 16, 4, 32, 0, 0, 0) \
    TYPE(Q5_K, EM_Q5K, 256, 176, 0, 2, EM_FACTORS_PAIRS, 4, 48, 4, 32, 16, 1, 32) \
    TYPE(Q6_K, EM_Q6K, 256, 210, 208, 0, EM_FACTORS_BYTES, 192, 0, 4, 64, 128, 2, 32) \
    TYPE(IQ4_NL, EM_IQ4NL, 32, 18, 0, 0, EM_FACTORS_NONE, 0, 2, 4, 16, 0, 0, 0) \
    TYPE(IQ4_XS, EM_IQ4XS, 256, 136, 0, 0, EM_FACTORS_EIGHT, 2, 8, 4, 16, 0, 0, 0) \
    TYPE(NVFP4, EM_NV4, 64, 36, 0, 0, EM_FACTORS_BYTES, 0, 4, 4, 8, 0, 0, 0) \
    TYPE(TQ1_0, EM_TQ2, 256, 54, 52, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0) \
    TYPE(TQ2_0, EM_TQ2, 256, 66, 64, 0, EM_FACTORS_NONE, 0, 0, 2, 32, 0, 0, 0) \
    TYPE(Q2_0, EM_Q2, 64, 18, 0, 0, EM_FACTORS_NONE, 0, 2, 2, 1, 0, 0, 0) \
    TYPE(Q1_0, EM_Q1, 128, 18, 0, 0, EM_FACTORS_NONE, 0, 2, 1, 1, 0, 0, 0) \
    TYPE(IQ2_XXS, EM_IQ2XXS, 256, 66, 0, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0) \
    TYPE(IQ2_XS, EM_IQ2XS, 256, 74, 0, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0) \
    TYPE(IQ2_S, EM_IQ2S, 256, 82, 0, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0) \
    TYPE(IQ3_XXS, EM_IQ3XXS, 256, 98, 0, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0) \
    TYPE(IQ3_S, EM_IQ3S, 256, 110, 0, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0) \
    TYPE(IQ1_S, EM_IQ1S, 256, 50, 0, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0) \
    TYPE(IQ1_M, EM_IQ1M, 256, 56, 48, 0, EM_FACTORS_NONE, 0, 0, 0, 0, 0, 0, 0)

/* Positions in a page of the KV cache. */
enum { EM_PAGE_TOKENS = 64 };

/* The most tokens that a short convolution runs over. */
enum { EM_MOST_TAPS = 64 };

/* The most positions from one of these tokens to the next. */
enum { EM_MOST_DILATION = 64 };

/* The most channels of a block's key. */
enum { EM_WIDEST_BLOCK_KEY = 1024 };

/* The most channels of a head's keys in the delta rule. */
enum { EM_WIDEST_KEYS = 256 };

/* The most blocks of a page of which some are chosen. */
enum { EM_MOST_BITS = 32 };

/* The most experts that a head retrieves by keys. */
enum { EM_MOST_RETRIEVED = 64 };

/* The most residual streams of a token. */
enum { EM_MOST_STREAMS = 16 };

/* em_route.score */
enum { EM_SCORE_SOFTMAX = 0, EM_SCORE_SIGMOID = 1, EM_SCORE_SPARSEMIXER = 2, EM_SCORE_SQRT_SOFTPLUS = 3, EM_SCORE_COUNT = 4 };

/* em_route.choose_by */
enum { EM_CHOOSE_BY_SCORE = 0, EM_CHOOSE_BY_LOGIT = 1, EM_CHOOSE_BY_COUNT = 2 };

/* em_activation.function */
enum { EM_FUNCTION_SILU = 0, EM_FUNCTION_CLAMPED_SILU = 1, EM_FUNCTION_GELU_TANH = 2, EM_FUNCTION_RELU = 3, EM_FUNCTION_RELU2 = 4, EM_FUNCTION_CAPPED_SILU = 5, EM_FUNCTION_GELU = 6, EM_FUNCTION_COUNT = 7 };

/* em_gate.gating */
enum { EM_GATING_SIGMOID = 0, EM_GATING_SOFTPLUS = 1, EM_GATING_IDENTITY = 2, EM_GATING_SILU = 3, EM_GATING_COUNT = 4 };

/* em_retrieve_by_keys.scoring */
enum { EM_SCORING_SOFTMAX = 0, EM_SCORING_SIGMOID = 1, EM_SCORING_RELU = 2, EM_SCORING_COUNT = 3 };

/* em_neuron_layout.element */
enum { EM_ELEMENT_F32 = 0, EM_ELEMENT_F16 = 1, EM_ELEMENT_COUNT = 2 };

/* output[t] = scale * matrix[ids[t]], as many times one after the other as there are copies. */
typedef struct em_embed {
    const int32_t *ids;  /* (T,) */
    em_matrix matrix;    /* (V, D) */
    float scale;
    float *output;       /* (T, copies*D) */
    int32_t copies;
    int32_t vocab_size;  /* V */
    int32_t hidden_size; /* D */
} em_embed;

/* output = input / rms(input) * weight * silu(gate), over each of heads runs of the row; may be in place. */
typedef struct em_rms_norm {
    const float *input;  /* (T, heads*W) */
    const float *weight; /* (own_weights*W,), or NULL */
    float epsilon;
    float *output;       /* (T, heads*W) */
    int32_t heads;
    const float *gate;   /* (T, heads*W), or NULL */
    int32_t own_weights;
    int32_t head_dim;    /* W */
} em_rms_norm;

/* One of the matrices that share an input, with the buffer for its product. */
typedef struct em_linear_part {
    em_matrix matrix;  /* (N, M) */
    const float *bias; /* (N,), or NULL */
    float *output;     /* (T, N) */
    int32_t rows;      /* N */
} em_linear_part;

/* For each part output = scale * (matrix input + bias), or output += ... if accumulate. */
typedef struct em_linear {
    const float *input;      /* (T, M) */
    em_linear_part parts[4];
    int32_t parts_count;     /* 1 to 4 */
    float scale;
    int32_t accumulate;
    int32_t columns;         /* M */
} em_linear;

/* Rotates each head in place: (a, b) -> (a cos - b sin, b cos + a sin). */
typedef struct em_rope {
    float *values;            /* (T, heads*W) */
    int32_t heads;
    const int32_t *positions; /* (T,) */
    const float *cosine;      /* (C, R/2) */
    const float *sine;        /* (C, R/2) */
    int32_t neighbours;
    int32_t last;
    int32_t back;
    int32_t head_dim;         /* W */
    int32_t context;          /* C */
    int32_t rotated;          /* R */
} em_rope;

/* Writes the keys and values of each row's token to the page of its position. */
typedef struct em_store_kv {
    const float *keys;        /* (T, G*W) */
    const float *values;      /* (T, G*Wv) */
    const int32_t *positions; /* (T,) */
    const int32_t *sequences; /* (T,) */
    const int32_t *pages;     /* (S, P) */
    em_cache key_cache;       /* (N, G, 64, W) */
    em_cache value_cache;     /* (N, G, 64, Wv) */
    int32_t sequence_count;   /* S */
    int32_t table_pages;      /* P */
    int32_t page_count;       /* N */
    int32_t kv_heads;         /* G */
    int32_t head_dim;         /* W */
    int32_t value_dim;        /* Wv */
} em_store_kv;

/* Numbers of each head that are added to its scores, by how far a key's position lies from the query's (T5). */
typedef struct em_distance_bias {
    const float *table;       /* (entries,) */
    const int32_t *bucket_of; /* (distances,) */
    int32_t entries;          /* entries */
    int32_t distances;        /* distances */
} em_distance_bias;

/* Causal attention over the cache: row t sees positions 0 .. positions[t] of its sequence. */
typedef struct em_attention {
    const float *query;       /* (T, H*W) */
    const int32_t *positions; /* (T,) */
    const int32_t *sequences; /* (T,) */
    const int32_t *pages;     /* (S, P) */
    em_cache key_cache;       /* (N, G, 64, W) */
    em_cache value_cache;     /* (N, G, 64, Wv), or NULL */
    float scale;
    float *output;            /* (T, H*Wv) */
    int64_t window;
    const float *sinks;       /* (H,), or NULL */
    int32_t chunked;
    float cap;
    const int32_t *lengths;   /* (S,), or NULL */
    em_distance_bias bias;    /* all zeros if there are none */
    const int32_t *chosen;    /* (T, P), or NULL */
    int32_t page_blocks;
    const float *factors;     /* (C,), or NULL */
    int32_t sequence_count;   /* S */
    int32_t table_pages;      /* P */
    int32_t page_count;       /* N */
    int32_t kv_heads;         /* G */
    int32_t head_dim;         /* W */
    int32_t heads;            /* H */
    int32_t value_dim;        /* Wv */
    int32_t context;          /* C */
} em_attention;

/* A causal convolution over the last length tokens of a sequence, each channel by itself. */
typedef struct em_short_conv {
    const float *input;       /* (T, parts*D) */
    const float *taps;        /* (D*length,) */
    const float *bias;        /* (D,), or NULL */
    const int32_t *positions; /* (T,) */
    const int32_t *sequences; /* (T,) */
    float *inputs;            /* (S, ring, D) */
    float *output;            /* (T, D) */
    int32_t parts;
    int32_t dilation;
    int32_t hidden_size;      /* D */
    int32_t length;           /* length */
    int32_t sequence_count;   /* S */
    int32_t ring;             /* ring */
} em_short_conv;

/* The K experts of largest choice score (the lower number on a tie), in falling order, and their weights. */
typedef struct em_route {
    const float *logits;        /* (T, E) */
    int32_t renormalise;
    int32_t *experts;           /* (T, K) */
    float *weights;             /* (T, K) */
    const int32_t *slots;       /* (resident,), or NULL */
    float bonus;
    int32_t score;              /* EM_SCORE_... */
    const float *choice_bias;   /* (E,), or NULL */
    int32_t groups;
    int32_t kept_groups;
    float epsilon;
    float scale;
    float least_sum;
    int32_t choose_by;          /* EM_CHOOSE_BY_... */
    const float *expert_scales; /* (E,), or NULL */
    int64_t group_best;
    float jitter;
    int64_t passing;
    int32_t num_experts;        /* E */
    int32_t top_k;              /* K */
    int32_t resident;           /* resident */
} em_route;

/* The function of gate's number g and up's number u whose result an FFN multiplies by down. */
typedef struct em_activation {
    int32_t function; /* EM_FUNCTION_... */
    float alpha;
    float limit;      /* or 0 */
    float offset;     /* or 0 */
    int32_t gated;
} em_activation;

/* The vectors that are added to the products of an FFN: to those of gate and up before the activation. */
typedef struct em_ffn_biases {
    const float *gate; /* (F,), or NULL */
    const float *up;   /* (F,) */
    const float *down; /* (D,) */
} em_ffn_biases;

/* Gate and up of two formats. */
typedef struct em_unlike_matrices {
    em_matrix gate; /* (F, D) */
    em_matrix up;   /* (F, D) */
} em_unlike_matrices;

/* output = down (activation(gate input, up input)), each product plus its bias if there are biases. */
typedef struct em_gated_ffn {
    const float *input;        /* (T, D) */
    em_matrix gate_up;         /* (2*up16(F), D), or all zeros */
    em_matrix down;            /* (D, F) */
    float *output;             /* (T, D) */
    em_activation activation;
    em_ffn_biases biases;      /* all zeros if there are none */
    em_unlike_matrices apart;  /* all zeros if there are none */
    int32_t hidden_size;       /* D */
    int32_t intermediate_size; /* F */
} em_gated_ffn;

/* Where an operation asks for the experts of a layer: not all are in the arena. */
typedef struct em_paged {
    em_pager *pager; /* NULL: every record is in the arena */
    int64_t layer;
} em_paged;

/* Begins to read the absent experts that a layer's tokens are routed to, as far as slots are available. */
typedef struct em_fetch {
    const int32_t *experts; /* (T, K) */
    float *weights;         /* (T, K), or NULL */
    float drop_cold;
    em_paged paged;         /* all zeros if there are none */
    int32_t from_base;
    int32_t top_k;          /* K */
} em_fetch;

/* Begins to read the experts that guesses at a later layer's routing name, behind all that are asked for. */
typedef struct em_prefetch {
    const int32_t *experts; /* (T, K) */
    em_paged paged;         /* all zeros if there are none */
    int32_t top_k;          /* K */
} em_prefetch;

/* Where an expert's matrices lie in its record: gate and up at 0, down at down_offset; biases if there are any. */
typedef struct em_expert_layout {
    int32_t hidden_size;       /* D */
    int32_t intermediate_size; /* F */
    int32_t gate_format;
    int32_t up_format;
    int32_t down_format;
    int64_t down_offset;
    int64_t biases_offset;
    int32_t gated;
    int64_t up_offset;
} em_expert_layout;

/* The base planes of all experts of a layer, which are always in RAM: two matrices, one expert after the other. */
typedef struct em_expert_bases {
    em_matrix first;           /* (U, D) */
    em_matrix down;            /* (W, I) */
    int32_t first_rows;        /* U */
    int32_t down_rows;         /* W */
    int32_t intermediate_size; /* I */
} em_expert_bases;

/* output[t, k] = expert experts[t, k] (input[t]) for experts whose slots[e] >= 0. */
typedef struct em_experts {
    const float *input;           /* (T, D) */
    const int32_t *experts;       /* (T, K) */
    const int32_t *slots;         /* (E,) */
    const uint8_t *arena;         /* (S, B) */
    em_expert_layout layouts[16];
    int32_t layouts_count;        /* 1 to 16 */
    const uint8_t *layout_of;     /* (E,) */
    float *output;                /* (T, K, D) */
    em_paged paged;               /* all zeros if there are none */
    em_activation activation;
    em_expert_bases bases;        /* all zeros if there are none */
    int32_t hidden_size;          /* D */
    int32_t top_k;                /* K */
    int32_t num_experts;          /* E */
    int32_t slot_count;           /* S */
    int32_t slot_bytes;           /* B */
} em_experts;

/* output[t] += scale * (sum_k weights[t, k] * routed[t, k] + sigmoid(shared_gate[t]) * shared[t]). */
typedef struct em_combine {
    float *output;            /* (T, D) */
    float scale;
    const float *routed;      /* (T, K, D), or NULL */
    const float *weights;     /* (T, K), or NULL */
    const float *shared;      /* (T, D), or NULL */
    const float *shared_gate; /* (T, 1), or NULL */
    int32_t accumulate;
    int32_t hidden_size;      /* D */
    int32_t top_k;            /* K */
} em_combine;

/* output[t] = factor * (keep * base[t] + share * (scale * result[t]) + shift): a block's result joins the stream. */
typedef struct em_mix {
    const float *base;   /* (T, D) */
    const float *result; /* (T, D) */
    float scale;
    const float *keep;   /* (D,), or NULL */
    const float *share;  /* (D,), or NULL */
    const float *shift;  /* (D,), or NULL */
    float *output;       /* (T, D) */
    const float *factor; /* (1,), or NULL */
    int32_t hidden_size; /* D */
} em_mix;

/* Holds each number in place to -limit .. limit; a NaN stays one. */
typedef struct em_clip {
    float *values;   /* (T, M) */
    float limit;
    int32_t columns; /* M */
} em_clip;

/* Multiplies in place: each of the equal runs of a row by what gating makes of its own number of gate. */
typedef struct em_gate {
    const float *gate; /* (T, runs) */
    float *values;     /* (T, runs*width) */
    int32_t gating;    /* EM_GATING_... */
    int32_t runs;      /* runs */
    int32_t width;     /* width */
} em_gate;

/* output = (input - mean) / sqrt(variance + epsilon) * weight + bias, over each row; may be in place. */
typedef struct em_layer_norm {
    const float *input;  /* (T, D) */
    const float *weight; /* (D,) */
    float epsilon;
    float *output;       /* (T, D) */
    const float *bias;   /* (D,), or NULL */
    int32_t hidden_size; /* D */
} em_layer_norm;

/* Brings numbers within -limit .. limit smoothly, in place: limit * tanh(value / limit) (Gemma 2, 2024). */
typedef struct em_soft_cap {
    float *values;   /* (T, M) */
    float limit;
    int32_t columns; /* M */
} em_soft_cap;

/* The gated delta rule: each head keeps a matrix S (W, Wv), which a token decays and then corrects. */
typedef struct em_delta_rule {
    const float *mixed;       /* (T, M) */
    const float *strength;    /* (T, H) */
    const float *decay_input; /* (T, decays) */
    const float *decay_bias;  /* (decays,) */
    const float *rate;        /* (H,) */
    float epsilon;
    int32_t key_heads;        /* G */
    const int32_t *positions; /* (T,) */
    const int32_t *sequences; /* (T,) */
    float *states;            /* (S, H, up16(Wv), W) */
    float *output;            /* (T, H*Wv) */
    const float *keys;        /* (T, G*W), or NULL */
    const float *values;      /* (T, H*Wv), or NULL */
    float lower_bound;
    int32_t in_turn;
    int32_t columns;          /* M */
    int32_t heads;            /* H */
    int32_t decays;           /* decays */
    int32_t value_dim;        /* Wv */
    int32_t sequence_count;   /* S */
    int32_t head_dim;         /* W */
} em_delta_rule;

/* Multiplies each head by a matrix of its own: head h of output is [matrix[h] input[h] | passed[h]]. */
typedef struct em_head_linear {
    const float *input;  /* (T, H*M) */
    em_matrix matrix;    /* (H*N, M) */
    const float *passed; /* (T, H*R), or NULL */
    int32_t heads;       /* H */
    float *output;       /* (T, H*W) */
    int32_t columns;     /* M */
    int32_t rows;        /* N */
    int32_t rotated;     /* R */
    int32_t head_dim;    /* W */
} em_head_linear;

/* Writes a row [latent | rotary] for each row's token to the page of its position, as StoreKv writes keys. */
typedef struct em_store_latent {
    const float *latent;      /* (T, Wv) */
    const float *rotary;      /* (T, R), or NULL */
    const int32_t *positions; /* (T,) */
    const int32_t *sequences; /* (T,) */
    const int32_t *pages;     /* (S, P) */
    em_cache latent_cache;    /* (N, 1, 64, W) */
    int32_t value_dim;        /* Wv */
    int32_t rotated;          /* R */
    int32_t sequence_count;   /* S */
    int32_t table_pages;      /* P */
    int32_t page_count;       /* N */
    int32_t head_dim;         /* W */
} em_store_latent;

/* output = down (activation(up input)), each product plus its bias if there are biases: an FFN without a gate. */
typedef struct em_plain_ffn {
    const float *input;        /* (T, D) */
    em_matrix up;              /* (F, D) */
    em_matrix down;            /* (D, F) */
    float *output;             /* (T, D) */
    em_activation activation;
    em_ffn_biases biases;      /* all zeros if there are none */
    int32_t hidden_size;       /* D */
    int32_t intermediate_size; /* F */
} em_plain_ffn;

/* The selective state space of Mamba-2: each head keeps a matrix S (W, Wv) that a token decays and adds to. */
typedef struct em_selective_scan {
    const float *mixed;       /* (T, M) */
    const float *step;        /* (T, H), or NULL */
    const float *step_bias;   /* (H,), or NULL */
    const float *rate;        /* (H,) */
    const float *skip;        /* (H,), or NULL */
    int32_t groups;           /* G */
    const int32_t *positions; /* (T,) */
    const int32_t *sequences; /* (T,) */
    float *states;            /* (S, H, up16(Wv), W) */
    float *output;            /* (T, H*Wv) */
    int32_t columns;          /* M */
    int32_t heads;            /* H */
    int32_t value_dim;        /* Wv */
    int32_t sequence_count;   /* S */
    int32_t head_dim;         /* W */
} em_selective_scan;

/* Multiplies each row in place by the factor of its token's position. */
typedef struct em_scale_by_position {
    float *values;            /* (T, M) */
    const int32_t *positions; /* (T,) */
    const float *factors;     /* (C,) */
    int32_t columns;          /* M */
    int32_t context;          /* C */
} em_scale_by_position;

/* Makes the weight 0 of each choice of an expert that as many choices of this run precede as the expert takes. */
typedef struct em_capacity {
    const int32_t *experts; /* (T, K) */
    float *weights;         /* (T, K) */
    int32_t num_experts;
    int64_t capacity;
    int64_t share;
    int32_t by_rank;
    int32_t top_k;          /* K */
} em_capacity;

/* The selective state space of Mamba-1: each of I channels keeps W numbers, which decay at rates of their own. */
typedef struct em_channel_scan {
    const float *input;       /* (T, I) */
    const float *step;        /* (T, I) */
    const float *keys;        /* (T, W) */
    const float *queries;     /* (T, W) */
    const float *rate;        /* (I*W,) */
    const float *skip;        /* (I,) */
    const int32_t *positions; /* (T,) */
    const int32_t *sequences; /* (T,) */
    float *states;            /* (S, up16(I), W) */
    float *output;            /* (T, I) */
    int32_t channels;         /* I */
    int32_t head_dim;         /* W */
    int32_t sequence_count;   /* S */
} em_channel_scan;

/* Mixes the streams to one row: output = mean over s of sigmoid(shares[s]) * streams[s], channel by channel. */
typedef struct em_read_streams {
    const float *streams; /* (T, count*D) */
    const float *shares;  /* (T, count*D) */
    float *output;        /* (T, D) */
    int32_t hidden_size;  /* D */
    int32_t count;        /* count */
} em_read_streams;

/* Adds a block's result to every stream in place: streams[s] += 2 * sigmoid(shares[s]) * result. */
typedef struct em_write_streams {
    const float *shares; /* (T, count) */
    const float *result; /* (T, D) */
    float *streams;      /* (T, count*D) */
    int32_t count;       /* count */
    int32_t hidden_size; /* D */
} em_write_streams;

/* Gives every stream a share of one value, by how far a key of its own agrees with its query. */
typedef struct em_gate_by_agreement {
    const float *key;    /* (T, count*D) */
    const float *query;  /* (T, count*D) */
    const float *value;  /* (T, D) */
    float least;
    float *output;       /* (T, count*D) */
    int32_t hidden_size; /* D */
    int32_t count;       /* count */
} em_gate_by_agreement;

/* Each whole block of rate tokens gets a key: the mean of its tokens' rows of keys. */
typedef struct em_store_block_keys {
    const float *keys;        /* (T, W) */
    const float *norm;        /* (W,) */
    float epsilon;
    const float *cosine;      /* (C, R/2) */
    const float *sine;        /* (C, R/2) */
    int64_t rate;
    const int32_t *positions; /* (T,) */
    const int32_t *sequences; /* (T,) */
    const int32_t *pages;     /* (S, P) */
    float *inputs;            /* (S, ring, W) */
    em_cache block_keys;      /* (N, 1, B, W) */
    int32_t head_dim;         /* W */
    int32_t context;          /* C */
    int32_t rotated;          /* R */
    int32_t sequence_count;   /* S */
    int32_t table_pages;      /* P */
    int32_t ring;             /* ring */
    int32_t page_count;       /* N */
    int32_t block_rows;       /* B */
} em_store_block_keys;

/* A token's streams become the row that a block reads: output = sum over i of share[i] * streams[i]. */
typedef struct em_collapse_streams {
    const float *streams; /* (T, n*D) */
    const float *numbers; /* (T, n) */
    const float *base;    /* (n,) */
    const float *scale;   /* (1,) */
    float epsilon;
    int32_t count;        /* n */
    float *output;        /* (T, D) */
    int32_t hidden_size;  /* D */
} em_collapse_streams;

/* A block's result joins a token's streams: streams[j] = post[j] * result + sum over i of mix[i, j] * streams[i]. */
typedef struct em_join_streams {
    const float *result;  /* (T, D) */
    const float *joining; /* (T, J) */
    int32_t count;        /* n */
    float *streams;       /* (T, n*D) */
    int32_t hidden_size;  /* D */
    int32_t J;            /* J */
} em_join_streams;

/* Each whole block of rate tokens becomes one row: a mean of theirs, weighed in each channel by a softmax. */
typedef struct em_compress {
    const float *values;      /* (T, parts*W) */
    const float *gates;       /* (T, parts*W) */
    const float *bias;        /* (rate*parts*W,) */
    const float *norm;        /* (W,) */
    float epsilon;
    const float *cosine;      /* (C, R/2) */
    const float *sine;        /* (C, R/2) */
    int32_t rate;             /* rate */
    int32_t parts;            /* parts */
    const int32_t *positions; /* (T,) */
    const int32_t *sequences; /* (T,) */
    const int32_t *pages;     /* (S, P) */
    float *inputs;            /* (S, ring, 2*parts*W) */
    em_cache compressed;      /* (N, 1, B, W) */
    int32_t head_dim;         /* W */
    int32_t context;          /* C */
    int32_t rotated;          /* R */
    int32_t sequence_count;   /* S */
    int32_t table_pages;      /* P */
    int32_t ring;             /* ring */
    int32_t page_count;       /* N */
    int32_t block_rows;       /* B */
} em_compress;

/* Causal attention over the last window rows of a sequence, and over one row for each rate tokens before. */
typedef struct em_compressed_attention {
    const float *query;          /* (T, H*W) */
    const int32_t *positions;    /* (T,) */
    const int32_t *sequences;    /* (T,) */
    const int32_t *window_pages; /* (S, P) */
    em_cache window_cache;       /* (N, 1, 64, W) */
    const int32_t *pages;        /* (S, P) */
    em_cache compressed;         /* (L, 1, B, W) */
    int64_t rate;
    float scale;
    int64_t window;
    float *output;               /* (T, H*W) */
    const float *sinks;          /* (H,), or NULL */
    const int32_t *chosen;       /* (T, P), or NULL */
    int32_t sequence_count;      /* S */
    int32_t table_pages;         /* P */
    int32_t page_count;          /* N */
    int32_t head_dim;            /* W */
    int32_t heads;               /* H */
    int32_t compressed_pages;    /* L */
    int32_t block_rows;          /* B */
} em_compressed_attention;

/* The K experts that a table has for each token's id, in its order, and their weights. */
typedef struct em_table_route {
    const int32_t *ids;  /* (T,) */
    const float *table;  /* (V*K,) */
    const float *logits; /* (T, E), or NULL */
    int32_t num_experts; /* E */
    float epsilon;
    float scale;
    int32_t *experts;    /* (T, K) */
    float *weights;      /* (T, K) */
    int32_t top_k;       /* K */
    int32_t vocab_size;  /* V */
} em_table_route;

/* Finds, in place, how a block's result joins the streams: [post | mix], which JoinStreams takes. */
typedef struct em_balance_streams {
    float *numbers;      /* (T, J) */
    const float *base;   /* (J,) */
    const float *scales; /* (2,) */
    float epsilon;
    int64_t iterations;
    int32_t count;       /* n */
    int32_t J;           /* J */
} em_balance_streams;

/* Chooses the most blocks of rate tokens that a row sees: those of largest score. */
typedef struct em_choose_blocks {
    const float *query;       /* (T, H*W) */
    const int32_t *positions; /* (T,) */
    const int32_t *sequences; /* (T,) */
    const int32_t *pages;     /* (S, P) */
    em_cache keys;            /* (N, 1, B, W) */
    int64_t rate;
    float scale;
    int64_t most;
    float *scores;            /* (at_once, P, B) */
    int32_t *chosen;          /* (T, P) */
    const float *shares;      /* (T, H), or NULL */
    int32_t own;
    int32_t sequence_count;   /* S */
    int32_t table_pages;      /* P */
    int32_t page_count;       /* N */
    int32_t block_rows;       /* B */
    int32_t head_dim;         /* W */
    int32_t heads;            /* H */
    int32_t at_once;          /* at_once */
} em_choose_blocks;

/* Retrieves for each head the J experts of largest score, and their weights. */
typedef struct em_retrieve_by_keys {
    const float *first;  /* (T, H*N) */
    const float *second; /* (T, H*N) */
    int32_t heads;       /* H */
    int32_t *experts;    /* (T, H*J) */
    float *weights;      /* (T, H*J) */
    int32_t scoring;     /* EM_SCORING_... */
    int32_t keys;        /* N */
    int32_t retrieved;   /* J */
} em_retrieve_by_keys;

/* Where a neuron lies: its input weights, then its output weights, one number after the other. */
typedef struct em_neuron_layout {
    int32_t element;          /* EM_ELEMENT_... */
    int64_t neuron_bytes;
    int64_t neurons_per_page;
} em_neuron_layout;

/* Where an operation asks for pages: not all are in the arena. */
typedef struct em_row_paging {
    em_row_pager *pager; /* NULL: every page is in the arena */
} em_row_paging;

/* output[t] += scale * sum over k of weights[t, k] * activation(u . input[t]) * v, of expert experts[t, k]. */
typedef struct em_neurons {
    const float *input;       /* (T, D) */
    const int32_t *experts;   /* (T, K) */
    const float *weights;     /* (T, K) */
    const uint8_t *arena;     /* (S, B) */
    const int32_t *slots;     /* (P,) */
    em_neuron_layout layout;
    int64_t first;
    int64_t count;
    em_activation activation;
    float *output;            /* (T, D) */
    float scale;
    int32_t accumulate;
    em_row_paging paged;      /* all zeros if there are none */
    int32_t hidden_size;      /* D */
    int32_t top_k;            /* K */
    int32_t slot_count;       /* S */
    int32_t slot_bytes;       /* B */
    int32_t page_count;       /* P */
} em_neurons;

/* A row goes down each of trees binary trees; the output is the sum of what one path through each of them adds. */
typedef struct em_tree_ffn {
    const float *input;       /* (T, D) */
    em_matrix nodes;          /* (node_panels, 32) */
    const float *node_bias;   /* (node_count,) */
    em_matrix leaf_in;        /* (in_panels, 32), or all zeros */
    const float *leaf_bias;   /* (leaf_neurons,), or NULL */
    em_matrix out;            /* (out_panels, 32) */
    const float *output_bias; /* (output_numbers,), or NULL */
    int64_t trees;
    int64_t depth;
    int64_t leaf_width;
    float *output;            /* (T, D) */
    em_activation activation;
    int32_t hidden_size;      /* D */
    int32_t node_panels;      /* node_panels */
    int32_t node_count;       /* node_count */
    int32_t in_panels;        /* in_panels */
    int32_t leaf_neurons;     /* leaf_neurons */
    int32_t out_panels;       /* out_panels */
    int32_t output_numbers;   /* output_numbers */
} em_tree_ffn;

/* One level of a router: each choice of the level above has size members, of which a token chooses top_k. */
typedef struct em_level {
    int64_t size;
    int64_t top_k;
} em_level;

/* The experts that a token chooses level by level, and their weights: products of its shares on the way. */
typedef struct em_level_route {
    const float *logits;  /* (T, numbers) */
    em_level levels[8];
    int32_t levels_count; /* 1 to 8 */
    int32_t renormalise;
    float scale;
    int32_t *experts;     /* (T, K) */
    float *weights;       /* (T, K) */
    int32_t numbers;      /* numbers */
    int32_t top_k;        /* K */
} em_level_route;

/* Makes the weight 0 of each choice but a token's first one that is not above least, a float32. */
typedef struct em_least_weight {
    float *weights; /* (T, K) */
    float least;
    int32_t top_k;  /* K */
} em_least_weight;

/* Turns each row into its 1.5-entmax, in place (Peters, Niculae and Martins 2019, arXiv 1905.05702). */
typedef struct em_entmax {
    float *values;       /* (T, E) */
    int32_t num_experts; /* E */
} em_entmax;

/* (value - mean) / sqrt(variance + epsilon), in place, by the means and variances of training. */
typedef struct em_batch_norm {
    float *values;         /* (T, M) */
    const float *mean;     /* (M,) */
    const float *variance; /* (M,) */
    float epsilon;
    int32_t columns;       /* M */
} em_batch_norm;

/* output = left right for each of the count pairs of matrices of a row, (height, inner) and (inner, width). */
typedef struct em_pair_products {
    const float *left;  /* (T, count*height*inner) */
    const float *right; /* (T, count*inner*width) */
    int32_t count;      /* count */
    int32_t inner;      /* inner */
    float *output;      /* (T, count*height*width) */
    int32_t height;     /* height */
    int32_t width;      /* width */
} em_pair_products;

/* logits[t, s] = factor * scale * input[t] . (gain * slots[s]), a logit for each slot. */
typedef struct em_slot_logits {
    const float *input;  /* (T, D) */
    const float *slots;  /* (S*D,) */
    const float *gain;   /* (D,), or NULL */
    const float *scale;  /* (1,), or NULL */
    float factor;
    float *logits;       /* (T, S) */
    int32_t unit_slots;
    int32_t unit_input;
    int32_t hidden_size; /* D */
    int32_t slot_count;  /* S */
} em_slot_logits;

/* slots[s] = sum over t of softmax over t (logits[t, s]) * input[t]: each slot is a mean of all rows. */
typedef struct em_dispatch {
    const float *logits; /* (T, S) */
    const float *input;  /* (T, D) */
    float *slots;        /* (S, D) */
    int32_t slot_count;  /* S */
    int32_t hidden_size; /* D */
} em_dispatch;

/* output[s] = down (activation(up slots[s])) for count slots from first on: one expert's, with its biases. */
typedef struct em_slot_ffn {
    const float *slots;        /* (S, D) */
    int64_t first;
    int64_t count;
    em_matrix up;              /* (F, D) */
    em_matrix down;            /* (D, F) */
    float *output;             /* (S, D) */
    em_activation activation;
    em_ffn_biases biases;      /* all zeros if there are none */
    int32_t slot_count;        /* S */
    int32_t hidden_size;       /* D */
    int32_t intermediate_size; /* F */
} em_slot_ffn;

/* output[t] = sum over s of softmax over s (logits[t, s]) * values[s]: each row is a mean over all slots. */
typedef struct em_collect {
    const float *logits; /* (T, S) */
    const float *values; /* (S, D) */
    float *output;       /* (T, D) */
    int32_t slot_count;  /* S */
    int32_t hidden_size; /* D */
} em_collect;

/* X(kind, name) for each operation, in the order of em_kind. */
#define EM_OPERATIONS(X) \
    X(EMBED, embed) \
    X(RMS_NORM, rms_norm) \
    X(LINEAR, linear) \
    X(ROPE, rope) \
    X(STORE_KV, store_kv) \
    X(ATTENTION, attention) \
    X(SHORT_CONV, short_conv) \
    X(ROUTE, route) \
    X(GATED_FFN, gated_ffn) \
    X(FETCH, fetch) \
    X(PREFETCH, prefetch) \
    X(EXPERTS, experts) \
    X(COMBINE, combine) \
    X(MIX, mix) \
    X(CLIP, clip) \
    X(GATE, gate) \
    X(LAYER_NORM, layer_norm) \
    X(SOFT_CAP, soft_cap) \
    X(DELTA_RULE, delta_rule) \
    X(HEAD_LINEAR, head_linear) \
    X(STORE_LATENT, store_latent) \
    X(PLAIN_FFN, plain_ffn) \
    X(SELECTIVE_SCAN, selective_scan) \
    X(SCALE_BY_POSITION, scale_by_position) \
    X(CAPACITY, capacity) \
    X(CHANNEL_SCAN, channel_scan) \
    X(READ_STREAMS, read_streams) \
    X(WRITE_STREAMS, write_streams) \
    X(GATE_BY_AGREEMENT, gate_by_agreement) \
    X(STORE_BLOCK_KEYS, store_block_keys) \
    X(COLLAPSE_STREAMS, collapse_streams) \
    X(JOIN_STREAMS, join_streams) \
    X(COMPRESS, compress) \
    X(COMPRESSED_ATTENTION, compressed_attention) \
    X(TABLE_ROUTE, table_route) \
    X(BALANCE_STREAMS, balance_streams) \
    X(CHOOSE_BLOCKS, choose_blocks) \
    X(RETRIEVE_BY_KEYS, retrieve_by_keys) \
    X(NEURONS, neurons) \
    X(TREE_FFN, tree_ffn) \
    X(LEVEL_ROUTE, level_route) \
    X(LEAST_WEIGHT, least_weight) \
    X(ENTMAX, entmax) \
    X(BATCH_NORM, batch_norm) \
    X(PAIR_PRODUCTS, pair_products) \
    X(SLOT_LOGITS, slot_logits) \
    X(DISPATCH, dispatch) \
    X(SLOT_FFN, slot_ffn) \
    X(COLLECT, collect)

/* STRUCT(type) for each struct of the interface, and FIELD(type, field) for each of its fields. */
#define EM_LAYOUT(STRUCT, FIELD) \
    STRUCT(em_matrix) FIELD(em_matrix, data) FIELD(em_matrix, format) FIELD(em_matrix, rows) \
        FIELD(em_matrix, columns) \
    STRUCT(em_cache) FIELD(em_cache, elements) FIELD(em_cache, scales) FIELD(em_cache, format) \
    STRUCT(em_embed) FIELD(em_embed, ids) FIELD(em_embed, matrix) FIELD(em_embed, scale) \
        FIELD(em_embed, output) FIELD(em_embed, copies) FIELD(em_embed, vocab_size) \
        FIELD(em_embed, hidden_size) \
    STRUCT(em_rms_norm) FIELD(em_rms_norm, input) FIELD(em_rms_norm, weight) FIELD(em_rms_norm, epsilon) \
        FIELD(em_rms_norm, output) FIELD(em_rms_norm, heads) FIELD(em_rms_norm, gate) \
        FIELD(em_rms_norm, own_weights) FIELD(em_rms_norm, head_dim) \
    STRUCT(em_linear_part) FIELD(em_linear_part, matrix) FIELD(em_linear_part, bias) \
        FIELD(em_linear_part, output) FIELD(em_linear_part, rows) \
    STRUCT(em_linear) FIELD(em_linear, input) FIELD(em_linear, parts) FIELD(em_linear, parts_count) \
        FIELD(em_linear, scale) FIELD(em_linear, accumulate) FIELD(em_linear, columns) \
    STRUCT(em_rope) FIELD(em_rope, values) FIELD(em_rope, heads) FIELD(em_rope, positions) \
        FIELD(em_rope, cosine) FIELD(em_rope, sine) FIELD(em_rope, neighbours) FIELD(em_rope, last) \
        FIELD(em_rope, back) FIELD(em_rope, head_dim) FIELD(em_rope, context) FIELD(em_rope, rotated) \
    STRUCT(em_store_kv) FIELD(em_store_kv, keys) FIELD(em_store_kv, values) FIELD(em_store_kv, positions) \
        FIELD(em_store_kv, sequences) FIELD(em_store_kv, pages) FIELD(em_store_kv, key_cache) \
        FIELD(em_store_kv, value_cache) FIELD(em_store_kv, sequence_count) FIELD(em_store_kv, table_pages) \
        FIELD(em_store_kv, page_count) FIELD(em_store_kv, kv_heads) FIELD(em_store_kv, head_dim) \
        FIELD(em_store_kv, value_dim) \
    STRUCT(em_distance_bias) FIELD(em_distance_bias, table) FIELD(em_distance_bias, bucket_of) \
        FIELD(em_distance_bias, entries) FIELD(em_distance_bias, distances) \
    STRUCT(em_attention) FIELD(em_attention, query) FIELD(em_attention, positions) \
        FIELD(em_attention, sequences) FIELD(em_attention, pages) FIELD(em_attention, key_cache) \
        FIELD(em_attention, value_cache) FIELD(em_attention, scale) FIELD(em_attention, output) \
        FIELD(em_attention, window) FIELD(em_attention, sinks) FIELD(em_attention, chunked) \
        FIELD(em_attention, cap) FIELD(em_attention, lengths) FIELD(em_attention, bias) \
        FIELD(em_attention, chosen) FIELD(em_attention, page_blocks) FIELD(em_attention, factors) \
        FIELD(em_attention, sequence_count) FIELD(em_attention, table_pages) FIELD(em_attention, page_count) \
        FIELD(em_attention, kv_heads) FIELD(em_attention, head_dim) FIELD(em_attention, heads) \
        FIELD(em_attention, value_dim) FIELD(em_attention, context) \
    STRUCT(em_short_conv) FIELD(em_short_conv, input) FIELD(em_short_conv, taps) FIELD(em_short_conv, bias) \
        FIELD(em_short_conv, positions) FIELD(em_short_conv, sequences) FIELD(em_short_conv, inputs) \
        FIELD(em_short_conv, output) FIELD(em_short_conv, parts) FIELD(em_short_conv, dilation) \
        FIELD(em_short_conv, hidden_size) FIELD(em_short_conv, length) FIELD(em_short_conv, sequence_count) \
        FIELD(em_short_conv, ring) \
    STRUCT(em_route) FIELD(em_route, logits) FIELD(em_route, renormalise) FIELD(em_route, experts) \
        FIELD(em_route, weights) FIELD(em_route, slots) FIELD(em_route, bonus) FIELD(em_route, score) \
        FIELD(em_route, choice_bias) FIELD(em_route, groups) FIELD(em_route, kept_groups) \
        FIELD(em_route, epsilon) FIELD(em_route, scale) FIELD(em_route, least_sum) FIELD(em_route, choose_by) \
        FIELD(em_route, expert_scales) FIELD(em_route, group_best) FIELD(em_route, jitter) \
        FIELD(em_route, passing) FIELD(em_route, num_experts) FIELD(em_route, top_k) FIELD(em_route, resident) \
    STRUCT(em_activation) FIELD(em_activation, function) FIELD(em_activation, alpha) \
        FIELD(em_activation, limit) FIELD(em_activation, offset) FIELD(em_activation, gated) \
    STRUCT(em_ffn_biases) FIELD(em_ffn_biases, gate) FIELD(em_ffn_biases, up) FIELD(em_ffn_biases, down) \
    STRUCT(em_unlike_matrices) FIELD(em_unlike_matrices, gate) FIELD(em_unlike_matrices, up) \
    STRUCT(em_gated_ffn) FIELD(em_gated_ffn, input) FIELD(em_gated_ffn, gate_up) FIELD(em_gated_ffn, down) \
        FIELD(em_gated_ffn, output) FIELD(em_gated_ffn, activation) FIELD(em_gated_ffn, biases) \
        FIELD(em_gated_ffn, apart) FIELD(em_gated_ffn, hidden_size) FIELD(em_gated_ffn, intermediate_size) \
    STRUCT(em_paged) FIELD(em_paged, pager) FIELD(em_paged, layer) \
    STRUCT(em_fetch) FIELD(em_fetch, experts) FIELD(em_fetch, weights) FIELD(em_fetch, drop_cold) \
        FIELD(em_fetch, paged) FIELD(em_fetch, from_base) FIELD(em_fetch, top_k) \
    STRUCT(em_prefetch) FIELD(em_prefetch, experts) FIELD(em_prefetch, paged) FIELD(em_prefetch, top_k) \
    STRUCT(em_expert_layout) FIELD(em_expert_layout, hidden_size) FIELD(em_expert_layout, intermediate_size) \
        FIELD(em_expert_layout, gate_format) FIELD(em_expert_layout, up_format) \
        FIELD(em_expert_layout, down_format) FIELD(em_expert_layout, down_offset) \
        FIELD(em_expert_layout, biases_offset) FIELD(em_expert_layout, gated) \
        FIELD(em_expert_layout, up_offset) \
    STRUCT(em_expert_bases) FIELD(em_expert_bases, first) FIELD(em_expert_bases, down) \
        FIELD(em_expert_bases, first_rows) FIELD(em_expert_bases, down_rows) \
        FIELD(em_expert_bases, intermediate_size) \
    STRUCT(em_experts) FIELD(em_experts, input) FIELD(em_experts, experts) FIELD(em_experts, slots) \
        FIELD(em_experts, arena) FIELD(em_experts, layouts) FIELD(em_experts, layouts_count) \
        FIELD(em_experts, layout_of) FIELD(em_experts, output) FIELD(em_experts, paged) \
        FIELD(em_experts, activation) FIELD(em_experts, bases) FIELD(em_experts, hidden_size) \
        FIELD(em_experts, top_k) FIELD(em_experts, num_experts) FIELD(em_experts, slot_count) \
        FIELD(em_experts, slot_bytes) \
    STRUCT(em_combine) FIELD(em_combine, output) FIELD(em_combine, scale) FIELD(em_combine, routed) \
        FIELD(em_combine, weights) FIELD(em_combine, shared) FIELD(em_combine, shared_gate) \
        FIELD(em_combine, accumulate) FIELD(em_combine, hidden_size) FIELD(em_combine, top_k) \
    STRUCT(em_mix) FIELD(em_mix, base) FIELD(em_mix, result) FIELD(em_mix, scale) FIELD(em_mix, keep) \
        FIELD(em_mix, share) FIELD(em_mix, shift) FIELD(em_mix, output) FIELD(em_mix, factor) \
        FIELD(em_mix, hidden_size) \
    STRUCT(em_clip) FIELD(em_clip, values) FIELD(em_clip, limit) FIELD(em_clip, columns) \
    STRUCT(em_gate) FIELD(em_gate, gate) FIELD(em_gate, values) FIELD(em_gate, gating) FIELD(em_gate, runs) \
        FIELD(em_gate, width) \
    STRUCT(em_layer_norm) FIELD(em_layer_norm, input) FIELD(em_layer_norm, weight) \
        FIELD(em_layer_norm, epsilon) FIELD(em_layer_norm, output) FIELD(em_layer_norm, bias) \
        FIELD(em_layer_norm, hidden_size) \
    STRUCT(em_soft_cap) FIELD(em_soft_cap, values) FIELD(em_soft_cap, limit) FIELD(em_soft_cap, columns) \
    STRUCT(em_delta_rule) FIELD(em_delta_rule, mixed) FIELD(em_delta_rule, strength) \
        FIELD(em_delta_rule, decay_input) FIELD(em_delta_rule, decay_bias) FIELD(em_delta_rule, rate) \
        FIELD(em_delta_rule, epsilon) FIELD(em_delta_rule, key_heads) FIELD(em_delta_rule, positions) \
        FIELD(em_delta_rule, sequences) FIELD(em_delta_rule, states) FIELD(em_delta_rule, output) \
        FIELD(em_delta_rule, keys) FIELD(em_delta_rule, values) FIELD(em_delta_rule, lower_bound) \
        FIELD(em_delta_rule, in_turn) FIELD(em_delta_rule, columns) FIELD(em_delta_rule, heads) \
        FIELD(em_delta_rule, decays) FIELD(em_delta_rule, value_dim) FIELD(em_delta_rule, sequence_count) \
        FIELD(em_delta_rule, head_dim) \
    STRUCT(em_head_linear) FIELD(em_head_linear, input) FIELD(em_head_linear, matrix) \
        FIELD(em_head_linear, passed) FIELD(em_head_linear, heads) FIELD(em_head_linear, output) \
        FIELD(em_head_linear, columns) FIELD(em_head_linear, rows) FIELD(em_head_linear, rotated) \
        FIELD(em_head_linear, head_dim) \
    STRUCT(em_store_latent) FIELD(em_store_latent, latent) FIELD(em_store_latent, rotary) \
        FIELD(em_store_latent, positions) FIELD(em_store_latent, sequences) FIELD(em_store_latent, pages) \
        FIELD(em_store_latent, latent_cache) FIELD(em_store_latent, value_dim) FIELD(em_store_latent, rotated) \
        FIELD(em_store_latent, sequence_count) FIELD(em_store_latent, table_pages) \
        FIELD(em_store_latent, page_count) FIELD(em_store_latent, head_dim) \
    STRUCT(em_plain_ffn) FIELD(em_plain_ffn, input) FIELD(em_plain_ffn, up) FIELD(em_plain_ffn, down) \
        FIELD(em_plain_ffn, output) FIELD(em_plain_ffn, activation) FIELD(em_plain_ffn, biases) \
        FIELD(em_plain_ffn, hidden_size) FIELD(em_plain_ffn, intermediate_size) \
    STRUCT(em_selective_scan) FIELD(em_selective_scan, mixed) FIELD(em_selective_scan, step) \
        FIELD(em_selective_scan, step_bias) FIELD(em_selective_scan, rate) FIELD(em_selective_scan, skip) \
        FIELD(em_selective_scan, groups) FIELD(em_selective_scan, positions) \
        FIELD(em_selective_scan, sequences) FIELD(em_selective_scan, states) FIELD(em_selective_scan, output) \
        FIELD(em_selective_scan, columns) FIELD(em_selective_scan, heads) FIELD(em_selective_scan, value_dim) \
        FIELD(em_selective_scan, sequence_count) FIELD(em_selective_scan, head_dim) \
    STRUCT(em_scale_by_position) FIELD(em_scale_by_position, values) FIELD(em_scale_by_position, positions) \
        FIELD(em_scale_by_position, factors) FIELD(em_scale_by_position, columns) \
        FIELD(em_scale_by_position, context) \
    STRUCT(em_capacity) FIELD(em_capacity, experts) FIELD(em_capacity, weights) \
        FIELD(em_capacity, num_experts) FIELD(em_capacity, capacity) FIELD(em_capacity, share) \
        FIELD(em_capacity, by_rank) FIELD(em_capacity, top_k) \
    STRUCT(em_channel_scan) FIELD(em_channel_scan, input) FIELD(em_channel_scan, step) \
        FIELD(em_channel_scan, keys) FIELD(em_channel_scan, queries) FIELD(em_channel_scan, rate) \
        FIELD(em_channel_scan, skip) FIELD(em_channel_scan, positions) FIELD(em_channel_scan, sequences) \
        FIELD(em_channel_scan, states) FIELD(em_channel_scan, output) FIELD(em_channel_scan, channels) \
        FIELD(em_channel_scan, head_dim) FIELD(em_channel_scan, sequence_count) \
    STRUCT(em_read_streams) FIELD(em_read_streams, streams) FIELD(em_read_streams, shares) \
        FIELD(em_read_streams, output) FIELD(em_read_streams, hidden_size) FIELD(em_read_streams, count) \
    STRUCT(em_write_streams) FIELD(em_write_streams, shares) FIELD(em_write_streams, result) \
        FIELD(em_write_streams, streams) FIELD(em_write_streams, count) FIELD(em_write_streams, hidden_size) \
    STRUCT(em_gate_by_agreement) FIELD(em_gate_by_agreement, key) FIELD(em_gate_by_agreement, query) \
        FIELD(em_gate_by_agreement, value) FIELD(em_gate_by_agreement, least) \
        FIELD(em_gate_by_agreement, output) FIELD(em_gate_by_agreement, hidden_size) \
        FIELD(em_gate_by_agreement, count) \
    STRUCT(em_store_block_keys) FIELD(em_store_block_keys, keys) FIELD(em_store_block_keys, norm) \
        FIELD(em_store_block_keys, epsilon) FIELD(em_store_block_keys, cosine) \
        FIELD(em_store_block_keys, sine) FIELD(em_store_block_keys, rate) \
        FIELD(em_store_block_keys, positions) FIELD(em_store_block_keys, sequences) \
        FIELD(em_store_block_keys, pages) FIELD(em_store_block_keys, inputs) \
        FIELD(em_store_block_keys, block_keys) FIELD(em_store_block_keys, head_dim) \
        FIELD(em_store_block_keys, context) FIELD(em_store_block_keys, rotated) \
        FIELD(em_store_block_keys, sequence_count) FIELD(em_store_block_keys, table_pages) \
        FIELD(em_store_block_keys, ring) FIELD(em_store_block_keys, page_count) \
        FIELD(em_store_block_keys, block_rows) \
    STRUCT(em_collapse_streams) FIELD(em_collapse_streams, streams) FIELD(em_collapse_streams, numbers) \
        FIELD(em_collapse_streams, base) FIELD(em_collapse_streams, scale) FIELD(em_collapse_streams, epsilon) \
        FIELD(em_collapse_streams, count) FIELD(em_collapse_streams, output) \
        FIELD(em_collapse_streams, hidden_size) \
    STRUCT(em_join_streams) FIELD(em_join_streams, result) FIELD(em_join_streams, joining) \
        FIELD(em_join_streams, count) FIELD(em_join_streams, streams) FIELD(em_join_streams, hidden_size) \
        FIELD(em_join_streams, J) \
    STRUCT(em_compress) FIELD(em_compress, values) FIELD(em_compress, gates) FIELD(em_compress, bias) \
        FIELD(em_compress, norm) FIELD(em_compress, epsilon) FIELD(em_compress, cosine) \
        FIELD(em_compress, sine) FIELD(em_compress, rate) FIELD(em_compress, parts) \
        FIELD(em_compress, positions) FIELD(em_compress, sequences) FIELD(em_compress, pages) \
        FIELD(em_compress, inputs) FIELD(em_compress, compressed) FIELD(em_compress, head_dim) \
        FIELD(em_compress, context) FIELD(em_compress, rotated) FIELD(em_compress, sequence_count) \
        FIELD(em_compress, table_pages) FIELD(em_compress, ring) FIELD(em_compress, page_count) \
        FIELD(em_compress, block_rows) \
    STRUCT(em_compressed_attention) FIELD(em_compressed_attention, query) \
        FIELD(em_compressed_attention, positions) FIELD(em_compressed_attention, sequences) \
        FIELD(em_compressed_attention, window_pages) FIELD(em_compressed_attention, window_cache) \
        FIELD(em_compressed_attention, pages) FIELD(em_compressed_attention, compressed) \
        FIELD(em_compressed_attention, rate) FIELD(em_compressed_attention, scale) \
        FIELD(em_compressed_attention, window) FIELD(em_compressed_attention, output) \
        FIELD(em_compressed_attention, sinks) FIELD(em_compressed_attention, chosen) \
        FIELD(em_compressed_attention, sequence_count) FIELD(em_compressed_attention, table_pages) \
        FIELD(em_compressed_attention, page_count) FIELD(em_compressed_attention, head_dim) \
        FIELD(em_compressed_attention, heads) FIELD(em_compressed_attention, compressed_pages) \
        FIELD(em_compressed_attention, block_rows) \
    STRUCT(em_table_route) FIELD(em_table_route, ids) FIELD(em_table_route, table) \
        FIELD(em_table_route, logits) FIELD(em_table_route, num_experts) FIELD(em_table_route, epsilon) \
        FIELD(em_table_route, scale) FIELD(em_table_route, experts) FIELD(em_table_route, weights) \
        FIELD(em_table_route, top_k) FIELD(em_table_route, vocab_size) \
    STRUCT(em_balance_streams) FIELD(em_balance_streams, numbers) FIELD(em_balance_streams, base) \
        FIELD(em_balance_streams, scales) FIELD(em_balance_streams, epsilon) \
        FIELD(em_balance_streams, iterations) FIELD(em_balance_streams, count) FIELD(em_balance_streams, J) \
    STRUCT(em_choose_blocks) FIELD(em_choose_blocks, query) FIELD(em_choose_blocks, positions) \
        FIELD(em_choose_blocks, sequences) FIELD(em_choose_blocks, pages) FIELD(em_choose_blocks, keys) \
        FIELD(em_choose_blocks, rate) FIELD(em_choose_blocks, scale) FIELD(em_choose_blocks, most) \
        FIELD(em_choose_blocks, scores) FIELD(em_choose_blocks, chosen) FIELD(em_choose_blocks, shares) \
        FIELD(em_choose_blocks, own) FIELD(em_choose_blocks, sequence_count) \
        FIELD(em_choose_blocks, table_pages) FIELD(em_choose_blocks, page_count) \
        FIELD(em_choose_blocks, block_rows) FIELD(em_choose_blocks, head_dim) FIELD(em_choose_blocks, heads) \
        FIELD(em_choose_blocks, at_once) \
    STRUCT(em_retrieve_by_keys) FIELD(em_retrieve_by_keys, first) FIELD(em_retrieve_by_keys, second) \
        FIELD(em_retrieve_by_keys, heads) FIELD(em_retrieve_by_keys, experts) \
        FIELD(em_retrieve_by_keys, weights) FIELD(em_retrieve_by_keys, scoring) \
        FIELD(em_retrieve_by_keys, keys) FIELD(em_retrieve_by_keys, retrieved) \
    STRUCT(em_neuron_layout) FIELD(em_neuron_layout, element) FIELD(em_neuron_layout, neuron_bytes) \
        FIELD(em_neuron_layout, neurons_per_page) \
    STRUCT(em_row_paging) FIELD(em_row_paging, pager) \
    STRUCT(em_neurons) FIELD(em_neurons, input) FIELD(em_neurons, experts) FIELD(em_neurons, weights) \
        FIELD(em_neurons, arena) FIELD(em_neurons, slots) FIELD(em_neurons, layout) FIELD(em_neurons, first) \
        FIELD(em_neurons, count) FIELD(em_neurons, activation) FIELD(em_neurons, output) \
        FIELD(em_neurons, scale) FIELD(em_neurons, accumulate) FIELD(em_neurons, paged) \
        FIELD(em_neurons, hidden_size) FIELD(em_neurons, top_k) FIELD(em_neurons, slot_count) \
        FIELD(em_neurons, slot_bytes) FIELD(em_neurons, page_count) \
    STRUCT(em_tree_ffn) FIELD(em_tree_ffn, input) FIELD(em_tree_ffn, nodes) FIELD(em_tree_ffn, node_bias) \
        FIELD(em_tree_ffn, leaf_in) FIELD(em_tree_ffn, leaf_bias) FIELD(em_tree_ffn, out) \
        FIELD(em_tree_ffn, output_bias) FIELD(em_tree_ffn, trees) FIELD(em_tree_ffn, depth) \
        FIELD(em_tree_ffn, leaf_width) FIELD(em_tree_ffn, output) FIELD(em_tree_ffn, activation) \
        FIELD(em_tree_ffn, hidden_size) FIELD(em_tree_ffn, node_panels) FIELD(em_tree_ffn, node_count) \
        FIELD(em_tree_ffn, in_panels) FIELD(em_tree_ffn, leaf_neurons) FIELD(em_tree_ffn, out_panels) \
        FIELD(em_tree_ffn, output_numbers) \
    STRUCT(em_level) FIELD(em_level, size) FIELD(em_level, top_k) \
    STRUCT(em_level_route) FIELD(em_level_route, logits) FIELD(em_level_route, levels) \
        FIELD(em_level_route, levels_count) FIELD(em_level_route, renormalise) FIELD(em_level_route, scale) \
        FIELD(em_level_route, experts) FIELD(em_level_route, weights) FIELD(em_level_route, numbers) \
        FIELD(em_level_route, top_k) \
    STRUCT(em_least_weight) FIELD(em_least_weight, weights) FIELD(em_least_weight, least) \
        FIELD(em_least_weight, top_k) \
    STRUCT(em_entmax) FIELD(em_entmax, values) FIELD(em_entmax, num_experts) \
    STRUCT(em_batch_norm) FIELD(em_batch_norm, values) FIELD(em_batch_norm, mean) \
        FIELD(em_batch_norm, variance) FIELD(em_batch_norm, epsilon) FIELD(em_batch_norm, columns) \
    STRUCT(em_pair_products) FIELD(em_pair_products, left) FIELD(em_pair_products, right) \
        FIELD(em_pair_products, count) FIELD(em_pair_products, inner) FIELD(em_pair_products, output) \
        FIELD(em_pair_products, height) FIELD(em_pair_products, width) \
    STRUCT(em_slot_logits) FIELD(em_slot_logits, input) FIELD(em_slot_logits, slots) \
        FIELD(em_slot_logits, gain) FIELD(em_slot_logits, scale) FIELD(em_slot_logits, factor) \
        FIELD(em_slot_logits, logits) FIELD(em_slot_logits, unit_slots) FIELD(em_slot_logits, unit_input) \
        FIELD(em_slot_logits, hidden_size) FIELD(em_slot_logits, slot_count) \
    STRUCT(em_dispatch) FIELD(em_dispatch, logits) FIELD(em_dispatch, input) FIELD(em_dispatch, slots) \
        FIELD(em_dispatch, slot_count) FIELD(em_dispatch, hidden_size) \
    STRUCT(em_slot_ffn) FIELD(em_slot_ffn, slots) FIELD(em_slot_ffn, first) FIELD(em_slot_ffn, count) \
        FIELD(em_slot_ffn, up) FIELD(em_slot_ffn, down) FIELD(em_slot_ffn, output) \
        FIELD(em_slot_ffn, activation) FIELD(em_slot_ffn, biases) FIELD(em_slot_ffn, slot_count) \
        FIELD(em_slot_ffn, hidden_size) FIELD(em_slot_ffn, intermediate_size) \
    STRUCT(em_collect) FIELD(em_collect, logits) FIELD(em_collect, values) FIELD(em_collect, output) \
        FIELD(em_collect, slot_count) FIELD(em_collect, hidden_size) \
    STRUCT(em_operation) FIELD(em_operation, kind) FIELD(em_operation, reserved) FIELD(em_operation, as) \
    STRUCT(em_scratch) FIELD(em_scratch, data) FIELD(em_scratch, bytes) \
    STRUCT(em_program_times) FIELD(em_program_times, operations) FIELD(em_program_times, elapsed_ns) \
    STRUCT(em_program) FIELD(em_program, kernels) FIELD(em_program, pool) FIELD(em_program, operations) \
        FIELD(em_program, scratch) FIELD(em_program, times) FIELD(em_program, scratch_bytes) \
        FIELD(em_program, operation_count) FIELD(em_program, tokens_max) FIELD(em_program, failed_operation) \
        FIELD(em_program, reserved) \
    STRUCT(em_part) FIELD(em_part, bytes) FIELD(em_part, place) FIELD(em_part, panel_stride) \
        FIELD(em_part, landing) FIELD(em_part, type) FIELD(em_part, format) FIELD(em_part, rows) \
        FIELD(em_part, columns) FIELD(em_part, reserved) \
    STRUCT(em_place) FIELD(em_place, offset) FIELD(em_place, modified_ns) FIELD(em_place, descriptor) \
        FIELD(em_place, scale) \
    STRUCT(em_read) FIELD(em_read, offset) FIELD(em_read, length) FIELD(em_read, destination) \
        FIELD(em_read, crc32c) FIELD(em_read, descriptor) FIELD(em_read, part_count) FIELD(em_read, parts) \
        FIELD(em_read, places) \
    STRUCT(em_read_counters) FIELD(em_read_counters, bytes_read) FIELD(em_read_counters, read_ns) \
        FIELD(em_read_counters, queue_wait_ns) FIELD(em_read_counters, reads) FIELD(em_read_counters, failed) \
        FIELD(em_read_counters, cancelled) \
    STRUCT(em_source) FIELD(em_source, context) FIELD(em_source, submit) FIELD(em_source, wait) \
        FIELD(em_source, wait_any) FIELD(em_source, done) FIELD(em_source, promote) FIELD(em_source, cancel) \
        FIELD(em_source, release) \
    STRUCT(em_policy_settings) FIELD(em_policy_settings, rate) FIELD(em_policy_settings, weight) \
        FIELD(em_policy_settings, kind) FIELD(em_policy_settings, reserved) \
    STRUCT(em_trellis) FIELD(em_trellis, step_bits) FIELD(em_trellis, step_weights) FIELD(em_trellis, lag) \
        FIELD(em_trellis, level_count) FIELD(em_trellis, levels) FIELD(em_trellis, numbers) \
        FIELD(em_trellis, dearest) \
    STRUCT(em_trellis_fed) FIELD(em_trellis_fed, targets) FIELD(em_trellis_fed, inverses) \
        FIELD(em_trellis_fed, gains) FIELD(em_trellis_fed, steps) FIELD(em_trellis_fed, importance) \
        FIELD(em_trellis_fed, factors) FIELD(em_trellis_fed, rates) FIELD(em_trellis_fed, target_floats) \
        FIELD(em_trellis_fed, rate_floats) FIELD(em_trellis_fed, rows) FIELD(em_trellis_fed, columns) \
        FIELD(em_trellis_fed, kept) FIELD(em_trellis_fed, ahead) \
    STRUCT(em_record) FIELD(em_record, offset) FIELD(em_record, length) FIELD(em_record, crc32c) \
        FIELD(em_record, descriptor) FIELD(em_record, part_count) FIELD(em_record, parts) \
        FIELD(em_record, places) \
    STRUCT(em_pager_counters) FIELD(em_pager_counters, hits) FIELD(em_pager_counters, misses) \
        FIELD(em_pager_counters, late_prefetches) FIELD(em_pager_counters, demand_bytes) \
        FIELD(em_pager_counters, prefetched_bytes) FIELD(em_pager_counters, prefetched_reads) \
        FIELD(em_pager_counters, useful_prefetches) FIELD(em_pager_counters, guessable_uses) \
        FIELD(em_pager_counters, guessed_uses) FIELD(em_pager_counters, warm_bytes) \
        FIELD(em_pager_counters, dropped) FIELD(em_pager_counters, from_base) \
    STRUCT(em_read_failure) FIELD(em_read_failure, detail) FIELD(em_read_failure, status) \
        FIELD(em_read_failure, layer) FIELD(em_read_failure, expert) FIELD(em_read_failure, reserved) \
    STRUCT(em_pager_setup) FIELD(em_pager_setup, source) FIELD(em_pager_setup, records) \
        FIELD(em_pager_setup, arena) FIELD(em_pager_setup, slots) FIELD(em_pager_setup, tickets) \
        FIELD(em_pager_setup, counters) FIELD(em_pager_setup, failure) FIELD(em_pager_setup, policy) \
        FIELD(em_pager_setup, slot_bytes) FIELD(em_pager_setup, timeout_us) FIELD(em_pager_setup, slot_count) \
        FIELD(em_pager_setup, layers) FIELD(em_pager_setup, experts) FIELD(em_pager_setup, reserved) \
    STRUCT(em_row_pager_setup) FIELD(em_row_pager_setup, source) FIELD(em_row_pager_setup, arena) \
        FIELD(em_row_pager_setup, slots) FIELD(em_row_pager_setup, crc32c) FIELD(em_row_pager_setup, counters) \
        FIELD(em_row_pager_setup, failure) FIELD(em_row_pager_setup, offset) \
        FIELD(em_row_pager_setup, row_bytes) FIELD(em_row_pager_setup, timeout_us) \
        FIELD(em_row_pager_setup, descriptor) FIELD(em_row_pager_setup, row_count) \
        FIELD(em_row_pager_setup, rows_per_page) FIELD(em_row_pager_setup, slot_count)

#endif
