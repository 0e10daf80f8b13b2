/* Attention by fine levels, for many positions at once; and room for what is in levels. */

#pragma once

#include "level_products.h"

/* HEAD products of both fit into 31 bits. */
#define QUERY_LEVELS 8191
#define KEY_LEVELS 4095

INLINE int padded(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }
INLINE int larger_of(int a, int b) { return a > b ? a : b; }
INLINE int smaller_of(int a, int b) { return a < b ? a : b; }

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
