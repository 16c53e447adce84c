/* Feed-forward layers of one operation, which are computed together: what GatedFfn, PlainFfn and Experts share.
 *
 * A pair is one activation row that goes through one FFN. Pairs lie FFN by FFN, so that each one's weights are read
 * once per run for all its rows. */
#ifndef EDGEMOE_FFN_H
#define EDGEMOE_FFN_H

#include "../operations.h"

/* The matrices of an FFN, or a plane of them: its first panels in them are not always theirs. */
typedef struct ffn_plane {
    em_matrix first;    /* gate and up, panel by panel in turn; gate where up is apart; up where there is no gate */
    em_matrix up_apart; /* all zeros if up is not apart from gate */
    em_matrix down;
    int32_t first_panel, down_panel; /* where the FFN begins in `first` and in `down` */
} ffn_plane;

/* FFNs of a run have the same widths; each has formats of its own. Where there is a second plane, all zeros else, the
 * products with both are summed; neither has up apart then. */
typedef struct ffn {
    ffn_plane plane, second;
    em_ffn_biases biases; /* NULL if there are none */
    int32_t first_pair;   /* its number */
    int32_t count;        /* of pairs */
} ffn;

/* The widths of all FFNs of an operation, and what their products take, whichever of them run. */
typedef struct ffn_sizes {
    int32_t hidden_size;
    int32_t intermediate_size;
    uint8_t quantised_input;  /* some gate and up are quantised */
    uint8_t quantised_hidden; /* some down is quantised */
    uint8_t float_hidden;     /* some down is not */
} ffn_sizes;

/* The buffers that lie in scratch. */
typedef struct ffn_memory {
    ffn *ffns;
    int32_t *input_rows;  /* input row of each pair */
    int32_t *output_rows; /* output row of each pair */
    int32_t *starts;      /* first pair of each expert, and the end of the last */
    uint8_t *states;      /* state of each expert, in experts.c */
    uint8_t *wanted;      /* whether any FFN of this run reads the input row */
    em_quantised input;
    em_quantised hidden;
    float *float_hidden;
} ffn_memory;

/* Adds what products with weights of these formats take. */
void em_ffn_add_formats(ffn_sizes *sizes, int32_t gate_format, int32_t up_format, int32_t down_format);

/* Lays out the buffers of a run with room for `pairs` pairs of `experts` FFNs. */
ffn_memory em_ffn_lay_out(em_layout *layout, ffn_sizes sizes, int32_t tokens, int32_t pairs, int32_t experts);

/* Quantises the wanted input rows, if the weights are quantised. */
void em_ffn_quantise_input(const em_run *run, ffn_sizes sizes, ffn_memory memory, const float *input);

/* Runs the FFNs of `memory` over `pairs` pairs; their rows must be filled in and their input quantised. */
void em_ffn_run(const em_run *run, ffn_sizes sizes, ffn_memory memory, em_activation activation, const float *input,
                float *output, int32_t ffn_count, int32_t pairs);

#endif
