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
#define AHEAD 4096 /* Bytes that are fetched before they are used: the processor itself does not look beyond a page. */

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

/* Some rows, BLOCK at most, and PANEL outputs. */
INLINE void product_block(const Matrix *matrix, int panel, const Inputs *inputs, int row, const int rows, float *y,
                          int y_step, const int are_bytes) {
  Ints sums[BLOCK][2];
  for (int t = 0; t < rows; t++) sums[t][0] = sums[t][1] = (Ints){};
  const size_t step = (size_t)inputs->step * 4;
  const char *weights = (const char *)matrix->levels + (size_t)panel * PANEL * matrix->inputs * (are_bytes ? 1 : 2);
  for (int s = 0; s < inputs->segments; s++) {
    const char *x = (const char *)inputs->x + row * step + (size_t)s * inputs->segment_step * 4;
    for (int k = 0; k < inputs->words; k++, weights += 4 * PANEL, x += 4) {
      const Ints a = *(const Ints *)weights, b = *(const Ints *)(weights + 4 * LANES);
      for (int at = 0; at < 4 * PANEL; at += 64) _mm_prefetch(weights + AHEAD + at, _MM_HINT_T0);
#pragma GCC unroll 10
      for (int t = 0; t < rows; t++) {
        const Ints word = word_at(x + t * step);
        sums[t][0] = are_bytes ? add_bytes(sums[t][0], a, word) : add_fine(sums[t][0], a, word);
        sums[t][1] = are_bytes ? add_bytes(sums[t][1], b, word) : add_fine(sums[t][1], b, word);
      }
    }
  }
  for (int half = 0; half < 2; half++) {
    const int o = panel * PANEL + half * LANES;
    const Floats scale = load(matrix->scales + o), bias = matrix->bias ? load(matrix->bias + o) : all(0.0f);
    for (int t = 0; t < rows; t++) {
      Floats sum = __builtin_convertvector(sums[t][half], Floats) * (scale * inputs->scales[row + t]) + bias;
      if (inputs->lows) sum += load(matrix->sums + o) * inputs->lows[row + t];
      store(sum, y + (size_t)(row + t) * y_step + o);
    }
  }
}

/* All outputs of some rows. */
INLINE void product_of(const Matrix *matrix, const Inputs *inputs, int rows, float *y, int y_step, const int are_bytes) {
  /* Parts of nearly equal size: few rows wait for their sums, and for weights. */
  const int parts = (rows + BLOCK - 1) / BLOCK;
  for (int panel = 0; panel < matrix->outputs / PANEL; panel++)
    for (int part = 0; part < parts; part++) {
      const int row = rows * part / parts;
      switch (rows * (part + 1) / parts - row) { /* Constants, so that all sums stay in registers. */
        case 1: product_block(matrix, panel, inputs, row, 1, y, y_step, are_bytes); break;
        case 2: product_block(matrix, panel, inputs, row, 2, y, y_step, are_bytes); break;
        case 3: product_block(matrix, panel, inputs, row, 3, y, y_step, are_bytes); break;
        case 4: product_block(matrix, panel, inputs, row, 4, y, y_step, are_bytes); break;
#if BLOCK > 5
        case 5: product_block(matrix, panel, inputs, row, 5, y, y_step, are_bytes); break;
        case 6: product_block(matrix, panel, inputs, row, 6, y, y_step, are_bytes); break;
        case 7: product_block(matrix, panel, inputs, row, 7, y, y_step, are_bytes); break;
        case 8: product_block(matrix, panel, inputs, row, 8, y, y_step, are_bytes); break;
        case 9: product_block(matrix, panel, inputs, row, 9, y, y_step, are_bytes); break;
#endif
        default: product_block(matrix, panel, inputs, row, BLOCK, y, y_step, are_bytes); break;
      }
    }
}

static void product(const Matrix *matrix, const Inputs *inputs, int rows, float *y, int y_step) {
  product_of(matrix, inputs, rows, y, y_step, 0);
}

static void product_of_bytes(const Matrix *matrix, const Inputs *inputs, int rows, float *y, int y_step) {
  product_of(matrix, inputs, rows, y, y_step, 1);
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
