/* A token for every row, or several, through a small decoder: the arithmetic of `rounded_decoder` in one call. And the
   tokens that a draft head proposes (`shared/deepseek_ocr/draft_head.py`).

Weights, keys, values and queries are bfloat16, all else float32: a processor adds up products of widened weights faster
than those of pairs of bfloat16. Needs AVX-512 with BF16; `compiled_step` builds it, says what shapes it takes and calls
it. Each token is computed, bit for bit, as if it were alone: sums have one order, however many tokens share the weights
and keys that are read for them. So the compiler must not join products and sums where the source does not.

Weights [O, I] are laid out [O / 16][I / 2][16][2], so that one register holds two inputs of 16 outputs. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define HEAD 64
#define MAX_EXPERTS 16
#define MAX_PARTS 32
#define MAX_TOKENS 4 /* Of a row in one call. */
#define ROWS_AT_ONCE 8
#define AHEAD 4096 /* Bytes that are fetched before they are used: the processor itself does not look beyond a page. */
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

typedef struct {
  const bf16 *qkv, *out;
  const bf16 *gate_up, *down; /* Part by part, gates before ups. */
  const float *router; /* NULL: no experts */
  int32_t width, parts, experts, top_k, normalise;
  float scale;
} Layer;

typedef struct {
  const Layer *layers;
  const float *embeddings, *norm;
  const bf16 *head;    /* Levels of 8 bits. NULL: hidden states and logits are not wanted. */
  const float *scales; /* Of the head's outputs. */
  int32_t num_layers, hidden, heads, vocabulary;
  float eps;
} Decoder;

typedef struct {
  const bf16 *mix;
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
} Room;

int32_t decode_step_version(void) { return 2; }

INLINE __m512 exponential(__m512 x) {
  /* Cephes' polynomial; beyond these bounds float32 has no exponentials. */
  x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.0f)), _mm512_set1_ps(-87.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

INLINE __m512bh pairs(const bf16 *from) { return (__m512bh)_mm512_loadu_si512(from); }

INLINE __m512 widened(const bf16 *from) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

INLINE void rounded(__m512 x, bf16 *to) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x)); }

static void round_all(const float *from, bf16 *to, int count) {
  for (int i = 0; i < count; i += 16) rounded(_mm512_loadu_ps(from + i), to + i);
}

INLINE void product_block(const bf16 *weights, int inputs, const float *x, const int rows, float *y, int outputs) {
  /* Two sums each, as one would wait for itself. */
  __m512 even[ROWS_AT_ONCE], odd[ROWS_AT_ONCE];
  for (int t = 0; t < rows; t++) even[t] = odd[t] = _mm512_setzero_ps();
  for (int k = 0; k < inputs; k += 2) {
    const __m512i two = _mm512_loadu_si512(weights + 16 * k);
    const __m512 a = _mm512_castsi512_ps(_mm512_slli_epi32(two, 16));
    const __m512 b = _mm512_castsi512_ps(_mm512_and_si512(two, _mm512_set1_epi32((int)0xFFFF0000u)));
    _mm_prefetch((const char *)(weights + 16 * k) + AHEAD, _MM_HINT_T0);
    for (int t = 0; t < rows; t++) {
      even[t] = _mm512_fmadd_ps(a, _mm512_set1_ps(x[(size_t)t * inputs + k]), even[t]);
      odd[t] = _mm512_fmadd_ps(b, _mm512_set1_ps(x[(size_t)t * inputs + k + 1]), odd[t]);
    }
  }
  for (int t = 0; t < rows; t++) _mm512_storeu_ps(y + (size_t)t * outputs, _mm512_add_ps(even[t], odd[t]));
}

static void product(const bf16 *weights, int outputs, int inputs, const float *x, int rows, float *y) {
  /* Parts of nearly equal size: few rows cost as much as some more. */
  const int parts = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
  for (int o = 0; o < outputs; o += 16)
    for (int part = 0; part < parts; part++) {
      const int t = rows * part / parts;
      const bf16 *w = weights + (size_t)o * inputs;
      const float *some = x + (size_t)t * inputs;
      float *to = y + (size_t)t * outputs + o;
      switch (rows * (part + 1) / parts - t) { /* Constants, so that all sums stay in registers. */
        case 1: product_block(w, inputs, some, 1, to, outputs); break;
        case 2: product_block(w, inputs, some, 2, to, outputs); break;
        case 3: product_block(w, inputs, some, 3, to, outputs); break;
        case 4: product_block(w, inputs, some, 4, to, outputs); break;
        case 5: product_block(w, inputs, some, 5, to, outputs); break;
        case 6: product_block(w, inputs, some, 6, to, outputs); break;
        case 7: product_block(w, inputs, some, 7, to, outputs); break;
        default: product_block(w, inputs, some, 8, to, outputs); break;
      }
    }
}

static void normalise(const float *x, float *y, int hidden, float eps) {
  __m512 squares = _mm512_setzero_ps();
  for (int i = 0; i < hidden; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const __m512 factor = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)hidden + eps));
  for (int i = 0; i < hidden; i += 16) _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_loadu_ps(x + i), factor));
}

INLINE __m512 scores_in_parts(const bf16 *key, __m512bh first, __m512bh second) {
  return _mm512_dpbf16_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), pairs(key), first), pairs(key + 32), second);
}

INLINE __m512 of_two(__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); }

INLINE __m512 of_four(const bf16 *keys, __m512bh first, __m512bh second) {
  const __m512 ab = of_two(scores_in_parts(keys, first, second), scores_in_parts(keys + HEAD, first, second));
  const bf16 *rest = keys + 2 * HEAD;
  const __m512 cd = of_two(scores_in_parts(rest, first, second), scores_in_parts(rest + HEAD, first, second));
  return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
}

INLINE __m512 halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
}

INLINE __m512 of_sixteen(const bf16 *keys, __m512bh first, __m512bh second) {
  __m512 four[4];
  for (int i = 0; i < 4; i++) four[i] = of_four(keys + 4 * i * HEAD, first, second);
  const __m512 low = halves(four[0], four[1]), high = halves(four[2], four[3]);
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD));
}

INLINE __m512 sixteen_scores(const bf16 *keys, __m512bh first, __m512bh second, float *scores) {
  const __m512 some = _mm512_mul_ps(of_sixteen(keys, first, second), _mm512_set1_ps(0.125f));
  _mm512_storeu_ps(scores, some);
  return some;
}

/* Of a token that sees `count` keys; those before `s` have scores, of which `largest` holds the largest. Leaves weights
   instead of scores, and returns their sum. */
INLINE float weights_of(const bf16 *keys, __m512bh first, __m512bh second, int s, int count, __m512 largest,
                        float *scores) {
  for (; s + 16 <= count; s += 16)
    largest = _mm512_max_ps(largest, sixteen_scores(keys + (size_t)s * HEAD, first, second, scores + s));
  float most = _mm512_reduce_max_ps(largest);
  for (; s < count; s++) {
    scores[s] = _mm512_reduce_add_ps(scores_in_parts(keys + (size_t)s * HEAD, first, second)) * 0.125f;
    if (scores[s] > most) most = scores[s];
  }
  __m512 total = _mm512_setzero_ps();
  for (s = 0; s < count; s += 16) {
    const __mmask16 known = count - s < 16 ? (__mmask16)((1u << (count - s)) - 1) : (__mmask16)0xFFFF;
    __m512 weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + s), _mm512_set1_ps(most)));
    weight = _mm512_maskz_mov_ps(known, weight);
    total = _mm512_add_ps(total, weight);
    _mm512_storeu_ps(scores + s, weight);
  }
  return _mm512_reduce_add_ps(total);
}

INLINE void attend_tokens(const bf16 *queries, const int tokens, const bf16 *keys, const bf16 *values, int count,
                          float *out, int hidden, float *scores, int room) {
  __m512bh first[MAX_TOKENS], second[MAX_TOKENS];
  __m512 largest[MAX_TOKENS];
  float share[MAX_TOKENS];
  int s = 0;
  for (int t = 0; t < tokens; t++) {
    first[t] = pairs(queries + t * HEAD), second[t] = pairs(queries + t * HEAD + 32);
    largest[t] = _mm512_set1_ps(-INFINITY);
  }
  for (; s + 16 <= count; s += 16) {
    const bf16 *some = keys + (size_t)s * HEAD;
    for (int i = 0; i < 32; i++) _mm_prefetch((const char *)some + AHEAD + 64 * i, _MM_HINT_T0);
    for (int t = 0; t < tokens; t++)
      largest[t] = _mm512_max_ps(largest[t], sixteen_scores(some, first[t], second[t], scores + t * room + s));
  }
  for (int t = 0; t < tokens; t++)
    share[t] = 1.0f / weights_of(keys, first[t], second[t], s, count + t, largest[t], scores + t * room);
  /* Two sums each, as one would wait for itself; so many at once as there are registers for. */
  const int blocks = tokens < MAX_TOKENS ? 4 : 2;
  for (int d = 0; d < HEAD; d += 16 * blocks) {
    __m512 even[MAX_TOKENS][4], odd[MAX_TOKENS][4];
    for (int t = 0; t < tokens; t++)
      for (int i = 0; i < blocks; i++) even[t][i] = odd[t][i] = _mm512_setzero_ps();
    for (s = 0; s + 2 <= count; s += 2) {
      const bf16 *value = values + (size_t)s * HEAD + d;
      for (int i = 0; i < blocks; i++) {
        _mm_prefetch((const char *)value + AHEAD + 64 * i, _MM_HINT_T0);
        const __m512 a = widened(value + 16 * i), b = widened(value + HEAD + 16 * i);
        for (int t = 0; t < tokens; t++) {
          even[t][i] = _mm512_fmadd_ps(a, _mm512_set1_ps(scores[t * room + s]), even[t][i]);
          odd[t][i] = _mm512_fmadd_ps(b, _mm512_set1_ps(scores[t * room + s + 1]), odd[t][i]);
        }
      }
    }
    for (int t = 0; t < tokens; t++) {
      for (int rest = s; rest < count + t; rest++)
        for (int i = 0; i < blocks; i++) {
          __m512 *sum = rest % 2 ? odd[t] + i : even[t] + i;
          const __m512 weight = _mm512_set1_ps(scores[t * room + rest]);
          *sum = _mm512_fmadd_ps(widened(values + (size_t)rest * HEAD + d + 16 * i), weight, *sum);
        }
      for (int i = 0; i < blocks; i++)
        _mm512_storeu_ps(out + (size_t)t * hidden + d + 16 * i,
                         _mm512_mul_ps(_mm512_add_ps(even[t][i], odd[t][i]), _mm512_set1_ps(share[t])));
    }
  }
}

/* One head of a row's tokens: the first sees `count` keys, each other one more than the one before it. out: `hidden` from
   token to token. `scores` has `room` for each, 16 more than there are keys. */
static void attend(const bf16 *queries, int tokens, const bf16 *keys, const bf16 *values, int count, float *out,
                   int hidden, float *scores, int room) {
  switch (tokens) {
    case 1: attend_tokens(queries, 1, keys, values, count, out, hidden, scores, room); break;
    case 2: attend_tokens(queries, 2, keys, values, count, out, hidden, scores, room); break;
    case 3: attend_tokens(queries, 3, keys, values, count, out, hidden, scores, room); break;
    default: attend_tokens(queries, 4, keys, values, count, out, hidden, scores, room); break;
  }
}

/* x * cosines + (second half, first half of x) * sines, rounded. */
static void turn(const float *x, const float *cosines, const float *sines, bf16 *to) {
  for (int d = 0; d < HEAD; d += 16) {
    const __m512 other = _mm512_mul_ps(_mm512_loadu_ps(x + (d + HEAD / 2) % HEAD), _mm512_loadu_ps(sines + d));
    rounded(_mm512_fmadd_ps(_mm512_loadu_ps(x + d), _mm512_loadu_ps(cosines + d), other), to + d);
  }
}

/* A token's factors of an MLP's parts: its experts, then what every token passes. */
static void weigh(const Layer *layer, const float *x, int hidden, float *factors) {
  float scores[MAX_EXPERTS], total = 0.0f, highest = -INFINITY;
  for (int p = 0; p < layer->parts; p++) factors[p] = p < layer->experts ? 0.0f : 1.0f;
  for (int e = 0; e < layer->experts; e++) {
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < hidden; i += 16)
      sum = _mm512_fmadd_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(layer->router + (size_t)e * hidden + i), sum);
    scores[e] = _mm512_reduce_add_ps(sum);
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
  for (int i = 0; i < width; i += 16) {
    const __m512 gate = _mm512_loadu_ps(gates + i);
    const __m512 below = _mm512_add_ps(_mm512_set1_ps(1.0f), exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
    const __m512 active = _mm512_div_ps(_mm512_mul_ps(gate, _mm512_loadu_ps(ups + i)), below);
    _mm512_storeu_ps(gates + i, _mm512_mul_ps(active, _mm512_set1_ps(factor)));
  }
}

static void add(float *x, const float *y, int count) {
  for (int i = 0; i < count; i += 16)
    _mm512_storeu_ps(x + i, _mm512_add_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(y + i)));
}

static void multiply(float *x, const float *factors, int count) {
  for (int i = 0; i < count; i += 16)
    _mm512_storeu_ps(x + i, _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(factors + i)));
}

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
    product(layer->gate_up + (size_t)p * 2 * width * hidden, 2 * width, hidden, room->some, count, room->wide);
    for (int i = 0; i < count; i++) {
      float *gates = room->wide + (size_t)i * 2 * width;
      activate(gates, width, room->factors[room->chosen[i] * MAX_PARTS + p]);
      memmove(room->wide + (size_t)i * width, gates, width * sizeof *gates);
    }
    product(layer->down + (size_t)p * hidden * width, hidden, width, room->wide, count, room->some);
    for (int i = 0; i < count; i++) add(x + (size_t)room->chosen[i] * hidden, room->some + (size_t)i * hidden, hidden);
  }
}

static void score(const Decoder *decoder, const float *states, int count, float *logits) {
  product(decoder->head, decoder->vocabulary, decoder->hidden, states, count, logits);
  for (int t = 0; t < count; t++) multiply(logits + (size_t)t * decoder->vocabulary, decoder->scales, decoder->vocabulary);
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
      normalise(x + (size_t)t * hidden, normed + (size_t)t * hidden, hidden, decoder->eps);
    product(layer->qkv, 3 * hidden, hidden, normed, tokens, wide);
    for (int row = 0, t = 0; row < rows; t += counts[row++])
      for (int n = 0; n < heads; n++) {
        bf16 queries[MAX_TOKENS * HEAD], *keys = cache + (((size_t)l * max_rows + row) * heads + n) * of_head;
        bf16 *values = keys + of_values;
        for (int i = 0; i < counts[row]; i++) {
          const size_t cell = (size_t)(cells[row] + i) * HEAD;
          const float *q = wide + (size_t)(t + i) * 3 * hidden + n * HEAD;
          const float *cosine = cosines + (t + i) * HEAD, *sine = sines + (t + i) * HEAD;
          turn(q, cosine, sine, queries + i * HEAD);
          turn(q + hidden, cosine, sine, keys + cell);
          round_all(q + 2 * hidden, values + cell, HEAD);
        }
        attend(queries, counts[row], keys, values, cells[row] + 1, normed + (size_t)t * hidden + n * HEAD, hidden,
               room->scores, capacity + 16);
      }
    product(layer->out, hidden, hidden, normed, tokens, wide);
    add(x, wide, tokens * hidden);
    for (int t = 0; t < tokens; t++)
      normalise(x + (size_t)t * hidden, normed + (size_t)t * hidden, hidden, decoder->eps);
    mix(layer, tokens, hidden, normed, x, room);
  }
  if (!decoder->head) return;
  for (int t = 0; t < tokens; t++) {
    normalise(x + (size_t)t * hidden, states + (size_t)t * hidden, hidden, decoder->eps);
    multiply(states + (size_t)t * hidden, decoder->norm, hidden);
  }
  score(decoder, states, tokens, logits);
}

/* Of numbers, the first of the highest. */
static int32_t highest(const float *logits, int count) {
  __m512 most = _mm512_loadu_ps(logits);
  for (int i = 16; i < count; i += 16) most = _mm512_max_ps(most, _mm512_loadu_ps(logits + i));
  const float value = _mm512_reduce_max_ps(most);
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
      normalise(decoder->embeddings + (size_t)token * hidden, both + hidden, hidden, decoder->eps);
    }
    product(head->mix, hidden, 2 * hidden, wide, rows, states);
    for (int t = 0; t < rows; t++)
      normalise(states + (size_t)t * hidden, normed + (size_t)t * hidden, hidden, decoder->eps);
    mix(&head->mlp, rows, hidden, normed, states, room);
    for (int t = 0; t < rows; t++) {
      normalise(states + (size_t)t * hidden, states + (size_t)t * hidden, hidden, decoder->eps);
      multiply(states + (size_t)t * hidden, head->norm, hidden);
    }
    score(decoder, states, rows, wide);
    for (int t = 0; t < rows; t++)
      drafted[t * drafts + d] = highest(wide + (size_t)t * decoder->vocabulary, decoder->vocabulary);
  }
}
