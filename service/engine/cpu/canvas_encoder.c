/* Canvases through both encoders of a small model, a canvas a call, on processors without tiles: the arithmetic of
`sam`, `clip` and the projector. `canvas_encoder.py` says what shapes it takes and calls it; `step_library` builds it.

A window, or a hundred rows, go through half a block together, so that what they need stays in the second-level
cache. */

#include "level_attention.h"

#define WINDOW 10
#define MAX_LINE 320

typedef struct {
  const float *weight, *bias;
  float eps;
} Norm;

/* Of 3 x 3, or of 1 x 1 with a stride of 1. */
typedef struct {
  Matrix matrix; /* inputs: rows, then columns, then channels */
  Norm norm;     /* of its outputs; weight NULL: none */
  float step;    /* of its inputs' levels */
  int32_t size, stride;
} Convolution;

typedef struct {
  Norm before, between;
  Matrix qkv, out, up, down;
  Matrix relative;               /* rows' distances, then columns', from the farthest before on; no outputs: none */
  int32_t windows, side, smooth; /* side: of the grid that has these distances; smooth: GELU by sigmoids */
} Block;

typedef struct {
  const Convolution *stem; /* The last is of 1 x 1. */
  const Block *blocks, *mixing;
  Matrix narrow;
  Norm narrow_norm;
  Convolution neck, halve, widen;
  Norm mixing_norm;
  Matrix projector;
  int32_t stem_length, num_blocks, num_mixing, width_px;
} Encoder;

INLINE Floats gelu(Floats x) {
  /* x times the normal distribution's function, as a polynomial fitted so that the result is off by 5e-5 at most. */
  const Floats near = larger(smaller(x, all(4.5f)), all(-4.5f)), u = near * near;
  Floats p = u * -1.7263119102620128e-12f + 2.0224240337984867e-10f;
  p = p * u - 1.0567038799536022e-08f;
  p = p * u + 3.2789091619633837e-07f;
  p = p * u - 6.813710569986142e-06f;
  p = p * u + 0.0001017339454847388f;
  p = p * u - 0.0011427146382629871f;
  p = p * u + 0.009891772642731667f;
  p = p * u - 0.06642068177461624f;
  p = p * u + 0.39892467856407166f;
  return x * (near * p + 0.5f);
}

INLINE Floats sigmoid_gelu(Floats x) { return x / (exponential(x * -1.702f) + 1.0f); }

static void normalise(const float *x, float *y, int count, const Norm *norm) {
  Floats sum = all(0.0f), squares = all(0.0f);
  for (int i = 0; i < count; i += LANES) sum += load(x + i);
  const float mean = sum_of(sum) / (float)count;
  for (int i = 0; i < count; i += LANES) {
    const Floats off = load(x + i) - mean;
    squares += off * off;
  }
  const float factor = 1.0f / sqrtf(sum_of(squares) / (float)count + norm->eps);
  for (int i = 0; i < count; i += LANES)
    store((load(x + i) - mean) * factor * load(norm->weight + i) + load(norm->bias + i), y + i);
}

/* What a canvas needs besides its result. */
typedef struct {
  int16_t *maps[2]; /* a convolution's inputs and the next one's, with a border of zeros */
  float *x, *seen;  /* of all positions */
  float *wide;      /* of ROWS rows, or of a line of a map */
  CoarseRows narrow;
  Attention attention;
  float *distances;
  float *tokens;
} Room;

/* Which position is the i-th of a window, or of the whole grid. */
static int place_of(const Block *block, int window, int i, int width) {
  if (!block->windows) return i;
  const int across = width / WINDOW;
  return (window / across * WINDOW + i / WINDOW) * width + window % across * WINDOW + i % WINDOW;
}

static void project(const Block *block, const float *x, int window, int width, const Room *room) {
  const int hidden = block->qkv.inputs, count = room->attention.count;
  for (int first = 0; first < count; first += ROWS) {
    const int some = smaller_of(count - first, ROWS);
    for (int t = 0; t < some; t++) {
      const float *from = x + (size_t)place_of(block, window, first + t, width) * hidden;
      normalise(from, room->wide + (size_t)t * hidden, hidden, &block->before);
    }
    quantise_rows(room->wide, some, hidden, &room->narrow);
    linear(&block->qkv, &room->narrow, some, room->wide);
    for (int n = 0; n < hidden / HEAD; n++)
      for (int t = 0; t < some; t++) {
        const float *query = room->wide + (size_t)t * 3 * hidden + n * HEAD;
        put(&room->attention, n, first + t, query, query + hidden, query + 2 * hidden);
      }
  }
}

/* What a query's relative position adds to its scores; width: of its window, or of the grid. */
static void bias(const Block *block, const float *distances, int query, int width, const Attention *attention) {
  const int span = 2 * block->side - 1;
  const float *rows = distances + block->side - 1 - query / width;
  const float *columns = distances + span + block->side - 1 - query % width;
  for (int r = 0; r < attention->count / width; r++)
    for (int c = 0; c < width; c += LANES) store(load(columns + c) + rows[r], attention->biases + r * width + c);
}

/* Attention among a window's positions or among all, added to x. */
static void attend(const Block *block, float *x, int window, int width, const Room *room) {
  const Attention *attention = &room->attention;
  const int hidden = block->qkv.inputs, count = attention->count, stored = stored_positions(attention);
  project(block, x, window, width, room);
  memset(attention->biases, 0, count * sizeof *attention->biases);
  for (int n = 0; n < hidden / HEAD; n++)
    for (int first = 0; first < count; first += BLOCK) {
      score(attention, n, first, count);
      if (block->relative.outputs) {
        const Rows queries = queries_from(attention, n, first);
        linear_of_fine(&block->relative, &queries, BLOCK, room->distances);
      }
      for (int t = 0; t < BLOCK && first + t < count; t++) {
        const float *distances = room->distances + (size_t)t * block->relative.outputs;
        if (block->relative.outputs) bias(block, distances, first + t, block->windows ? WINDOW : width, attention);
        for (int s = count; s < stored; s++) attention->biases[s] = LEFT_OUT;
        share(attention, n, t, count);
      }
      see(attention, n, count, room->seen + (size_t)first * hidden + n * HEAD, hidden);
    }
  for (int first = 0; first < count; first += ROWS) {
    const int some = smaller_of(count - first, ROWS);
    quantise_rows(room->seen + (size_t)first * hidden, some, hidden, &room->narrow);
    linear(&block->out, &room->narrow, some, room->wide);
    for (int t = 0; t < some; t++)
      add(x + (size_t)place_of(block, window, first + t, width) * hidden, room->wide + (size_t)t * hidden, hidden);
  }
}

static void pass_mlp(const Block *block, float *x, int count, const Room *room) {
  const int hidden = block->up.inputs, width = block->up.outputs;
  for (int first = 0; first < count; first += ROWS) {
    const int some = smaller_of(count - first, ROWS);
    float *of_these = x + (size_t)first * hidden;
    for (int t = 0; t < some; t++)
      normalise(of_these + (size_t)t * hidden, room->wide + (size_t)t * hidden, hidden, &block->between);
    quantise_rows(room->wide, some, hidden, &room->narrow);
    linear(&block->up, &room->narrow, some, room->wide);
    if (block->smooth)
      for (int i = 0; i < some * width; i += LANES) store(sigmoid_gelu(load(room->wide + i)), room->wide + i);
    else
      for (int i = 0; i < some * width; i += LANES) store(gelu(load(room->wide + i)), room->wide + i);
    quantise_rows(room->wide, some, width, &room->narrow);
    linear(&block->down, &room->narrow, some, room->wide);
    add(of_these, room->wide, some * hidden);
  }
}

/* The last row of windows has what is left of the map. */
static void pass_block(const Block *block, float *x, int width, int count, Room *room) {
  const int across = width / WINDOW, height = count / width;
  const int windows = block->windows ? across * ((height + WINDOW - 1) / WINDOW) : 1;
  for (int window = 0; window < windows; window++) {
    room->attention.count = block->windows ? smaller_of(WINDOW, height - window / across * WINDOW) * WINDOW : count;
    attend(block, x, window, width, room);
  }
  pass_mlp(block, x, count, room);
}

/* Zeros around a map of height x width. */
static void clear_border(int16_t *map, int height, int width, int channels) {
  const size_t line = (size_t)(width + 2) * channels, pixel = (size_t)channels * sizeof *map;
  memset(map, 0, line * sizeof *map);
  memset(map + (height + 1) * line, 0, line * sizeof *map);
  for (int y = 1; y <= height; y++) {
    memset(map + y * line, 0, pixel);
    memset(map + y * line + line - channels, 0, pixel);
  }
}

INLINE int16_t *inner_line(int16_t *map, int y, int width, int channels) {
  return map + ((size_t)(y + 1) * (width + 2) + 1) * channels;
}

static void line_to_levels(const float *line, int count, float step, int16_t *levels) {
  const float to_levels = 1.0f / step;
  for (int i = 0; i < count; i += LANES) store_levels(load(line + i) * to_levels, levels + i);
}

/* One line of what a convolution makes of a map, `width` positions. */
static void convolve(const Convolution *by, const int16_t *map, float step, int y, int width, float *line) {
  const int channels = by->matrix.inputs / (by->size * by->size), outputs = by->matrix.outputs;
  const int stored = (width * by->stride + 2) * channels, border = by->size == 1 ? stored + channels : 0;
  float steps[MAX_LINE];
  for (int t = 0; t < width; t++) steps[t] = step;
  const int16_t *from = map + (size_t)y * by->stride * stored + border;
  const Inputs inputs = {from, steps, NULL, by->stride * channels / 2, by->size * channels / 2, by->size, stored / 2};
  product(&by->matrix, &inputs, width, line, outputs);
  for (int t = 0; by->norm.weight && t < width; t++)
    normalise(line + (size_t)t * outputs, line + (size_t)t * outputs, outputs, &by->norm);
}

/* Pixels to patches, [height / patch, width / patch, hidden]. */
static void embed(const Encoder *encoder, const uint8_t *pixels, int height, const Room *room) {
  int width = encoder->width_px;
  clear_border(room->maps[0], height, width, 4);
  for (int y = 0; y < height; y++)
    for (int i = 0; i < width; i++) {
      const uint8_t *pixel = pixels + 3 * ((size_t)y * width + i);
      int16_t *to = inner_line(room->maps[0], y, width, 4) + 4 * i;
      for (int c = 0; c < 3; c++) to[c] = (int16_t)(2 * pixel[c] - 255);
      to[3] = 0;
    }
  const Convolution *by = encoder->stem;
  for (int i = 0; i < encoder->stem_length - 1; i++, by++) {
    const int channels = by->matrix.outputs;
    const int16_t *from = room->maps[i % 2];
    int16_t *to = room->maps[(i + 1) % 2];
    height /= by->stride, width /= by->stride;
    clear_border(to, height, width, channels);
    for (int y = 0; y < height; y++) {
      convolve(by, from, by->step, y, width, room->wide);
      for (int j = 0; j < width * channels; j += LANES) store(gelu(load(room->wide + j)), room->wide + j);
      line_to_levels(room->wide, width * channels, by[1].step, inner_line(to, y, width, channels));
    }
  }
  const int16_t *from = room->maps[(encoder->stem_length - 1) % 2];
  const size_t line = (size_t)width * by->matrix.outputs;
  for (int y = 0; y < height; y++) convolve(by, from, by->step, y, width, room->x + y * line);
}

/* Patches to the first encoder's tokens, a quarter as many. */
static void shrink(const Encoder *encoder, int height, int width, const Room *room) {
  const int hidden = encoder->narrow.inputs, channels = encoder->narrow.outputs;
  clear_border(room->maps[0], height, width, channels);
  for (int y = 0; y < height; y++) {
    quantise_rows(room->x + (size_t)y * width * hidden, width, hidden, &room->narrow);
    linear(&encoder->narrow, &room->narrow, width, room->wide);
    for (int t = 0; t < width; t++)
      normalise(room->wide + t * channels, room->wide + t * channels, channels, &encoder->narrow_norm);
    line_to_levels(room->wide, width * channels, encoder->neck.step, inner_line(room->maps[0], y, width, channels));
  }
  clear_border(room->maps[1], height, width, channels);
  for (int y = 0; y < height; y++) {
    convolve(&encoder->neck, room->maps[0], encoder->neck.step, y, width, room->wide);
    line_to_levels(room->wide, width * channels, encoder->halve.step, inner_line(room->maps[1], y, width, channels));
  }
  height /= 2, width /= 2;
  const int halved = encoder->halve.matrix.outputs, line = width * halved, count = height * line;
  for (int y = 0; y < height; y++)
    convolve(&encoder->halve, room->maps[1], encoder->halve.step, y, width, room->seen + (size_t)y * line);
  /* Nothing bounds these but themselves. */
  Floats largest = all(1e-20f);
  for (int i = 0; i < count; i += LANES) largest = larger(largest, absolute(load(room->seen + i)));
  const float step = largest_of(largest) / (float)levels_for(encoder->widen.matrix.inputs);
  clear_border(room->maps[0], height, width, halved);
  for (int y = 0; y < height; y++)
    line_to_levels(room->seen + (size_t)y * line, line, step, inner_line(room->maps[0], y, width, halved));
  const size_t tokens = (size_t)width * encoder->widen.matrix.outputs;
  for (int y = 0; y < height; y++) convolve(&encoder->widen, room->maps[0], step, y, width, room->tokens + y * tokens);
}

/* The first encoder's tokens, and what the second one makes of them, to what the decoder reads. */
static void mix(const Encoder *encoder, const float *positions, int count, int width, Room *room, float *out) {
  const int hidden = encoder->widen.matrix.outputs, joined = encoder->projector.inputs;
  memcpy(room->x, positions, (size_t)(count + 1) * hidden * sizeof *positions);
  add(room->x + hidden, room->tokens, count * hidden);
  for (int t = 0; t <= count; t++)
    normalise(room->x + (size_t)t * hidden, room->x + (size_t)t * hidden, hidden, &encoder->mixing_norm);
  for (int i = 0; i < encoder->num_mixing; i++) pass_block(encoder->mixing + i, room->x, width, count + 1, room);
  for (int first = 0; first < count; first += ROWS) {
    const int some = smaller_of(count - first, ROWS);
    for (int t = 0; t < some; t++) {
      float *row = room->wide + (size_t)t * joined;
      memcpy(row, room->x + (size_t)(first + t + 1) * hidden, hidden * sizeof *row);
      memcpy(row + hidden, room->tokens + (size_t)(first + t) * hidden, hidden * sizeof *row);
    }
    quantise_rows(room->wide, some, joined, &room->narrow);
    linear(&encoder->projector, &room->narrow, some, out + (size_t)first * encoder->projector.outputs);
  }
}

static uintptr_t lay_out(const Encoder *encoder, int height_px, uintptr_t at, Room *room) {
  int height = height_px, width = encoder->width_px, line = 0, inputs = encoder->projector.inputs, distances = 0;
  size_t maps[2] = {(size_t)(height + 2) * (width + 2) * 4, 0};
  for (int i = 0; i < encoder->stem_length; i++) {
    const Convolution *by = encoder->stem + i;
    height /= by->stride, width /= by->stride;
    const size_t map = (size_t)(height + 2) * (width + 2) * by->matrix.outputs;
    if (map > maps[(i + 1) % 2]) maps[(i + 1) % 2] = map;
    line = larger_of(line, width * by->matrix.outputs);
  }
  const int hidden = encoder->narrow.inputs, mixed = encoder->widen.matrix.outputs;
  const int channels = larger_of(encoder->narrow.outputs, encoder->halve.matrix.outputs);
  const size_t positions = (size_t)height * width, of_shrunk = (size_t)(height + 2) * (width + 2) * channels;
  const size_t rows = positions + BLOCK, widest = larger_of(hidden, larger_of(mixed, channels));
  for (int i = 0; i < encoder->num_blocks + encoder->num_mixing; i++) {
    const Block *block = i < encoder->num_blocks ? encoder->blocks + i : encoder->mixing + i - encoder->num_blocks;
    inputs = larger_of(inputs, larger_of(block->qkv.outputs, block->up.outputs));
    distances = larger_of(distances, block->relative.outputs);
  }
  for (int i = 0; i < 2; i++)
    room->maps[i] = take(&at, (maps[i] > of_shrunk ? maps[i] : of_shrunk) * sizeof *room->maps[i]);
  room->x = take(&at, rows * widest * sizeof *room->x);
  room->seen = take(&at, rows * widest * sizeof *room->seen);
  room->wide = take(&at, (size_t)larger_of(line, ROWS * inputs) * sizeof *room->wide);
  room->tokens = take(&at, positions / 4 * mixed * sizeof *room->tokens);
  room->narrow = take_coarse(&at, ROWS, inputs);
  room->attention = take_attention(&at, (int)positions, larger_of(hidden, mixed) / HEAD);
  room->distances = take(&at, (size_t)BLOCK * distances * sizeof *room->distances);
  return at;
}

int32_t canvases_version(void) { return 3; }
int32_t canvases_panel(void) { return PANEL; }
int32_t canvases_coarse(void) { return COARSE_IN_A_WORD; }

/* Bytes that a canvas of this height needs. */
int64_t canvas_room_bytes(const Encoder *encoder, int32_t height_px) {
  Room room;
  return (int64_t)lay_out(encoder, height_px, 0, &room);
}

/* pixels [height_px, width_px, 3]. positions: of the patches. mixing_positions: of the class token, which is in them,
   and the tokens. room_bytes: canvas_room_bytes. out: a vector of each token. */
void encode_canvas(const Encoder *encoder, const uint8_t *pixels, int32_t height_px, const float *positions,
                   const float *mixing_positions, char *room_bytes, float *out) {
  Room room;
  lay_out(encoder, height_px, (uintptr_t)room_bytes, &room);
  embed(encoder, pixels, height_px, &room);
  int patch = 1;
  for (int i = 0; i < encoder->stem_length; i++) patch *= encoder->stem[i].stride;
  const int height = height_px / patch, width = encoder->width_px / patch, count = height * width;
  add(room.x, positions, count * encoder->narrow.inputs);
  for (int i = 0; i < encoder->num_blocks; i++) pass_block(encoder->blocks + i, room.x, width, count, &room);
  shrink(encoder, height, width, &room);
  mix(encoder, mixing_positions, count / 4, width / 2, &room, out);
}
