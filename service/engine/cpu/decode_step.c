/* A token for every row, or several, through a small decoder: the arithmetic of `rounded_decoder` in one call. And the
   tokens that a draft head proposes (`shared/deepseek_ocr/draft_head.py`).

Keys and values are bfloat16, and so are weights, all else float32: processors without tiles add up products of widened
numbers faster than those of pairs of bfloat16. Where a processor multiplies bytes, weights may be levels
(`level_products.h`) instead. `compiled_step` says what shapes it takes and calls it; `step_library` builds it.
Each token is computed, bit for bit, as if it were alone: sums have one order, however many tokens share the weights and
keys that are read for them. So the compiler must not join products and sums where the source does not.

Weights [O, I] in bfloat16 are laid out [O / LANES][I / 2][LANES][2], so that one register holds two inputs of LANES
outputs. */

#include <math.h>
#include <string.h>

#include "lanes.h"
#if defined(__AVX512VNNI__)
#include "level_products.h"
#define TAKES_LEVELS 1
#else
#define TAKES_LEVELS 0
#define HEAD 64
#define AHEAD 4096 /* Bytes that are fetched before they are used: the processor itself does not look beyond a page. */
#endif

#define MAX_EXPERTS 16
#define MAX_PARTS 32
#define MAX_TOKENS 4 /* Of a row in one call. */
#if LANES == 16
#define ROWS_AT_ONCE 8 /* Whose sums stay in registers. */
#else
#define ROWS_AT_ONCE 6
#endif

typedef uint16_t bf16;

/* bfloat16, or levels and what `Matrix` has of them: fine ones are multiplied by fine ones. */
typedef enum { PAIRS, FINE, COARSE } Form;

typedef struct {
  const void *numbers;
  const float *scales; /* of the outputs; NULL: none */
  const float *sums;   /* NULL unless coarse */
  int32_t form;
} Weights;

typedef struct {
  Weights qkv, out;
  const Weights *gate_up, *down; /* Of each part, gates before ups. */
  const float *router; /* NULL: no experts */
  const float *before, *between; /* of the norms; NULL: in the matrices that follow */
  int32_t width, parts, experts, top_k, normalise;
  float scale;
} Layer;

typedef struct {
  const Layer *layers;
  const float *embeddings, *norm;
  Weights head; /* No numbers: hidden states and logits are not wanted. */
  int32_t num_layers, hidden, heads, vocabulary;
  float eps;
} Decoder;

typedef struct {
  Weights mix;
  Layer mlp;
  const float *norm;
} DraftHead;

/* For what comes between, of so many tokens as there may be. */
typedef struct {
  float *wide;          /* [tokens, widest] */
  float *normed, *some; /* [tokens, hidden] */
  float *factors;       /* [tokens, MAX_PARTS] */
  float *scores;        /* [MAX_TOKENS, capacity + 16] */
  int32_t *chosen;      /* [tokens] */
  /* What is multiplied by levels: [tokens, widest input], fine or coarse, and two numbers of each token. */
  int16_t *levels;
  float *scales, *lows;
} Room;

int32_t decode_step_version(void) { return 4; }

/* Outputs whose weights are laid out together, in bfloat16 and as levels; 0: these are not taken. */
int32_t decode_step_lanes(void) { return LANES; }
int32_t decode_step_panel(void) { return TAKES_LEVELS * 2 * LANES; }

/* Two registers of every other number each. */
typedef struct {
  Floats even, odd;
} Pairs;

INLINE Pairs pairs(const bf16 *from) {
  const Ints both = *(const Ints *)from;
  return (Pairs){(Floats)(both << 16), (Floats)(both & (int32_t)0xFFFF0000)};
}

INLINE void fetch(const bf16 *from) { _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0); }

/* To the nearest, ties to even. Infinity and what arithmetic leaves as no number stay so. */
static void round_all(const float *from, bf16 *to, int count) {
  for (int i = 0; i < count; i += LANES) {
    const Ints bits = (Ints)load(from + i);
    *(Narrow *)(to + i) = __builtin_convertvector((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, Narrow);
  }
}

INLINE void pairs_block(const bf16 *weights, int inputs, const float *x, const int rows, float *y, int outputs) {
  /* Two sums each, as one would wait for itself. */
  Floats even[ROWS_AT_ONCE], odd[ROWS_AT_ONCE];
  for (int t = 0; t < rows; t++) even[t] = odd[t] = all(0.0f);
  for (int k = 0; k < inputs; k += 2) {
    const Pairs two = pairs(weights + LANES * k);
    fetch(weights + LANES * k);
    for (int t = 0; t < rows; t++) {
      even[t] = fused(two.even, all(x[(size_t)t * inputs + k]), even[t]);
      odd[t] = fused(two.odd, all(x[(size_t)t * inputs + k + 1]), odd[t]);
    }
  }
  for (int t = 0; t < rows; t++) store(even[t] + odd[t], y + (size_t)t * outputs);
}

static void product_of_pairs(const bf16 *weights, int outputs, int inputs, const float *x, int rows, float *y) {
  /* Parts of nearly equal size: few rows cost as much as some more. */
  const int parts = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
  for (int o = 0; o < outputs; o += LANES)
    for (int part = 0; part < parts; part++) {
      const int t = rows * part / parts;
      const bf16 *w = weights + (size_t)o * inputs;
      const float *some = x + (size_t)t * inputs;
      float *to = y + (size_t)t * outputs + o;
      switch (rows * (part + 1) / parts - t) { /* Constants, so that all sums stay in registers. */
        case 1: pairs_block(w, inputs, some, 1, to, outputs); break;
        case 2: pairs_block(w, inputs, some, 2, to, outputs); break;
        case 3: pairs_block(w, inputs, some, 3, to, outputs); break;
        case 4: pairs_block(w, inputs, some, 4, to, outputs); break;
        case 5: pairs_block(w, inputs, some, 5, to, outputs); break;
#if ROWS_AT_ONCE > 6
        case 6: pairs_block(w, inputs, some, 6, to, outputs); break;
        case 7: pairs_block(w, inputs, some, 7, to, outputs); break;
#endif
        default: pairs_block(w, inputs, some, ROWS_AT_ONCE, to, outputs); break;
      }
    }
}

#if TAKES_LEVELS
static void product_of_levels(const Weights *weights, int outputs, int inputs, const float *x, int rows, float *y,
                              const Room *room) {
  const Matrix matrix = {weights->numbers, weights->scales, NULL, weights->sums, inputs, outputs};
  if (weights->form == COARSE) {
    const CoarseRows coarse = {room->levels, room->scales, room->lows};
    quantise_rows(x, rows, inputs, &coarse);
    linear(&matrix, &coarse, rows, y);
    return;
  }
  const Rows fine = {room->levels, room->scales};
  for (int t = 0; t < rows; t++) {
    const float *row = x + (size_t)t * inputs;
    Floats zeros = all(0.0f);
    for (int i = 0; i < inputs; i += LANES) zeros += load(row + i) * 0.0f;
    /* Levels are numbers, whatever they were made of. */
    fine.scales[t] = quantise(row, fine.levels + (size_t)t * inputs, inputs, 1.0f, levels_for(inputs)) + sum_of(zeros);
  }
  linear_of_fine(&matrix, &fine, rows, y);
}
#else
static void product_of_levels(const Weights *weights, int outputs, int inputs, const float *x, int rows, float *y,
                              const Room *room) {
  (void)weights, (void)outputs, (void)inputs, (void)x, (void)rows, (void)y, (void)room;
}
#endif

static void multiply_all(const Weights *weights, int outputs, int inputs, const float *x, int rows, float *y,
                         const Room *room) {
  if (weights->form != PAIRS) {
    product_of_levels(weights, outputs, inputs, x, rows, y, room);
    return;
  }
  product_of_pairs(weights->numbers, outputs, inputs, x, rows, y);
  for (int t = 0; weights->scales && t < rows; t++) {
    float *row = y + (size_t)t * outputs;
    for (int o = 0; o < outputs; o += LANES) store(load(row + o) * load(weights->scales + o), row + o);
  }
}

/* weight: NULL for none. */
static void normalise(const float *x, const float *weight, float *y, int hidden, float eps) {
  Floats squares = all(0.0f);
  for (int i = 0; i < hidden; i += LANES) squares = fused(load(x + i), load(x + i), squares);
  const float factor = 1.0f / sqrtf(sum_of(squares) / (float)hidden + eps);
  if (weight)
    for (int i = 0; i < hidden; i += LANES) store(load(x + i) * factor * load(weight + i), y + i);
  else
    for (int i = 0; i < hidden; i += LANES) store(load(x + i) * factor, y + i);
}

/* Scores of tokens with `count` keys, and of some more with the last. queries [tokens, HEAD]: as
   `order_as_pairs` leaves them. */
INLINE void score_keys(const float *queries, const int tokens, const bf16 *keys, int count, float *scores, int room) {
  for (int s = 0; s < count; s += LANES) {
    Floats parts[MAX_TOKENS][LANES];
    for (int k = 0; k < LANES; k++) {
      const bf16 *key = keys + (size_t)(s + k < count ? s + k : count - 1) * HEAD;
      for (int d = 0; d < HEAD; d += 32) fetch(key + d);
      for (int d = 0; d < HEAD; d += 2 * LANES) {
        const Pairs two = pairs(key + d);
        for (int t = 0; t < tokens; t++) {
          const float *query = queries + t * HEAD + d;
          const Floats even = two.even * load(query);
          parts[t][k] = fused(two.odd, load(query + LANES), d ? fused(two.even, load(query), parts[t][k]) : even);
        }
      }
    }
    for (int t = 0; t < tokens; t++) store(sums_of(parts[t]) * 0.125f, scores + t * room + s);
  }
}

/* Scores of the first `seen` keys to weights; returns their sum. */
static float weigh_keys(float *scores, int seen) {
  Floats largest = all(-INFINITY), total = all(0.0f);
  for (int s = seen; s % LANES; s++) scores[s] = -INFINITY;
  for (int s = 0; s < seen; s += LANES) largest = larger(largest, load(scores + s));
  const float most = largest_of(largest);
  for (int s = 0; s < seen; s += LANES) {
    const Floats weight = exponential(load(scores + s) - most);
    total += weight;
    store(weight, scores + s);
  }
  return sum_of(total);
}

INLINE void attend_tokens(const float *queries, const int tokens, const bf16 *keys, const bf16 *values, int count,
                          float *out, int hidden, float *scores, int room) {
  float share[MAX_TOKENS];
  score_keys(queries, tokens, keys, count + tokens - 1, scores, room);
  for (int t = 0; t < tokens; t++) share[t] = 1.0f / weigh_keys(scores + t * room, count + t);
  /* So many at once as there are registers for. */
  const int blocks = LANES == 16 || tokens == 1 ? HEAD / LANES / 2 : tokens < 4 ? 2 : 1;
  for (int d = 0; d < HEAD; d += 2 * LANES * blocks) {
    Floats even[MAX_TOKENS][HEAD / LANES / 2], odd[MAX_TOKENS][HEAD / LANES / 2];
    for (int t = 0; t < tokens; t++)
      for (int i = 0; i < blocks; i++) even[t][i] = odd[t][i] = all(0.0f);
    for (int s = 0; s < count; s++) {
      const bf16 *value = values + (size_t)s * HEAD + d;
      for (int i = 0; i < blocks; i++) {
        const Pairs two = pairs(value + 2 * LANES * i);
        fetch(value + 2 * LANES * i);
        for (int t = 0; t < tokens; t++) {
          even[t][i] = fused(two.even, all(scores[t * room + s]), even[t][i]);
          odd[t][i] = fused(two.odd, all(scores[t * room + s]), odd[t][i]);
        }
      }
    }
    for (int t = 0; t < tokens; t++)
      for (int i = 0; i < blocks; i++) {
        for (int s = count; s < count + t; s++) {
          const Pairs two = pairs(values + (size_t)s * HEAD + d + 2 * LANES * i);
          even[t][i] = fused(two.even, all(scores[t * room + s]), even[t][i]);
          odd[t][i] = fused(two.odd, all(scores[t * room + s]), odd[t][i]);
        }
        even[t][i] *= share[t], odd[t][i] *= share[t];
        float *to = out + (size_t)t * hidden + d + 2 * LANES * i;
        for (int lane = 0; lane < LANES; lane++) to[2 * lane] = even[t][i][lane], to[2 * lane + 1] = odd[t][i][lane];
      }
  }
}

/* One head of a row's tokens: the first sees `count` keys, each other one more than the one before it. out: `hidden` from
   token to token. `scores` has `room` for each, 16 more than there are keys. */
static void attend(const float *queries, int tokens, const bf16 *keys, const bf16 *values, int count, float *out,
                   int hidden, float *scores, int room) {
  switch (tokens) {
    case 1: attend_tokens(queries, 1, keys, values, count, out, hidden, scores, room); break;
    case 2: attend_tokens(queries, 2, keys, values, count, out, hidden, scores, room); break;
    case 3: attend_tokens(queries, 3, keys, values, count, out, hidden, scores, room); break;
    default: attend_tokens(queries, 4, keys, values, count, out, hidden, scores, room); break;
  }
}

/* x * cosines + (second half, first half of x) * sines. */
static void turn(const float *x, const float *cosines, const float *sines, float *to) {
  for (int d = 0; d < HEAD; d += LANES) {
    const Floats other = load(x + (d + HEAD / 2) % HEAD) * load(sines + d);
    store(fused(load(x + d), load(cosines + d), other), to + d);
  }
}

/* Numbers in the order of `pairs`: of 2 * LANES each the even ones, then the odd ones. */
static void order_as_pairs(const float *from, float *to) {
  for (int d = 0; d < HEAD; d += 2 * LANES)
    for (int lane = 0; lane < LANES; lane++) to[d + lane] = from[d + 2 * lane], to[d + LANES + lane] = from[d + 2 * lane + 1];
}

/* A token's factors of an MLP's parts: its experts, then what every token passes. */
static void weigh(const Layer *layer, const float *x, int hidden, float *factors) {
  float scores[MAX_EXPERTS], total = 0.0f, highest = -INFINITY;
  for (int p = 0; p < layer->parts; p++) factors[p] = p < layer->experts ? 0.0f : 1.0f;
  for (int e = 0; e < layer->experts; e++) {
    Floats sum = all(0.0f);
    for (int i = 0; i < hidden; i += LANES) sum = fused(load(x + i), load(layer->router + (size_t)e * hidden + i), sum);
    scores[e] = sum_of(sum);
    if (scores[e] > highest) highest = scores[e];
  }
  for (int e = 0; e < layer->experts; e++) {
    scores[e] = expf(scores[e] - highest);
    total += scores[e];
  }
  float chosen = 0.0f;
  for (int k = 0; k < layer->top_k; k++) {
    int best = -1;
    for (int e = 0; e < layer->experts; e++)
      if (factors[e] == 0.0f && (best < 0 || scores[e] > scores[best])) best = e;
    if (best < 0) break;
    factors[best] = scores[best] > 1e-30f ? scores[best] : 1e-30f;
    chosen += factors[best];
  }
  const float share = layer->scale / (layer->normalise && layer->top_k > 1 ? chosen : total);
  for (int e = 0; e < layer->experts; e++) factors[e] *= share;
}

/* gates [2 * width]: gates, then ups; the gates become what goes on. */
static void activate(float *gates, int width, float factor) {
  const float *ups = gates + width;
  for (int i = 0; i < width; i += LANES) {
    const Floats gate = load(gates + i);
    store(gate * load(ups + i) / (exponential(-gate) + 1.0f) * factor, gates + i);
  }
}

#if !TAKES_LEVELS
static void add(float *x, const float *y, int count) {
  for (int i = 0; i < count; i += LANES) store(load(x + i) + load(y + i), x + i);
}
#endif

/* Add an MLP's parts to x [tokens, hidden], each for the tokens that have a factor of it. normed [tokens, hidden]. */
static void mix(const Layer *layer, int tokens, int hidden, const float *normed, float *x, const Room *room) {
  const int width = layer->width / layer->parts;
  for (int t = 0; t < tokens; t++) {
    float *factors = room->factors + t * MAX_PARTS;
    factors[0] = 1.0f;
    if (layer->router) weigh(layer, normed + (size_t)t * hidden, hidden, factors);
  }
  for (int p = 0; p < layer->parts; p++) {
    int count = 0;
    for (int t = 0; t < tokens; t++)
      if (room->factors[t * MAX_PARTS + p] != 0.0f) {
        memcpy(room->some + (size_t)count * hidden, normed + (size_t)t * hidden, hidden * sizeof *normed);
        room->chosen[count++] = t;
      }
    if (!count) continue;
    multiply_all(layer->gate_up + p, 2 * width, hidden, room->some, count, room->wide, room);
    for (int i = 0; i < count; i++) {
      float *gates = room->wide + (size_t)i * 2 * width;
      activate(gates, width, room->factors[room->chosen[i] * MAX_PARTS + p]);
      memmove(room->wide + (size_t)i * width, gates, width * sizeof *gates);
    }
    multiply_all(layer->down + p, hidden, width, room->wide, count, room->some, room);
    for (int i = 0; i < count; i++) add(x + (size_t)room->chosen[i] * hidden, room->some + (size_t)i * hidden, hidden);
  }
}

static void score(const Decoder *decoder, const float *states, int count, float *logits, const Room *room) {
  multiply_all(&decoder->head, decoder->vocabulary, decoder->hidden, states, count, logits, room);
}

/* Tokens of one row follow one another; T are those of all rows.

   counts [rows]: tokens of each row, MAX_TOKENS at most. cells [rows]: where each row's first token goes, the others after
   it; each sees all up to its own. x [T, hidden]: embedded tokens, then what the last layer leaves. cosines and sines [T,
   HEAD]. cache: keys, then values [2, layers, max_rows, heads, capacity, HEAD]. states [T, hidden]: what the language head
   reads; logits [T, vocabulary]. */
void decode_step(const Decoder *decoder, int32_t rows, const int32_t *counts, const int32_t *cells, float *x,
                 const float *cosines, const float *sines, bf16 *cache, int32_t max_rows, int32_t capacity, float *states,
                 float *logits, const Room *room) {
  const int hidden = decoder->hidden, heads = decoder->heads;
  const size_t of_head = (size_t)capacity * HEAD, of_values = of_head * heads * max_rows * decoder->num_layers;
  float *wide = room->wide, *normed = room->normed;
  int tokens = 0;
  for (int row = 0; row < rows; row++) tokens += counts[row];
  for (int l = 0; l < decoder->num_layers; l++) {
    const Layer *layer = decoder->layers + l;
    for (int t = 0; t < tokens; t++)
      normalise(x + (size_t)t * hidden, layer->before, normed + (size_t)t * hidden, hidden, decoder->eps);
    multiply_all(&layer->qkv, 3 * hidden, hidden, normed, tokens, wide, room);
    for (int row = 0, t = 0; row < rows; t += counts[row++])
      for (int n = 0; n < heads; n++) {
        float queries[MAX_TOKENS * HEAD], turned[HEAD];
        bf16 *keys = cache + (((size_t)l * max_rows + row) * heads + n) * of_head;
        bf16 *values = keys + of_values;
        for (int i = 0; i < counts[row]; i++) {
          const size_t cell = (size_t)(cells[row] + i) * HEAD;
          const float *q = wide + (size_t)(t + i) * 3 * hidden + n * HEAD;
          const float *cosine = cosines + (t + i) * HEAD, *sine = sines + (t + i) * HEAD;
          turn(q, cosine, sine, turned);
          order_as_pairs(turned, queries + i * HEAD);
          turn(q + hidden, cosine, sine, turned);
          round_all(turned, keys + cell, HEAD);
          round_all(q + 2 * hidden, values + cell, HEAD);
        }
        attend(queries, counts[row], keys, values, cells[row] + 1, normed + (size_t)t * hidden + n * HEAD, hidden,
               room->scores, capacity + 16);
      }
    multiply_all(&layer->out, hidden, hidden, normed, tokens, wide, room);
    add(x, wide, tokens * hidden);
    for (int t = 0; t < tokens; t++)
      normalise(x + (size_t)t * hidden, layer->between, normed + (size_t)t * hidden, hidden, decoder->eps);
    mix(layer, tokens, hidden, normed, x, room);
  }
  if (!decoder->head.numbers) return;
  for (int t = 0; t < tokens; t++)
    normalise(x + (size_t)t * hidden, decoder->norm, states + (size_t)t * hidden, hidden, decoder->eps);
  score(decoder, states, tokens, logits, room);
}

/* Of numbers, the first of the highest. */
static int32_t highest(const float *logits, int count) {
  Floats most = load(logits);
  for (int i = LANES; i < count; i += LANES) most = larger(most, load(logits + i));
  const float value = largest_of(most);
  for (int i = 0; i < count; i++)
    if (logits[i] == value) return i;
  return 0;
}

/* states [rows, hidden]: by which `newest` [rows] were chosen; changed. drafted [rows, drafts]: the tokens after them. */
void draft_tokens(const Decoder *decoder, const DraftHead *head, int32_t rows, int32_t drafts, float *states,
                  const int32_t *newest, int32_t *drafted, const Room *room) {
  const int hidden = decoder->hidden;
  float *wide = room->wide, *normed = room->normed;
  for (int d = 0; d < drafts; d++) {
    for (int t = 0; t < rows; t++) {
      const int32_t token = d ? drafted[t * drafts + d - 1] : newest[t];
      float *both = wide + (size_t)t * 2 * hidden;
      memcpy(both, states + (size_t)t * hidden, hidden * sizeof *both);
      normalise(decoder->embeddings + (size_t)token * hidden, NULL, both + hidden, hidden, decoder->eps);
    }
    multiply_all(&head->mix, hidden, 2 * hidden, wide, rows, states, room);
    for (int t = 0; t < rows; t++)
      normalise(states + (size_t)t * hidden, NULL, normed + (size_t)t * hidden, hidden, decoder->eps);
    mix(&head->mlp, rows, hidden, normed, states, room);
    for (int t = 0; t < rows; t++)
      normalise(states + (size_t)t * hidden, head->norm, states + (size_t)t * hidden, hidden, decoder->eps);
    score(decoder, states, rows, wide, room);
    for (int t = 0; t < rows; t++)
      drafted[t * drafts + d] = highest(wide + (size_t)t * decoder->vocabulary, decoder->vocabulary);
  }
}
