/* One token for every row through a small decoder's layers: the arithmetic of `rounded_decoder` in one call.

Weights, keys and values are bfloat16, sums, residual and routers float32. Needs AVX-512 with BF16; `compiled_step`
builds it, says what shapes it takes and calls it. Each row is computed as if it were alone.

Weights [O, I] are laid out [O / 16][I / 2][16][2], so that one register holds two inputs of 16 outputs. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define HEAD 64
#define MAX_EXPERTS 16
#define MAX_PARTS 32
#define ROWS_AT_ONCE 8
#define AHEAD 4096 /* Bytes that are fetched before they are used: the processor itself does not look beyond a page. */
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

typedef struct {
  const bf16 *qkv, *out, *gate_up, *down;
  const float *router; /* NULL: no experts */
  int32_t width, parts, experts, top_k, normalise;
  float scale;
} Layer;

typedef struct {
  const Layer *layers;
  int32_t num_layers, hidden, heads;
  float eps;
} Decoder;

int32_t decode_step_version(void) { return 1; }

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

INLINE void product_block(const bf16 *weights, int inputs, const bf16 *x, const int rows, float *y, int outputs) {
  __m512 sums[ROWS_AT_ONCE][2];
  const bf16 *second = weights + (size_t)inputs * 16;
  for (int t = 0; t < rows; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
  for (int k = 0; k < inputs / 2; k++) {
    const __m512bh a = pairs(weights + 32 * k), b = pairs(second + 32 * k);
    _mm_prefetch((const char *)(weights + 32 * k) + AHEAD, _MM_HINT_T0);
    _mm_prefetch((const char *)(second + 32 * k) + AHEAD, _MM_HINT_T0);
    for (int t = 0; t < rows; t++) {
      int32_t pair;
      memcpy(&pair, x + (size_t)t * inputs + 2 * k, sizeof pair);
      const __m512bh two = (__m512bh)_mm512_set1_epi32(pair);
      sums[t][0] = _mm512_dpbf16_ps(sums[t][0], a, two);
      sums[t][1] = _mm512_dpbf16_ps(sums[t][1], b, two);
    }
  }
  for (int t = 0; t < rows; t++) {
    _mm512_storeu_ps(y + (size_t)t * outputs, sums[t][0]);
    _mm512_storeu_ps(y + (size_t)t * outputs + 16, sums[t][1]);
  }
}

static void product(const bf16 *weights, int outputs, int inputs, const bf16 *x, int rows, float *y) {
  for (int o = 0; o < outputs; o += 32)
    for (int t = 0; t < rows; t += ROWS_AT_ONCE) {
      const bf16 *w = weights + (size_t)o * inputs, *some = x + (size_t)t * inputs;
      float *to = y + (size_t)t * outputs + o;
      switch (rows - t) { /* Constants, so that all sums stay in registers. */
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

/* One head of one row; `scores` has room for 16 more than there are keys. */
static void attend(const bf16 *query, const bf16 *keys, const bf16 *values, int count, float *out, float *scores) {
  const __m512bh first = pairs(query), second = pairs(query + 32);
  const __m512 scale = _mm512_set1_ps(0.125f);
  __m512 largest = _mm512_set1_ps(-INFINITY);
  int s = 0;
  for (; s + 16 <= count; s += 16) {
    for (int i = 0; i < 32; i++) _mm_prefetch((const char *)(keys + (size_t)s * HEAD) + AHEAD + 64 * i, _MM_HINT_T0);
    const __m512 some = _mm512_mul_ps(of_sixteen(keys + (size_t)s * HEAD, first, second), scale);
    largest = _mm512_max_ps(largest, some);
    _mm512_storeu_ps(scores + s, some);
  }
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
  /* Two sums each, as one would wait for itself. */
  __m512 even[4], odd[4];
  for (int i = 0; i < 4; i++) even[i] = odd[i] = _mm512_setzero_ps();
  for (s = 0; s + 2 <= count; s += 2) {
    const bf16 *value = values + (size_t)s * HEAD;
    const __m512 a = _mm512_set1_ps(scores[s]), b = _mm512_set1_ps(scores[s + 1]);
    for (int i = 0; i < 4; i++) {
      _mm_prefetch((const char *)value + AHEAD + 64 * i, _MM_HINT_T0);
      even[i] = _mm512_fmadd_ps(widened(value + 16 * i), a, even[i]);
      odd[i] = _mm512_fmadd_ps(widened(value + HEAD + 16 * i), b, odd[i]);
    }
  }
  if (s < count)
    for (int i = 0; i < 4; i++)
      even[i] = _mm512_fmadd_ps(widened(values + (size_t)s * HEAD + 16 * i), _mm512_set1_ps(scores[s]), even[i]);
  const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
  for (int i = 0; i < 4; i++) _mm512_storeu_ps(out + 16 * i, _mm512_mul_ps(_mm512_add_ps(even[i], odd[i]), share));
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

static void activate(const Layer *layer, const float *gates, const float *factors, bf16 *to) {
  const float *ups = gates + layer->width;
  const int part = layer->width / layer->parts;
  for (int i = 0; i < layer->width; i += 16) {
    const __m512 gate = _mm512_loadu_ps(gates + i);
    const __m512 below = _mm512_add_ps(_mm512_set1_ps(1.0f), exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
    const __m512 active = _mm512_div_ps(_mm512_mul_ps(gate, _mm512_loadu_ps(ups + i)), below);
    rounded(_mm512_mul_ps(active, _mm512_set1_ps(factors[i / part])), to + i);
  }
}

static void add(float *x, const float *y, int count) {
  for (int i = 0; i < count; i += 16)
    _mm512_storeu_ps(x + i, _mm512_add_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(y + i)));
}

/* x [rows, hidden]: embedded tokens, then what the last layer leaves. cosines and sines [rows, HEAD]. cache: keys, then
   values [2, layers, max_rows, heads, capacity, HEAD]. cells [rows]: where each row's token goes; it sees all up to it.
   wide, narrow: room for rows of the widest float and bf16 intermediate; scores: capacity + 16. */
void decode_step(const Decoder *decoder, int32_t rows, float *x, const float *cosines, const float *sines, bf16 *cache,
                 int32_t max_rows, int32_t capacity, const int32_t *cells, float *wide, float *normed, bf16 *narrow,
                 float *scores) {
  const int hidden = decoder->hidden, heads = decoder->heads;
  const size_t of_head = (size_t)capacity * HEAD, of_values = of_head * heads * max_rows * decoder->num_layers;
  for (int l = 0; l < decoder->num_layers; l++) {
    const Layer *layer = decoder->layers + l;
    for (int t = 0; t < rows; t++) {
      normalise(x + (size_t)t * hidden, normed + (size_t)t * hidden, hidden, decoder->eps);
      round_all(normed + (size_t)t * hidden, narrow + (size_t)t * hidden, hidden);
    }
    product(layer->qkv, 3 * hidden, hidden, narrow, rows, wide);
    for (int t = 0; t < rows; t++) {
      for (int n = 0; n < heads; n++) {
        bf16 query[HEAD], *keys = cache + (((size_t)l * max_rows + t) * heads + n) * of_head;
        bf16 *values = keys + of_values;
        const float *q = wide + (size_t)t * 3 * hidden + n * HEAD;
        turn(q, cosines + t * HEAD, sines + t * HEAD, query);
        turn(q + hidden, cosines + t * HEAD, sines + t * HEAD, keys + (size_t)cells[t] * HEAD);
        round_all(q + 2 * hidden, values + (size_t)cells[t] * HEAD, HEAD);
        attend(query, keys, values, cells[t] + 1, normed + (size_t)t * hidden + n * HEAD, scores);
      }
      round_all(normed + (size_t)t * hidden, narrow + (size_t)t * hidden, hidden);
    }
    product(layer->out, hidden, hidden, narrow, rows, wide);
    add(x, wide, rows * hidden);
    for (int t = 0; t < rows; t++) {
      normalise(x + (size_t)t * hidden, normed + (size_t)t * hidden, hidden, decoder->eps);
      round_all(normed + (size_t)t * hidden, narrow + (size_t)t * hidden, hidden);
    }
    product(layer->gate_up, 2 * layer->width, hidden, narrow, rows, wide);
    for (int t = 0; t < rows; t++) {
      float factors[MAX_PARTS] = {1.0f};
      if (layer->router) weigh(layer, normed + (size_t)t * hidden, hidden, factors);
      activate(layer, wide + (size_t)t * 2 * layer->width, factors, narrow + (size_t)t * layer->width);
    }
    product(layer->down, hidden, layer->width, narrow, rows, wide);
    add(x, wide, rows * hidden);
  }
}
