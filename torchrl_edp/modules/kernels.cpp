// Kernels for CPUs: Mish with its derivative, and sampling of actions. kernels.py compiles this and defines LANES, the
// floats of one register: vectors of other lengths would live in memory.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

inline Vector splat(float x) { return x - Vector{}; }
inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }

// The same for the first `count` of them, others are 0.
inline Vector load(const float* from, int64_t count) {
  if (count == LANES) return load(from);
  Vector x = {};
  std::memcpy(&x, from, 4 * count);
  return x;
}

inline void store(float* to, Vector x, int64_t count) {
  if (count == LANES)
    store(to, x);
  else
    std::memcpy(to, &x, 4 * count);
}

// exp(x) for x from -87 to 20, beyond that of these: 2^k times a polynomial in what is left of x / ln 2, as in
// training/exponential.py.
inline Vector exponential(Vector x) {
  Vector scaled = x * 1.4426950408889634f;
  scaled = scaled < -125.0f ? splat(-125.0f) : scaled;
  scaled = scaled > 28.853900817779268f ? splat(28.853900817779268f) : scaled;
  Integers k = __builtin_convertvector(scaled + 128.5f, Integers) - 128;  // rounds down: the sum is positive
  Vector f = scaled - __builtin_convertvector(k, Vector);
  Vector power = f * 1.3276472072484874e-3f + 9.675541429987111e-3f;
  power = power * f + 5.5507132740786995e-2f;
  power = power * f + 0.24022119722080745f;
  power = power * f + 0.6931469670638869f;
  power = power * f + 1.0000000716550383f;
  return reinterpret_cast<Vector>(reinterpret_cast<Integers>(power) + (k << 23));
}

// x n / (n + 2) with n = e (e + 2), e = exp(x); above x = 20 it is x. Where x is not a number, neither is the result.
inline Vector mish(Vector x) {
  const Vector e = exponential(x), n = e * (e + 2.0f);
  return x * (n / (n + 2.0f));
}

// The same, and its derivative: n / (n + 2) + x 4 e (e + 1) / (n + 2)^2.
inline Vector mish(Vector x, Vector* derivative) {
  const Vector e = exponential(x), n = e * (e + 2.0f), reciprocal = 1.0f / (n + 2.0f), share = n * reciprocal;
  const Vector capped = x > 20.0f ? splat(20.0f) : x;  // there the second term is nothing
  *derivative = share + capped * (e * 4.0f * (e + 1.0f)) * (reciprocal * reciprocal);
  return x * share;
}

}  // namespace

// Adds its `bias` to each of `rows` rows [width] of x, takes Mish in place and, unless it is null, its derivative.
extern "C" void mish(float* x, const float* bias, float* derivative, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width >= 16384)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t i = 0; i < width; i += LANES) {
      const int64_t at = row * width + i, count = std::min<int64_t>(LANES, width - i);
      Vector slope, value = mish(load(x + at, count) + bias[row], &slope);
      store(x + at, value, count);
      if (derivative) store(derivative + at, slope, count);
    }
}

// Multiplies the gradient [rows, width] of its results by their derivative, in place; sums over rows are the biases'.
extern "C" void mish_gradient(float* gradient, float* sums, const float* derivative, int64_t rows, int64_t width,
                              int threads) {
#pragma omp parallel for num_threads(threads) if (rows * width >= 16384)
  for (int64_t row = 0; row < rows; row++) {
    Vector sum = {};
    for (int64_t i = 0; i < width; i += LANES) {
      const int64_t at = row * width + i, count = std::min<int64_t>(LANES, width - i);
      const Vector product = load(gradient + at, count) * load(derivative + at, count);
      store(gradient + at, product, count);
      sum += product;
    }
    sums[row] = 0;
    for (int lane = 0; lane < LANES; lane++) sums[row] += sum[lane];
  }
}

// Weights [outputs, inputs], their rows `stride` apart, and biases of a layer as `sample` reads them.
extern "C" void pack(const float* weight, const float* bias, float* packed, int64_t stride, int64_t inputs,
                     int64_t outputs, int threads) {
  const int64_t panels = (outputs + LANES - 1) / LANES, size = panels * LANES;
  std::fill_n(std::copy_n(bias, outputs, packed + size * inputs), size - outputs, 0.0f);
#pragma omp parallel for num_threads(threads) if (size * inputs >= 16384)
  for (int64_t row = 0; row < size; row++) {
    float* to = packed + row / LANES * LANES * inputs + row % LANES;
    for (int64_t i = 0; i < inputs; i++) to[i * LANES] = row < outputs ? weight[row * stride + i] : 0.0f;
  }
}

// Sampling: an MLP with Mish, called at every step of a solver. Rows do not depend on each other, so a thread takes some
// of them through all calls and layers: nothing waits for another thread and what a layer gives stays in the cache.
// Weights come in panels of LANES outputs, [panel][input][LANE], biases and activations in rows padded by zeros to whole
// panels. See fused.py for what calls it.
namespace {

constexpr int64_t BLOCK = 32;  // most rows that a thread takes at a time
// of a tile, whose sums are kept in registers; AVX2 has 16 of them, others 32
constexpr int ROWS = LANES == 8 ? 4 : 8, PANELS = 2;

inline int64_t padded(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

struct Layer {
  int64_t inputs, outputs;
  const float *weight, *bias;
};

// `height` rows by `width` panels of a layer's outputs; `shares` are rows to add before the activation, or null.
template <int height, int width, bool activate>
inline void tile(const Layer& layer, int64_t panel, const float* input, int64_t stride, const float* const* shares,
                 float* output) {
  const int64_t first = panel * LANES, out_stride = padded(layer.outputs);
  const float* weight = layer.weight + first * layer.inputs;
  Vector sums[height][width];
#pragma GCC unroll 8
  for (int row = 0; row < height; row++)
#pragma GCC unroll 2
    for (int column = 0; column < width; column++) {
      sums[row][column] = load(layer.bias + first + column * LANES);
      if (shares) sums[row][column] += load(shares[row] + first + column * LANES);
    }
  for (int64_t i = 0; i < layer.inputs; i++) {
    Vector weights[width];
#pragma GCC unroll 2
    for (int column = 0; column < width; column++) weights[column] = load(weight + (column * layer.inputs + i) * LANES);
#pragma GCC unroll 8
    for (int row = 0; row < height; row++) {
      const Vector value = splat(input[row * stride + i]);
#pragma GCC unroll 2
      for (int column = 0; column < width; column++) sums[row][column] += value * weights[column];
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < height; row++)
#pragma GCC unroll 2
    for (int column = 0; column < width; column++) {
      const Vector sum = sums[row][column];
      store(output + row * out_stride + first + column * LANES, activate ? mish(sum) : sum);
    }
}

// All rows from `row` on, as many at a time as are left.
template <int height, int width, bool activate>
inline void panels(const Layer& layer, int64_t panel, int64_t row, int64_t rows, const float* input, int64_t stride,
                   const float* const* shares, float* output) {
  for (; row + height <= rows; row += height)
    tile<height, width, activate>(layer, panel, input + row * stride, stride, shares ? shares + row : nullptr,
                                  output + row * padded(layer.outputs));
  if constexpr (height > 1)
    panels<height / 2, width, activate>(layer, panel, row, rows, input, stride, shares, output);
}

template <bool activate>
void apply(const Layer& layer, int64_t rows, const float* input, int64_t stride, const float* const* shares,
           float* output) {
  const int64_t count = padded(layer.outputs) / LANES;
  int64_t panel = 0;
  for (; panel + PANELS <= count; panel += PANELS)
    panels<ROWS, PANELS, activate>(layer, panel, 0, rows, input, stride, shares, output);
  for (; panel < count; panel++) panels<ROWS, 1, activate>(layer, panel, 0, rows, input, stride, shares, output);
}

}  // namespace

// Args: noise [rows, A]; shares [share_rows, H], those of the observations in the first layer, repeated for further rows;
// step_biases [calls, H], those of the steps; network: weight and bias of all layers of `widths`, one after the other
// (the first one's bias is not read); table [calls + 1, calls + 3]: a row has the share of the noise and of every clean
// action in what the network is given (last row: in the result), then that of the network's input and output in the
// clean action; bounds [2, A]; actions [rows, A], the result. H is padded.
extern "C" void sample(const float* noise, const float* shares, const float* step_biases, const float* network,
                       const float* table, const float* bounds, float* actions, const int64_t* widths, int64_t layers,
                       int64_t calls, int64_t rows, int64_t share_rows, int threads) {
  if (rows == 0) return;
  const int64_t size = widths[0], stride = padded(size), hidden = padded(widths[1]), columns = calls + 3;
  std::vector<Layer> stack(layers);
  int64_t widest = 0;
  for (int64_t i = 0; i < layers; i++) {
    const float* bias = network + widths[i] * padded(widths[i + 1]);
    stack[i] = {widths[i], widths[i + 1], network, bias};
    network = bias + padded(widths[i + 1]);
    widest = std::max(widest, padded(widths[i + 1]));
  }
  const int64_t rounds = (rows + threads * BLOCK - 1) / (threads * BLOCK);  // blocks of each thread
  const int64_t block = (rows + threads * rounds - 1) / (threads * rounds);
  const int64_t history = block * stride;  // of one vector per row
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> memory(2 * block * widest + (calls + 2) * history);
    float *one = memory.data(), *other = one + block * widest;
    float *start = other + block * widest, *input = start + history, *clean = input + history;
    const float* own[BLOCK];
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < rows; first += block) {
      const int64_t count = std::min(block, rows - first);
      for (int64_t row = 0; row < count; row++) {
        std::copy_n(noise + (first + row) * size, size, start + row * stride);
        own[row] = shares + (first + row) % share_rows * hidden;
      }
      for (int64_t call = 0;; call++) {
        const float* line = table + call * columns;
        for (int64_t i = 0; i < count * stride; i += LANES) {
          Vector sum = line[0] * load(start + i);
          for (int64_t past = 0; past < call; past++)
            if (line[1 + past] != 0) sum += line[1 + past] * load(clean + past * history + i);
          store(input + i, sum);
        }
        if (call == calls) break;
        float *from = one, *to = other;
        Layer entry = stack[0];
        entry.bias = step_biases + call * hidden;
        apply<true>(entry, count, input, stride, own, from);
        for (int64_t i = 1; i < layers; i++) {
          const int64_t width = padded(widths[i]);
          if (i + 1 < layers)
            apply<true>(stack[i], count, from, width, nullptr, to);
          else
            apply<false>(stack[i], count, from, width, nullptr, to);
          std::swap(from, to);
        }
        for (int64_t row = 0; row < count; row++)
          for (int64_t i = 0; i < size; i++) {
            const int64_t at = row * stride + i;
            float value = line[calls + 1] * input[at] + line[calls + 2] * from[at];
            value = value < bounds[i] ? bounds[i] : value;
            clean[call * history + at] = value > bounds[size + i] ? bounds[size + i] : value;
          }
      }
      for (int64_t row = 0; row < count; row++)
        std::copy_n(input + row * stride, size, actions + (first + row) * size);
    }
  }
}
