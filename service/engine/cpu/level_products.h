/* Products with weights of whole numbers, for processors without tiles.

A checkpoint such as nano's has its weights as levels, -127 to 127, and a scale for each output. What is multiplied by
them is rounded to levels too, so that products and their sums are exact. Fine levels have up to 15 bits and a scale for
each row, and a register takes twice as many of them as of float32. Coarse ones, which linear layers take, are bytes
with a scale and a lowest value for each row, four times as many, where a processor multiplies bytes; else they are fine.

Levels [O, I] are laid out [O / PANEL][I / n][PANEL][n], so that one register holds n inputs of LANES outputs: two
fine ones, four bytes. */

#pragma once

#include <math.h>
#include <string.h>

#include "lanes.h"

#define HEAD 64
#define ROWS 100 /* that go through a layer together */
#define WEIGHT_LEVELS 127
#define MOST_LEVELS 32767
/* HEAD products of both fit into 31 bits. */
#define QUERY_LEVELS 8191
#define KEY_LEVELS 4095

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define COARSE_IN_A_WORD 4
#else
#define COARSE_IN_A_WORD 2
#endif
#define IS_COARSE_BYTE (COARSE_IN_A_WORD == 4)

#if LANES == 16
#define BLOCK 10 /* rows whose sums stay in registers */
INLINE Ints add_fine(Ints sums, Ints a, Ints b) {
  return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
}
INLINE Ints add_bytes(Ints sums, Ints signed_bytes, Ints bytes) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)bytes, (__m512i)signed_bytes);
}
#else
#define BLOCK 5
#if defined(__AVXVNNI__)
INLINE Ints add_fine(Ints sums, Ints a, Ints b) {
  return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
}
INLINE Ints add_bytes(Ints sums, Ints signed_bytes, Ints bytes) {
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)bytes, (__m256i)signed_bytes);
}
#else
INLINE Ints add_fine(Ints sums, Ints a, Ints b) { return sums + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#define add_bytes add_fine
#endif
#endif
#define PANEL (2 * LANES)

typedef struct {
  const void *levels;
  const float *scales, *bias; /* of the outputs; bias NULL: none */
  const float *sums;          /* of each output's weights; NULL unless coarse levels are multiplied by them */
  int32_t inputs, outputs;
} Matrix;

INLINE Floats absolute(Floats x) { return larger(x, -x); }
INLINE void store_levels(Floats x, int16_t *to) { *(Narrow *)to = __builtin_convertvector(nearest(x), Narrow); }

/* Most levels that inputs may have for their sums to fit. */
INLINE int levels_for(int inputs) {
  const int most = INT32_MAX / (WEIGHT_LEVELS * inputs);
  return most < MOST_LEVELS ? most : MOST_LEVELS;
}

/* Round a row to levels, `most` at most; returns their scale, times the factor. */
static float quantise(const float *x, int16_t *levels, int count, float factor, int most) {
  Floats largest = all(0.0f);
  for (int i = 0; i < count; i += LANES) largest = larger(largest, absolute(load(x + i)));
  const float peak = fmaxf(largest_of(largest), 1e-20f), to_levels = (float)most / peak;
  for (int i = 0; i < count; i += LANES) store_levels(load(x + i) * to_levels, levels + i);
  return peak * factor / (float)most;
}

/* Where a product's inputs are: those of row t at x + t * step, in `segments` pieces of so many words of 32 bits. Steps
   are in words, too. */
typedef struct {
  const void *x;
  const float *scales, *lows; /* of the rows; lows NULL: zeros */
  int step, words, segments, segment_step;
} Inputs;

INLINE Ints word_at(const char *x) {
  int32_t word;
  memcpy(&word, x, sizeof word);
  return word - (Ints){};
}

/* BLOCK rows and PANEL outputs. */
INLINE void product_block(const Matrix *matrix, int panel, const Inputs *inputs, int row, float *y, int y_step,
                          const int are_bytes) {
  Ints sums[BLOCK][2];
  for (int t = 0; t < BLOCK; t++) sums[t][0] = sums[t][1] = (Ints){};
  const size_t step = (size_t)inputs->step * 4;
  const char *weights = (const char *)matrix->levels + (size_t)panel * PANEL * matrix->inputs * (are_bytes ? 1 : 2);
  for (int s = 0; s < inputs->segments; s++) {
    const char *x = (const char *)inputs->x + row * step + (size_t)s * inputs->segment_step * 4;
    for (int k = 0; k < inputs->words; k++, weights += 4 * PANEL, x += 4) {
      const Ints a = *(const Ints *)weights, b = *(const Ints *)(weights + 4 * LANES);
#pragma GCC unroll 10
      for (int t = 0; t < BLOCK; t++) {
        const Ints word = word_at(x + t * step);
        sums[t][0] = are_bytes ? add_bytes(sums[t][0], a, word) : add_fine(sums[t][0], a, word);
        sums[t][1] = are_bytes ? add_bytes(sums[t][1], b, word) : add_fine(sums[t][1], b, word);
      }
    }
  }
  for (int half = 0; half < 2; half++) {
    const int o = panel * PANEL + half * LANES;
    const Floats scale = load(matrix->scales + o), bias = matrix->bias ? load(matrix->bias + o) : all(0.0f);
    for (int t = 0; t < BLOCK; t++) {
      Floats sum = __builtin_convertvector(sums[t][half], Floats) * (scale * inputs->scales[row + t]) + bias;
      if (inputs->lows) sum += load(matrix->sums + o) * inputs->lows[row + t];
      store(sum, y + (size_t)(row + t) * y_step + o);
    }
  }
}

/* All outputs of some rows, and of those that fill the last block, for which there must be room. */
static void product(const Matrix *matrix, const Inputs *inputs, int rows, float *y, int y_step) {
  for (int panel = 0; panel < matrix->outputs / PANEL; panel++)
    for (int row = 0; row < rows; row += BLOCK) product_block(matrix, panel, inputs, row, y, y_step, 0);
}

static void product_of_bytes(const Matrix *matrix, const Inputs *inputs, int rows, float *y, int y_step) {
  for (int panel = 0; panel < matrix->outputs / PANEL; panel++)
    for (int row = 0; row < rows; row += BLOCK) product_block(matrix, panel, inputs, row, y, y_step, 1);
}

/* Fine levels of rows, and a scale for each. */
typedef struct {
  int16_t *levels;
  float *scales;
} Rows;

/* Coarse ones; `lows` are what level 0 stands for. */
typedef struct {
  void *levels;
  float *scales, *lows;
} CoarseRows;

INLINE int padded(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }
INLINE int larger_of(int a, int b) { return a > b ? a : b; }
INLINE int smaller_of(int a, int b) { return a < b ? a : b; }

/* Bytes of a row of coarse levels. */
INLINE size_t coarse_bytes(int width) { return (size_t)width / COARSE_IN_A_WORD * 4; }
INLINE char *coarse_row(const CoarseRows *rows, int t, int width) {
  return (char *)rows->levels + t * coarse_bytes(width);
}

static void linear_of_fine(const Matrix *matrix, const Rows *rows, int count, float *y) {
  const Inputs inputs = {rows->levels, rows->scales, NULL, matrix->inputs / 2, matrix->inputs / 2, 1, 0};
  product(matrix, &inputs, count, y, matrix->outputs);
}

static void linear(const Matrix *matrix, const CoarseRows *rows, int count, float *y) {
  const int words = matrix->inputs / COARSE_IN_A_WORD;
  const Inputs inputs = {rows->levels, rows->scales, IS_COARSE_BYTE ? rows->lows : NULL, words, words, 1, 0};
  (IS_COARSE_BYTE ? product_of_bytes : product)(matrix, &inputs, count, y, matrix->outputs);
}

static void quantise_row(const float *x, int width, const CoarseRows *to, int t) {
#if IS_COARSE_BYTE
  Floats most = load(x), least = most;
  for (int i = LANES; i < width; i += LANES) most = larger(most, load(x + i)), least = smaller(least, load(x + i));
  const float low = -largest_of(-least), range = fmaxf(largest_of(most) - low, 1e-20f), to_levels = 255.0f / range;
  uint8_t *levels = (uint8_t *)coarse_row(to, t, width);
  for (int i = 0; i < width; i += LANES)
    *(Bytes *)(levels + i) = __builtin_convertvector(nearest((load(x + i) - low) * to_levels), Bytes);
  to->scales[t] = range / 255.0f;
  to->lows[t] = low;
#else
  to->scales[t] = quantise(x, (int16_t *)coarse_row(to, t, width), width, 1.0f, levels_for(width));
#endif
}

static void quantise_rows(const float *x, int count, int width, const CoarseRows *to) {
  for (int t = 0; t < count; t++) quantise_row(x + (size_t)t * width, width, to, t);
}

static void add(float *x, const float *y, int count) {
  for (int i = 0; i < count; i += LANES) store(load(x + i) + load(y + i), x + i);
}


/* Attention among `count` positions. Keys are laid out as the levels of a matrix with an output for each position,
   values as those of one with an input for each. */
typedef struct {
  int count;
  Rows queries, keys, values; /* by heads */
  float *scores, *biases;
  Rows shares;
} Attention;

INLINE int stored_positions(const Attention *in) { return padded(in->count, PANEL); }

static void put(const Attention *in, int head, int position, const float *query, const float *key, const float *value) {
  const int inputs = padded(in->count, 2);
  const size_t of_head = (size_t)head * stored_positions(in), row = of_head + position;
  int16_t *keys = in->keys.levels + (of_head + position / PANEL * PANEL) * HEAD + position % PANEL * 2;
  int16_t *values = in->values.levels + of_head * HEAD + (size_t)(position / 2) * PANEL * 2 + position % 2;
  int16_t levels[HEAD];
  in->queries.scales[row] = quantise(query, in->queries.levels + row * HEAD, HEAD, 1.0f, QUERY_LEVELS);
  in->keys.scales[row] = quantise(key, levels, HEAD, 0.125f, KEY_LEVELS);
  for (int d = 0; d < HEAD; d += 2) memcpy(keys + d * PANEL, levels + d, 2 * sizeof *levels);
  in->values.scales[row] = quantise(value, levels, HEAD, 1.0f, MOST_LEVELS);
  for (int d = 0; d < HEAD; d++) values[(size_t)(d / PANEL) * PANEL * inputs + d % PANEL * 2] = levels[d];
}

INLINE Rows queries_from(const Attention *in, int head, int first) {
  const size_t row = (size_t)head * stored_positions(in) + first;
  return (Rows){in->queries.levels + row * HEAD, in->queries.scales + row};
}

/* Scores of a block of queries, from the first one on, with the first `seen` positions. */
static void score(const Attention *in, int head, int first, int seen) {
  const int stored = stored_positions(in);
  const size_t row = (size_t)head * stored;
  for (int s = in->count; s < stored; s++) in->keys.scales[row + s] = in->values.scales[row + s] = 0.0f;
  const Matrix keys = {in->keys.levels + row * HEAD, in->keys.scales + row, NULL, NULL, HEAD, padded(seen, PANEL)};
  const Rows queries = queries_from(in, head, first);
  linear_of_fine(&keys, &queries, BLOCK, in->scores);
}

/* Scores of the block's query t, with the biases, to levels: each position's share times the scale of its value. A
   position is left out by a bias of LEFT_OUT, as all beyond `seen` must be, up to a multiple of PANEL. */
#define LEFT_OUT -1e30f
static void share(const Attention *in, int head, int t, int seen) {
  const int end = padded(seen, PANEL);
  const float *value_scales = in->values.scales + (size_t)head * stored_positions(in);
  float *scores = in->scores + (size_t)t * end;
  Floats largest = all(LEFT_OUT), total = all(0.0f), weighted = all(0.0f);
  for (int s = 0; s < end; s += LANES) {
    const Floats score = load(scores + s) + load(in->biases + s);
    largest = larger(largest, score);
    store(score, scores + s);
  }
  const float most = largest_of(largest);
  for (int s = 0; s < end; s += LANES) {
    const Floats weight = exponential(load(scores + s) - most), value = weight * load(value_scales + s);
    total += weight;
    weighted += value;
    store(value, scores + s);
  }
  const float sum = sum_of(weighted), to_levels = MOST_LEVELS / sum;
  int16_t *levels = in->shares.levels + (size_t)t * end;
  for (int s = 0; s < end; s += LANES) store_levels(load(scores + s) * to_levels, levels + s);
  in->shares.scales[t] = sum / (MOST_LEVELS * sum_of(total));
}

/* What the block's queries see of the first `seen` positions, [BLOCK, HEAD] in rows of `step`. */
static void see(const Attention *in, int head, int seen, float *y, int step) {
  float ones[HEAD];
  for (int d = 0; d < HEAD; d++) ones[d] = 1.0f;
  const int16_t *levels = in->values.levels + (size_t)head * stored_positions(in) * HEAD;
  const Matrix values = {levels, ones, NULL, NULL, padded(in->count, 2), HEAD};
  const Inputs shares = {
      in->shares.levels, in->shares.scales, NULL, padded(seen, PANEL) / 2, padded(seen, 2) / 2, 1, 0};
  product(&values, &shares, BLOCK, y, step);
}

/* Hands out parts of a piece of memory, or counts what they need. */
static void *take(uintptr_t *at, size_t bytes) {
  void *taken = (void *)*at;
  *at += (bytes + 127) / 64 * 64; /* with a register more, which a loop may read or write beyond its last */
  return taken;
}

static Rows take_rows(uintptr_t *at, size_t rows, size_t width) {
  int16_t *levels = take(at, rows * width * sizeof *levels);
  float *scales = take(at, rows * sizeof *scales);
  return (Rows){levels, scales};
}

static CoarseRows take_coarse(uintptr_t *at, size_t rows, size_t width) {
  void *levels = take(at, rows * coarse_bytes((int)width));
  float *scales = take(at, rows * sizeof *scales), *lows = take(at, rows * sizeof *lows);
  return (CoarseRows){levels, scales, lows};
}

static Attention take_attention(uintptr_t *at, int most, int heads) {
  const size_t stored = padded(most, PANEL);
  Attention taken = {.count = most};
  taken.queries = take_rows(at, stored * heads + BLOCK, HEAD); /* The last head's last block may reach beyond it. */
  taken.keys = take_rows(at, stored * heads, HEAD);
  taken.values = take_rows(at, stored * heads, HEAD);
  taken.scores = take(at, BLOCK * stored * sizeof *taken.scores);
  taken.biases = take(at, stored * sizeof *taken.biases);
  taken.shares = take_rows(at, BLOCK, stored);
  return taken;
}
