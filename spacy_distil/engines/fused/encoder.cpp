// The layers of a BERT encoder in int8, fused, for x86 CPUs with AVX-512 VNNI.
//
// It computes what the graph of `spacy_distil.export.families.bert` computes, and rounds to int8 in
// the same places. A graph writes each intermediate matrix to memory and reads it again. Here a
// block of rows goes through a whole layer while it is in the cache of its core: scale, bias,
// activation and residual sum are part of the products' last step, and no window is padded.
//
// A row is a piece. Activations are rounded to uint8 with a scale for each row, weights to int8
// with a scale for each column. All memory belongs to the caller, and nothing here keeps any state, so
// threads and forked processes may run the same encoder at once. The result of a window depends on
// nothing but the window.
//
// The file has a C interface, for ctypes. Where the compiler or the CPU does not serve, `supported`
// returns 0.

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Linear layer. weight: (n_out / 64, n_in / 4, 64, 4), aligned to 64 bytes. scales: of columns,
// (n_out), divided by 127 or 255, the largest number that activations are rounded to. start: the
// first summand of each column, (n_out), which undoes the zero point of the activations.
struct Linear {
  int32_t n_in, n_out;
  const int8_t* weight;
  const float* scales;
  const float* bias;
  const int32_t* start;
};

struct Norm {
  const float* weight;
  const float* bias;
};

// query, key and value are one product, side by side.
struct Layer {
  Linear attention_in, attention_out, up, down;
  Norm attention_norm, output_norm;
};

// n: embedding_width, a multiple of 32.
// pieces: (n_vocab, n) int8, or of 4 bits, (n_vocab, n / 2) uint8: the lower half of a byte is a number
// of the left half of a row plus 8, its upper half one of the right half.
// piece_scales: (n_vocab). positions: (n_positions, n), and second_positions of a second text, the
// same as positions if the family has one type of tokens.
// projection: from embeddings to hidden states, packed as by `pack_columns`, aligned to 64 bytes, and
// projection_bias: (width); null if embeddings are as wide as hidden states.
// activation: 0 for GELU, 1 for its approximation by tanh, 2 for ReLU.
// bfloat16: whether attention multiplies numbers of bfloat16: 1 only if `supports_bfloat16`, and if
// 32 divides the size of a head.
struct Encoder {
  int32_t width, embedding_width, n_neurons, n_heads, n_layers, activation, bfloat16, embedding_bits;
  float epsilon;
  const void* pieces;
  const float* piece_scales;
  const float* positions;
  const float* second_positions;
  Norm embedding_norm;
  const float* projection;
  const float* projection_bias;
  const Layer* layers;
};

// Windows of pieces. lengths: pieces of each window. ids, targets: of the pieces of all windows, one
// after the other. A piece goes to row `target` of the result, or nowhere if that is -1. seconds: the
// place in each window at which its second text begins; null for windows of one text.
struct Windows {
  int32_t n_windows;
  const int32_t* lengths;
  const int32_t* ids;
  const int32_t* targets;
  const int32_t* seconds;
};

// Changes with the types and functions of the interface, as in `library.py`.
EXPORT int32_t interface_version(void) { return 5; }

#if defined(__GNUC__) && defined(__x86_64__)

#include "attention.h"
#include "rows.h"
#include "vectors.h"

namespace {

// Rows that go through a layer together. Each step's activations stay in a cache of 1 MB (at a width
// of 384), and the layer's weights are read once for all of them.
constexpr int BLOCK = 96;
// The graph's lower bound of both forms of GELU.
constexpr float GELU_MINIMUM = -0.17005f;

// x times the normal distribution function, 1/2 + x P(t), t = 2 (x / 5.5)^2 - 1, for |x| <= 5.5,
// and 0 below. P is the polynomial with the smallest largest error. The result's is below 1e-6.
struct Gelu {
  static constexpr float minimum = GELU_MINIMUM;
  static INLINE __m512 pair(float constant, float linear, __m512 t) {
    return _mm512_fmadd_ps(set(linear), t, set(constant));
  }
  static INLINE __m512 apply(__m512 x) {
    const __m512 c = _mm512_max_ps(_mm512_min_ps(x, set(5.5f)), set(-5.5f));
    const __m512 t = _mm512_fmadd_ps(_mm512_mul_ps(c, c), set(2.f / 30.25f), set(-1.f));
    const __m512 t2 = _mm512_mul_ps(t, t), t4 = _mm512_mul_ps(t2, t2), t8 = _mm512_mul_ps(t4, t4);
    const __m512 p0 = pair(1.285519323e-01f, -6.417234528e-02f, t);
    const __m512 p1 = pair(4.773745074e-02f, -3.879241274e-02f, t);
    const __m512 p2 = pair(3.207371906e-02f, -2.605386902e-02f, t);
    const __m512 p3 = pair(2.033961938e-02f, -1.496374525e-02f, t);
    const __m512 p4 = pair(1.031212660e-02f, -6.929968746e-03f, t);
    const __m512 p5 = pair(4.477500025e-03f, -2.240162922e-03f, t);
    const __m512 p6 = pair(8.411683024e-04f, -6.733183447e-04f, t);
    const __m512 p7 = pair(5.920432733e-04f, -1.906505868e-04f, t);
    const __m512 q0 = _mm512_fmadd_ps(p1, t2, p0), q1 = _mm512_fmadd_ps(p3, t2, p2);
    const __m512 q2 = _mm512_fmadd_ps(p5, t2, p4), q3 = _mm512_fmadd_ps(p7, t2, p6);
    const __m512 p = _mm512_fmadd_ps(_mm512_fmadd_ps(q3, t4, q2), t8, _mm512_fmadd_ps(q1, t4, q0));
    const __mmask16 counts = _mm512_cmp_ps_mask(x, set(-5.5f), _CMP_NLT_UQ);
    return _mm512_maskz_mul_ps(counts, x, _mm512_fmadd_ps(c, p, set(0.5f)));
  }
};

// x (1 + tanh u) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct TanhGelu {
  static constexpr float minimum = GELU_MINIMUM;
  static INLINE __m512 apply(__m512 x) {
    const __m512 square = _mm512_mul_ps(x, x);
    const __m512 u2 = _mm512_mul_ps(
        _mm512_mul_ps(x, set(1.5957691216f)), _mm512_fmadd_ps(square, set(0.044715f), set(1.f)));
    const __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(u2)));
    // 1 / (1 + e^-|2u|) where u >= 0, e^-|2u| / (1 + e^-|2u|) elsewhere
    const __mmask16 below = _mm512_cmp_ps_mask(u2, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 part = _mm512_mask_mov_ps(set(1.f), below, e);
    return _mm512_mul_ps(x, _mm512_div_ps(part, _mm512_add_ps(e, set(1.f))));
  }
};

struct Relu {
  static constexpr float minimum = 0.f;
  static INLINE __m512 apply(__m512 x) { return _mm512_max_ps(x, _mm512_setzero_ps()); }
};

// Where the result of a product goes: over what is there, or added to it.
struct Overwrite {
  static INLINE void put(float* place, __m512 value) { _mm512_storeu_ps(place, value); }
};
struct Add {
  static INLINE void put(float* place, __m512 value) {
    _mm512_storeu_ps(place, _mm512_add_ps(value, _mm512_loadu_ps(place)));
  }
};

// GCC makes copies of the registers around the intrinsic.
INLINE void dot(__m512i& sum, __m512i activations, __m512i weights) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(activations), "v"(weights));
}

// N rows times a group of columns, from `column` on.
template <int N, class Put>
AVX512 void product_of_stripe(const uint8_t* rows, const float* scales, const Linear& linear,
                              int column, float* out) {
  const int n_in = linear.n_in;
  const int8_t* weight = linear.weight + (size_t)column * n_in;
  __m512i sums[N][4];
  UNROLL for (int j = 0; j < 4; ++j) {
    const __m512i start = _mm512_loadu_si512(linear.start + column + 16 * j);
    UNROLL for (int i = 0; i < N; ++i) sums[i][j] = start;
  }
  for (int k = 0; k < n_in; k += 4, weight += 4 * GROUP) {
    const __m512i w0 = _mm512_load_si512(weight), w1 = _mm512_load_si512(weight + 64);
    const __m512i w2 = _mm512_load_si512(weight + 128), w3 = _mm512_load_si512(weight + 192);
    UNROLL for (int i = 0; i < N; ++i) {
      int32_t four;
      memcpy(&four, rows + (size_t)i * n_in + k, 4);
      const __m512i activations = _mm512_set1_epi32(four);
      dot(sums[i][0], activations, w0);
      dot(sums[i][1], activations, w1);
      dot(sums[i][2], activations, w2);
      dot(sums[i][3], activations, w3);
    }
  }
  UNROLL for (int j = 0; j < 4; ++j) {
    const int at = column + 16 * j;
    const __m512 column_scales = _mm512_loadu_ps(linear.scales + at);
    const __m512 bias = _mm512_loadu_ps(linear.bias + at);
    UNROLL for (int i = 0; i < N; ++i) {
      const __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][j]), set(scales[i]));
      Put::put(out + (size_t)i * linear.n_out + at, _mm512_fmadd_ps(sum, column_scales, bias));
    }
  }
}

// rows: (n, n_in), rounded, with their scales. out: (n, n_out).
template <class Put>
AVX512 void product(const uint8_t* rows, const float* scales, int n, const Linear& linear,
                    float* out) {
  for (int column = 0; column < linear.n_out; column += GROUP) {
    int i = 0;
    for (; i + STRIPE <= n; i += STRIPE) {
      product_of_stripe<STRIPE, Put>(rows + (size_t)i * linear.n_in, scales + i, linear, column,
                                     out + (size_t)i * linear.n_out);
    }
    for (; i + 2 <= n; i += 2) {
      product_of_stripe<2, Put>(rows + (size_t)i * linear.n_in, scales + i, linear, column,
                                out + (size_t)i * linear.n_out);
    }
    if (i < n) {
      product_of_stripe<1, Put>(rows + (size_t)i * linear.n_in, scales + i, linear, column,
                                out + (size_t)i * linear.n_out);
    }
  }
}

// Round (n, width) rows to uint8: x * 127 / largest + 128. scales: the largest of each row.
AVX512 void round_rows(const float* x, int n, int width, uint8_t* out, float* scales) {
  for (int i = 0; i < n; ++i, x += width, out += width) {
    __m512 most = _mm512_setzero_ps();
    for (int j = 0; j < width; j += 16) {
      most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + j)));
    }
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 factor = set(largest > 0.f ? 127.f / largest : 0.f);
    scales[i] = largest;
    for (int j = 0; j < width; j += 16) {
      __m512i value = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + j), factor));
      value = _mm512_add_epi32(value, _mm512_set1_epi32(128));
      _mm_storeu_si128((__m128i*)(out + j), _mm512_cvtepi32_epi8(value));
    }
  }
}

// Apply an activation to (n, width) rows, and round them to uint8: (x - minimum) * 255 / largest.
// scales: the largest of each row.
template <class Activation>
AVX512 void activate_rows(float* x, int n, int width, uint8_t* out, float* scales) {
  const __m512 minimum = set(Activation::minimum);
  for (int i = 0; i < n; ++i, x += width, out += width) {
    __m512 most = _mm512_setzero_ps();
    for (int j = 0; j < width; j += 16) {
      const __m512 value = _mm512_sub_ps(Activation::apply(_mm512_loadu_ps(x + j)), minimum);
      _mm512_storeu_ps(x + j, value);
      most = _mm512_max_ps(most, value);
    }
    const float largest = _mm512_reduce_max_ps(most);
    const __m512 factor = set(largest > 0.f ? 255.f / largest : 0.f);
    scales[i] = largest;
    for (int j = 0; j < width; j += 16) {
      const __m512i value = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + j), factor));
      const __m512i above = _mm512_max_epi32(value, _mm512_setzero_si512());
      _mm_storeu_si128((__m128i*)(out + j), _mm512_cvtusepi32_epi8(above));
    }
  }
}

AVX512 void normalize(float* x, int n, int width, const Norm& norm, float epsilon) {
  for (int i = 0; i < n; ++i, x += width) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int j = 0; j < width; j += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + j));
    const __m512 mean = set(_mm512_reduce_add_ps(sum) / width);
    for (int j = 0; j < width; j += 16) {
      const __m512 difference = _mm512_sub_ps(_mm512_loadu_ps(x + j), mean);
      squares = _mm512_fmadd_ps(difference, difference, squares);
    }
    const __m512 factor = set(1.f / sqrtf(_mm512_reduce_add_ps(squares) / width + epsilon));
    for (int j = 0; j < width; j += 16) {
      const __m512 value =
          _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + j), mean), factor);
      _mm512_storeu_ps(x + j, _mm512_fmadd_ps(value, _mm512_loadu_ps(norm.weight + j),
                                              _mm512_loadu_ps(norm.bias + j)));
    }
  }
}

// Put 16 numbers, times scale, plus those of the position.
INLINE void put_embedding(__m512i numbers, __m512 scale, const float* position, float* out) {
  _mm512_storeu_ps(
      out, _mm512_fmadd_ps(_mm512_cvtepi32_ps(numbers), scale, _mm512_loadu_ps(position)));
}

// Embeddings of one window, before their normalization: (n, embedding_width). second: the place at
// which its second text begins.
AVX512 void embed(const Encoder& encoder, const int32_t* ids, int n, int second, float* out) {
  const int width = encoder.embedding_width, half = width / 2;
  for (int i = 0; i < n; ++i, out += width) {
    const float* table = i < second ? encoder.positions : encoder.second_positions;
    const float* positions = table + (size_t)i * width;
    const __m512 scale = set(encoder.piece_scales[ids[i]]);
    if (encoder.embedding_bits == 8) {
      const int8_t* piece = (const int8_t*)encoder.pieces + (size_t)ids[i] * width;
      for (int j = 0; j < width; j += 16) {
        const __m512i numbers = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(piece + j)));
        put_embedding(numbers, scale, positions + j, out + j);
      }
    } else {
      const uint8_t* piece = (const uint8_t*)encoder.pieces + (size_t)ids[i] * half;
      const __m512i eight = _mm512_set1_epi32(8), lower = _mm512_set1_epi32(15);
      for (int j = 0; j < half; j += 16) {
        const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(piece + j)));
        const __m512i left = _mm512_sub_epi32(_mm512_and_si512(pairs, lower), eight);
        const __m512i right = _mm512_sub_epi32(_mm512_srli_epi32(pairs, 4), eight);
        put_embedding(left, scale, positions + j, out + j);
        put_embedding(right, scale, positions + half + j, out + half + j);
      }
    }
  }
}

// Embeddings to hidden states, in float32 as in the graph. embedded: (n, embedding_width). out:
// (n, width).
AVX512 void project(const Encoder& encoder, const float* embedded, int n, float* out) {
  const int width = encoder.width, n_in = encoder.embedding_width;
  for (int at = 0; at < width; at += GROUP) {
    const float* packed = encoder.projection + (size_t)at * n_in;
    multiply_columns<GROUP / 16>(embedded, n, n_in, packed, GROUP, width, out + at);
  }
  for (int i = 0; i < n; ++i, out += width) {
    for (int j = 0; j < width; j += 16) {
      const __m512 bias = _mm512_loadu_ps(encoder.projection_bias + j);
      _mm512_storeu_ps(out + j, _mm512_add_ps(_mm512_loadu_ps(out + j), bias));
    }
  }
}

// Hands out parts of the caller's scratch memory, aligned to 64 bytes.
struct Scratch {
  char* start;
  size_t taken;
  template <class T>
  T* take(size_t count) {
    T* part = (T*)(start + taken);
    taken += (count * sizeof(T) + 63) & ~(size_t)63;
    return part;
  }
};

// The arrays of a block: see `encode`.
struct Block {
  float *embedded, *hidden, *projected, *attended, *inner, *scales, *scores;
  Cell* cells;
  uint8_t* rounded;
  Block(const Encoder& encoder, int longest, Scratch& scratch) {
    const size_t n = std::max(BLOCK, longest), padded = (longest + 15) & ~15;
    const size_t width = encoder.width, n_neurons = encoder.n_neurons;
    hidden = scratch.take<float>(n * width);
    embedded = encoder.projection ? scratch.take<float>(n * encoder.embedding_width) : hidden;
    projected = scratch.take<float>(n * 3 * width);
    attended = scratch.take<float>(n * width);
    inner = scratch.take<float>(n * n_neurons);
    scales = scratch.take<float>(n);
    cells = scratch.take<Cell>(3 * padded * (width / encoder.n_heads));
    scores = scratch.take<float>(STRIPE * padded);
    rounded = scratch.take<uint8_t>(n * std::max(width, n_neurons));
  }
};

int longest_of(const Windows& windows) {
  return *std::max_element(windows.lengths, windows.lengths + windows.n_windows);
}

// One layer. n: rows of the block. lengths: of its windows.
AVX512 void run_layer(const Encoder& encoder, const Layer& layer, const int32_t* lengths,
                      int n_windows, int n, const Block& block) {
  const int width = encoder.width, n_neurons = encoder.n_neurons;
  round_rows(block.hidden, n, width, block.rounded, block.scales);
  product<Overwrite>(block.rounded, block.scales, n, layer.attention_in, block.projected);
  const auto attend_window = encoder.bfloat16 ? attend<BFloat16> : attend<Float32>;
  for (int i = 0, row = 0; i < n_windows; row += lengths[i++]) {
    attend_window(block.projected + (size_t)row * 3 * width, lengths[i], width, encoder.n_heads,
                  block.cells, block.scores, block.attended + (size_t)row * width);
  }
  round_rows(block.attended, n, width, block.rounded, block.scales);
  product<Add>(block.rounded, block.scales, n, layer.attention_out, block.hidden);
  normalize(block.hidden, n, width, layer.attention_norm, encoder.epsilon);

  round_rows(block.hidden, n, width, block.rounded, block.scales);
  product<Overwrite>(block.rounded, block.scales, n, layer.up, block.inner);
  if (encoder.activation == 0) {
    activate_rows<Gelu>(block.inner, n, n_neurons, block.rounded, block.scales);
  } else if (encoder.activation == 1) {
    activate_rows<TanhGelu>(block.inner, n, n_neurons, block.rounded, block.scales);
  } else {
    activate_rows<Relu>(block.inner, n, n_neurons, block.rounded, block.scales);
  }
  product<Add>(block.rounded, block.scales, n, layer.down, block.hidden);
  normalize(block.hidden, n, width, layer.output_norm, encoder.epsilon);
}

}  // namespace

EXPORT int32_t supported(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

EXPORT int32_t supports_bfloat16(void) {
#if BFLOAT16
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return 0;
#endif
}

// Bytes of scratch memory that `encode` needs.
EXPORT uint64_t scratch_size(const Encoder* encoder, const Windows* windows) {
  Scratch scratch = {nullptr, 0};
  Block(*encoder, longest_of(*windows), scratch);
  return scratch.taken;
}

// Encode windows. scratch: aligned to 64 bytes. out: the last hidden states of the pieces that have
// a target, (n_targets, width).
EXPORT AVX512 void encode(const Encoder* encoder, const Windows* windows, char* scratch,
                          float* out) {
  const int width = encoder->width, embedding_width = encoder->embedding_width;
  Scratch memory = {scratch, 0};
  const Block block(*encoder, longest_of(*windows), memory);
  const int32_t *ids = windows->ids, *targets = windows->targets;
  for (int first = 0, last; first < windows->n_windows; first = last) {
    const int32_t* lengths = windows->lengths + first;
    int n = lengths[0];
    for (last = first + 1; last < windows->n_windows; ++last) {
      if (n + windows->lengths[last] > BLOCK) break;
      n += windows->lengths[last];
    }
    for (int i = 0, row = 0; i < last - first; row += lengths[i++]) {
      const int second = windows->seconds ? windows->seconds[first + i] : lengths[i];
      embed(*encoder, ids + row, lengths[i], second,
            block.embedded + (size_t)row * embedding_width);
    }
    normalize(block.embedded, n, embedding_width, encoder->embedding_norm, encoder->epsilon);
    if (encoder->projection) project(*encoder, block.embedded, n, block.hidden);
    for (int l = 0; l < encoder->n_layers; ++l) {
      run_layer(*encoder, encoder->layers[l], lengths, last - first, n, block);
    }
    for (int row = 0; row < n; ++row) {
      if (targets[row] >= 0) {
        memcpy(out + (size_t)targets[row] * width, block.hidden + (size_t)row * width,
               width * sizeof(float));
      }
    }
    ids += n;
    targets += n;
  }
}

// Sum the weighted rows of each token. rows: (n_rows, width). lengths: number of rows of each token.
// columns, weights: of these rows, grouped by token. out: (n_tokens, width).
EXPORT AVX512 void pool(const float* rows, int32_t width, int32_t n_tokens, const int32_t* lengths,
                        const int64_t* columns, const float* weights, float* out) {
  for (int t = 0; t < n_tokens; ++t, out += width) {
    for (int j = 0; j < width; j += GROUP) {
      sum_rows<GROUP / 16>(rows + j, width, columns, weights, lengths[t], out + j);
    }
    columns += lengths[t];
    weights += lengths[t];
  }
}

// x W^T, in float32. x: (n, n_in). weight: (n_out, n_in). packed: scratch of n_in times n_out, rounded
// up to 16, aligned to 64 bytes. out: (n, n_out).
EXPORT AVX512 void multiply_rows(const float* x, int32_t n, int32_t n_in, const float* weight,
                                 int32_t n_out, float* packed, float* out) {
  pack_columns(weight, n_in, n_out, packed);
  for (int at = 0; at < n_out; at += 64, packed += 64 * (size_t)n_in) {
    const int left = n_out - at;
    const auto multiply = left > 48   ? multiply_columns<4>
                          : left > 32 ? multiply_columns<3>
                          : left > 16 ? multiply_columns<2>
                                      : multiply_columns<1>;
    multiply(x, n, n_in, packed, left, n_out, out + at);
  }
}

#else

EXPORT int32_t supported(void) { return 0; }
EXPORT int32_t supports_bfloat16(void) { return 0; }
EXPORT uint64_t scratch_size(const Encoder*, const Windows*) { return 0; }
EXPORT void encode(const Encoder*, const Windows*, char*, float*) {}
EXPORT void pool(const float*, int32_t, int32_t, const int32_t*, const int64_t*, const float*,
                 float*) {}
EXPORT void multiply_rows(const float*, int32_t, int32_t, const float*, int32_t, float*, float*) {}

#endif
