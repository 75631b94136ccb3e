// BatchNorm in train mode, fused with a shortcut's sum and ReLU. It goes over memory twice in the forward pass and
// twice in the backward pass, where torch's operations do so five and seven times. Feature maps are bfloat16 and
// channels_last: rows are pixels, columns are channels. Sums are float within a block of rows and double over blocks.
// NaN stays NaN: the code looks at bits, because FLAGS (build.py) let the compiler drop comparisons with NaN.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

// Rows of a block. A product of two bfloat16 has 16 bits, and a sum of 256 of them has eight more. Where a channel's
// mean is large against its deviation, all products have one exponent, and a float's 24 bits hold their sum exactly.
constexpr int64_t BLOCK = 256;
constexpr int64_t COLUMNS = 128;  // rows are joined in pairs until they are as long: more sums run in parallel

struct Sizes {
    int64_t parts, rows, channels, threads;  // statistics are computed per part; `rows` counts the pixels of one part
    double epsilon;
};

struct Forward {
    const uint16_t *x, *shortcut;  // (parts x rows, channels); shortcut may be null
    uint16_t* y;
    const float *weight, *bias;  // (channels)
    float *mean, *variance;      // (parts, channels), written
    int64_t relu;
    Sizes sizes;
};

struct Backward {
    const uint16_t *x, *y, *grad;      // y is null without ReLU
    uint16_t *grad_x, *grad_shortcut;  // grad_shortcut is null without a shortcut
    const float *weight, *mean, *variance;
    float *grad_weight, *grad_bias;
    Sizes sizes;
};

inline float to_float(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint16_t to_bfloat16(float x) {  // rounds to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : nearest;
}

inline bool positive(uint16_t half) { return int16_t(half) > 0; }

// The factor of a channel.
inline double slope_of(float weight, float variance, double epsilon) { return weight / std::sqrt(variance + epsilon); }

// The rows of one part, several joined where they are short, and the memory of its threads.
struct Part {
    int64_t rows, channels, columns, threads;
    std::vector<float> sums;      // (threads, 2, columns), of a block
    std::vector<double> totals;   // the same, of all blocks
    std::vector<float> constant;  // (4, columns): constants of each channel, repeated like its pixels

    explicit Part(const Sizes& s) : rows(s.rows), channels(s.channels), columns(s.channels), threads(s.threads) {
        while (columns < COLUMNS && rows % 2 == 0) columns *= 2, rows /= 2;
        sums.resize(threads * 2 * columns);
        totals.resize(threads * 2 * columns);
        constant.resize(4 * columns);
    }

    void set(int index, int64_t channel, float value) {
        for (int64_t c = channel; c < columns; c += channels) constant[index * columns + c] = value;
    }

    // Calls each(row, thread) for all rows, and done(thread) after each block.
    template <class Row, class Done>
    void walk(Row each, Done done) {
        const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int64_t t = 0; t < threads; t++)
            for (int64_t b = blocks * t / threads; b < blocks * (t + 1) / threads; b++) {
                for (int64_t r = b * BLOCK; r < std::min(rows, (b + 1) * BLOCK); r++) each(r, t);
                done(t);
            }
    }

    // Sums over rows what each(row, first, second) adds to two runs of columns.
    template <class Row>
    void sum(Row each) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        std::fill(totals.begin(), totals.end(), 0.0);
        const int64_t both = 2 * columns;
        walk([&](int64_t r, int64_t t) { each(r, &sums[t * both], &sums[t * both + columns]); },
             [&](int64_t t) {
                 for (int64_t c = t * both; c < (t + 1) * both; c++) totals[c] += sums[c], sums[c] = 0;
             });
    }

    double total(int index, int64_t channel) const {
        double result = 0;
        for (int64_t t = 0; t < threads; t++)
            for (int64_t c = channel; c < columns; c += channels) result += totals[(2 * t + index) * columns + c];
        return result;
    }
};

template <bool RELU, bool SHORTCUT>
void forward(const Forward& f) {
    const uint16_t *x = f.x, *shortcut = f.shortcut;
    uint16_t* y = f.y;
    const float *weight = f.weight, *bias = f.bias;
    float *mean = f.mean, *variance = f.variance;
    const Sizes& sizes = f.sizes;
    Part part(sizes);
    const int64_t columns = part.columns, pixels = sizes.rows;
    float *scale = part.constant.data(), *shift = scale + columns;
    for (int64_t p = 0; p < sizes.parts; p++) {
        part.sum([&](int64_t r, float* first, float* second) {
            const uint16_t* row = x + r * columns;
#pragma omp simd
            for (int64_t c = 0; c < columns; c++) {
                const float pixel = to_float(row[c]);
                first[c] += pixel;
                second[c] += pixel * pixel;
            }
        });
        for (int64_t c = 0; c < part.channels; c++) {
            const double centre = part.total(0, c) / pixels;
            mean[c] = float(centre);
            variance[c] = float(std::abs(part.total(1, c) / pixels - centre * centre));  // max(0, x) could turn NaN into 0
        }
        for (int64_t c = 0; c < part.channels; c++) {
            const double slope = slope_of(weight[c], variance[c], sizes.epsilon);
            part.set(0, c, float(slope));
            part.set(1, c, float(bias[c] - slope * mean[c]));
        }
        part.walk(
            [&](int64_t r, int64_t) {
                const uint16_t *row = x + r * columns, *other = SHORTCUT ? shortcut + r * columns : nullptr;
                uint16_t* out = y + r * columns;
#pragma omp simd
                for (int64_t c = 0; c < columns; c++) {
                    float value = to_float(row[c]) * scale[c] + shift[c];
                    if (SHORTCUT) value += to_float(other[c]);
                    const uint16_t half = to_bfloat16(value);
                    out[c] = RELU && int16_t(half) < 0 ? 0 : half;
                }
            },
            [](int64_t) {});
        const int64_t size = pixels * part.channels;
        x += size, y += size, mean += part.channels, variance += part.channels;
        if (SHORTCUT) shortcut += size;
    }
}

template <bool RELU, bool SHORTCUT>
void backward(const Backward& b) {
    const uint16_t *x = b.x, *y = b.y, *grad = b.grad;
    uint16_t *grad_x = b.grad_x, *grad_shortcut = b.grad_shortcut;
    const float *weight = b.weight, *mean = b.mean, *variance = b.variance;
    const Sizes& sizes = b.sizes;
    Part part(sizes);
    const int64_t columns = part.columns, pixels = sizes.rows;
    float *centre = part.constant.data(), *slope = centre + columns, *tilt = slope + columns, *offset = tilt + columns;
    std::vector<double> weight_sum(part.channels), bias_sum(part.channels);
    for (int64_t p = 0; p < sizes.parts; p++) {
        for (int64_t c = 0; c < part.channels; c++) part.set(0, c, mean[c]);
        part.sum([&](int64_t r, float* first, float* second) {
            const uint16_t *x_row = x + r * columns, *y_row = RELU ? y + r * columns : nullptr, *grad_row = grad + r * columns;
            uint16_t* shortcut_row = SHORTCUT ? grad_shortcut + r * columns : nullptr;
#pragma omp simd
            for (int64_t c = 0; c < columns; c++) {
                const uint16_t half = !RELU || positive(y_row[c]) ? grad_row[c] : 0;
                if (SHORTCUT) shortcut_row[c] = half;
                first[c] += to_float(half);
                second[c] += to_float(half) * (to_float(x_row[c]) - centre[c]);
            }
        });
        for (int64_t c = 0; c < part.channels; c++) {
            const double inverse = slope_of(1, variance[c], sizes.epsilon), scale = slope_of(weight[c], variance[c], sizes.epsilon);
            bias_sum[c] += part.total(0, c);
            weight_sum[c] += part.total(1, c) * inverse;
            part.set(1, c, float(scale));
            part.set(2, c, float(-scale * inverse * inverse * part.total(1, c) / pixels));
            part.set(3, c, float(-scale * part.total(0, c) / pixels));
        }
        part.walk(
            [&](int64_t r, int64_t) {
                const uint16_t *x_row = x + r * columns, *y_row = RELU && !SHORTCUT ? y + r * columns : nullptr;
                const uint16_t* grad_row = (SHORTCUT ? grad_shortcut : grad) + r * columns;  // of the shortcut: ReLU is applied already
                uint16_t* grad_x_row = grad_x + r * columns;
#pragma omp simd
                for (int64_t c = 0; c < columns; c++) {
                    const float g = !RELU || SHORTCUT || positive(y_row[c]) ? to_float(grad_row[c]) : 0;
                    grad_x_row[c] = to_bfloat16(g * slope[c] + (to_float(x_row[c]) - centre[c]) * tilt[c] + offset[c]);
                }
            },
            [](int64_t) {});
        const int64_t size = pixels * part.channels;
        x += size, grad += size, grad_x += size, mean += part.channels, variance += part.channels;
        if (SHORTCUT) grad_shortcut += size;
        if (RELU) y += size;
    }
    std::copy(weight_sum.begin(), weight_sum.end(), b.grad_weight);
    std::copy(bias_sum.begin(), bias_sum.end(), b.grad_bias);
}

}  // namespace

// Both return 0, or 1 if memory ran out.
extern "C" int norm_forward(Forward f) {
    try {
        const auto run = f.relu ? (f.shortcut ? forward<true, true> : forward<true, false>)
                                : (f.shortcut ? forward<false, true> : forward<false, false>);
        run(f);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

extern "C" int norm_backward(Backward b) {
    try {
        const auto run = b.y ? (b.grad_shortcut ? backward<true, true> : backward<true, false>)
                             : (b.grad_shortcut ? backward<false, true> : backward<false, false>);
        run(b);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
