/* A canvas's prompt through a small decoder's layers, on processors without tiles: the arithmetic of `decoder` and
`moe` for many tokens of one row. `canvas_prompts.py` says what shapes it takes and calls it; `step_library` builds
it. */

#include "level_attention.h"

#define MAX_EXPERTS 64

typedef struct {
  Matrix gate_up, down; /* gates, then ups */
} Mlp;

typedef struct {
  const float *before, *between; /* of the norms */
  Matrix qkv, out;
  const Mlp *common, *experts; /* what every token passes, or NULL; what some do, or NULL */
  const float *router;         /* [experts, hidden] */
  int32_t num_experts, top_k, normalise;
  float scale;
} Layer;

typedef struct {
  const Layer *layers;
  int32_t num_layers, hidden;
  float eps;
} Decoder;

/* What a prompt needs besides its result. */
typedef struct {
  float *normed, *wide, *made, *seen; /* of ROWS rows, but seen of all */
  CoarseRows narrow, gathered, active;
  Attention attention;
} Room;

static void normalise(const float *x, const float *weight, float *y, int count, float eps) {
  Floats squares = all(0.0f);
  for (int i = 0; i < count; i += LANES) squares += load(x + i) * load(x + i);
  const float factor = 1.0f / sqrtf(sum_of(squares) / (float)count + eps);
  for (int i = 0; i < count; i += LANES) store(load(x + i) * factor * load(weight + i), y + i);
}

/* x * cosines + (second half, first half of x) * sines. */
static void turn(const float *x, const float *cosines, const float *sines, float *to) {
  for (int d = 0; d < HEAD; d += LANES)
    store(load(x + d) * load(cosines + d) + load(x + (d + HEAD / 2) % HEAD) * load(sines + d), to + d);
}

/* A chunk of `some` tokens from x on: queries, keys and values, the first two turned. */
static void project(const Decoder *decoder, const Layer *layer, const float *x, int first, int some,
                    const float *cosines, const float *sines, float *keys, float *values, const Room *room) {
  const int hidden = decoder->hidden, count = room->attention.count;
  for (int t = 0; t < some; t++)
    normalise(x + (size_t)t * hidden, layer->before, room->normed + (size_t)t * hidden, hidden, decoder->eps);
  quantise_rows(room->normed, some, hidden, &room->narrow);
  linear(&layer->qkv, &room->narrow, some, room->wide);
  for (int n = 0; n < hidden / HEAD; n++)
    for (int t = 0; t < some; t++) {
      const float *from = room->wide + (size_t)t * 3 * hidden + n * HEAD;
      const size_t table = (size_t)(first + t) * HEAD, kept = ((size_t)n * count + first + t) * HEAD;
      float query[HEAD];
      turn(from, cosines + table, sines + table, query);
      turn(from + hidden, cosines + table, sines + table, keys + kept);
      memcpy(values + kept, from + 2 * hidden, HEAD * sizeof *values);
      put(&room->attention, n, first + t, query, keys + kept, values + kept);
    }
}

/* What the tokens from `first` on see of themselves and all before. */
static void attend(const Attention *attention, int heads, int first, float *seen) {
  for (int n = 0; n < heads; n++)
    for (int block = first / BLOCK * BLOCK; block < attention->count; block += BLOCK) {
      const int before = smaller_of(block + BLOCK, attention->count);
      score(attention, n, block, before);
      for (int t = 0; t < BLOCK && block + t < attention->count; t++) {
        for (int s = 0; s < padded(before, PANEL); s++) attention->biases[s] = s <= block + t ? 0.0f : LEFT_OUT;
        share(attention, n, t, before);
      }
      see(attention, n, before, seen + ((size_t)block * heads + n) * HEAD, heads * HEAD);
    }
}

static void pass_mlp(const Mlp *mlp, const CoarseRows *rows, int count, const Room *room) {
  const int width = mlp->down.inputs;
  linear(&mlp->gate_up, rows, count, room->wide);
  for (int t = 0; t < count; t++) {
    float *gates = room->wide + (size_t)t * 2 * width;
    for (int i = 0; i < width; i += LANES) {
      const Floats gate = load(gates + i);
      store(gate * load(gates + width + i) / (exponential(-gate) + 1.0f), gates + i);
    }
    quantise_row(gates, width, &room->active, t);
  }
  linear(&mlp->down, &room->active, count, room->made);
}

/* A token's weights of the experts, 0 of those that it does not pass. */
static void route(const Layer *layer, const float *x, int hidden, float *weights) {
  float scores[MAX_EXPERTS], total = 0.0f, chosen = 0.0f, highest = -INFINITY;
  for (int e = 0; e < layer->num_experts; e++) {
    Floats sum = all(0.0f);
    for (int i = 0; i < hidden; i += LANES) sum += load(x + i) * load(layer->router + (size_t)e * hidden + i);
    scores[e] = sum_of(sum);
    highest = fmaxf(highest, scores[e]);
    weights[e] = 0.0f;
  }
  for (int e = 0; e < layer->num_experts; e++) total += scores[e] = fmaxf(expf(scores[e] - highest), 1e-30f);
  for (int k = 0; k < layer->top_k; k++) {
    int best = -1;
    for (int e = 0; e < layer->num_experts; e++)
      if (weights[e] == 0.0f && (best < 0 || scores[e] > scores[best])) best = e;
    chosen += weights[best] = scores[best];
  }
  const float share = layer->scale / (layer->normalise && layer->top_k > 1 ? chosen : total);
  for (int e = 0; e < layer->num_experts; e++) weights[e] *= share;
}

/* Adds to `some` tokens from x on what their MLPs make of them. */
static void pass_mlps(const Decoder *decoder, const Layer *layer, float *x, int some, const Room *room) {
  const int hidden = decoder->hidden;
  float weights[ROWS][MAX_EXPERTS];
  for (int t = 0; t < some; t++) {
    float *normed = room->normed + (size_t)t * hidden;
    normalise(x + (size_t)t * hidden, layer->between, normed, hidden, decoder->eps);
    if (layer->experts) route(layer, normed, hidden, weights[t]);
  }
  quantise_rows(room->normed, some, hidden, &room->narrow);
  if (layer->common) {
    pass_mlp(layer->common, &room->narrow, some, room);
    add(x, room->made, some * hidden);
  }
  for (int e = 0; layer->experts && e < layer->num_experts; e++) {
    int tokens[ROWS], count = 0;
    for (int t = 0; t < some; t++) {
      if (weights[t][e] == 0.0f) continue;
      memcpy(coarse_row(&room->gathered, count, hidden), coarse_row(&room->narrow, t, hidden), coarse_bytes(hidden));
      room->gathered.scales[count] = room->narrow.scales[t];
      room->gathered.lows[count] = room->narrow.lows[t];
      tokens[count++] = t;
    }
    pass_mlp(layer->experts + e, &room->gathered, count, room);
    for (int i = 0; i < count; i++) {
      const float *made = room->made + (size_t)i * hidden, weight = weights[tokens[i]][e];
      float *to = x + (size_t)tokens[i] * hidden;
      for (int d = 0; d < hidden; d += LANES) store(load(to + d) + load(made + d) * weight, to + d);
    }
  }
}

static uintptr_t lay_out(const Decoder *decoder, int count, uintptr_t at, Room *room) {
  const int hidden = decoder->hidden;
  int widest = 3 * hidden;
  for (int l = 0; l < decoder->num_layers; l++) {
    const Layer *layer = decoder->layers + l;
    if (layer->common) widest = larger_of(widest, layer->common->gate_up.outputs);
    if (layer->experts) widest = larger_of(widest, layer->experts->gate_up.outputs);
  }
  room->normed = take(&at, (size_t)ROWS * hidden * sizeof *room->normed);
  room->wide = take(&at, (size_t)ROWS * widest * sizeof *room->wide);
  room->made = take(&at, (size_t)ROWS * hidden * sizeof *room->made);
  room->seen = take(&at, (size_t)(count + BLOCK) * hidden * sizeof *room->seen);
  room->narrow = take_coarse(&at, ROWS, hidden);
  room->gathered = take_coarse(&at, ROWS, hidden);
  room->active = take_coarse(&at, ROWS, widest);
  room->attention = take_attention(&at, count, hidden / HEAD);
  return at;
}

/* Bytes that a prompt of so many tokens needs. */
int64_t prompt_room_bytes(const Decoder *decoder, int32_t count) {
  Room room;
  return (int64_t)lay_out(decoder, count, 0, &room);
}

/* x [count, hidden]: embedded tokens; of the last one then what the last layer leaves. cosines and sines [count, HEAD].
   keys and values: [heads, count, HEAD] of each layer, `layer_step` apart. room_bytes: prompt_room_bytes. */
void read_prompt(const Decoder *decoder, int32_t count, float *x, const float *cosines, const float *sines, float *keys,
                 float *values, int64_t layer_step, char *room_bytes) {
  const int hidden = decoder->hidden;
  Room room;
  lay_out(decoder, count, (uintptr_t)room_bytes, &room);
  for (int l = 0; l < decoder->num_layers; l++) {
    const Layer *layer = decoder->layers + l;
    for (int first = 0; first < count; first += ROWS)
      project(decoder, layer, x + (size_t)first * hidden, first, smaller_of(count - first, ROWS), cosines, sines,
              keys + l * layer_step, values + l * layer_step, &room);
    /* Of the last layer no more is needed than the last token. */
    const int needed = l == decoder->num_layers - 1 ? count - 1 : 0;
    attend(&room.attention, hidden / HEAD, needed, room.seen);
    for (int first = needed; first < count; first += ROWS) {
      const int some = smaller_of(count - first, ROWS);
      float *of_these = x + (size_t)first * hidden;
      quantise_rows(room.seen + (size_t)first * hidden, some, hidden, &room.narrow);
      linear(&layer->out, &room.narrow, some, room.made);
      add(of_these, room.made, some * hidden);
      pass_mlps(decoder, layer, of_these, some, &room);
    }
  }
}
