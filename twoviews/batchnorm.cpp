// BatchNorm in train mode and what follows it, a shortcut's sum and ReLU, as one piece: two passes over memory forward and two backward,
// where torch's operations take five and seven. Maps are bfloat16 and channels_last: rows are pixels, columns channels. Sums are float
// within a block of rows, double over blocks. What was NaN stays NaN: bits say so, not comparisons, which FLAGS let the compiler drop.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

// Rows of a block. A product of two bfloat16 has 16 bits, and a sum of 256 of them eight more: where a channel lies far from zero, so that
// its mean's square is to be taken away from the mean of squares, they have one exponent, and a float's 24 bits hold the sum exactly.
constexpr int64_t BLOCK = 256;
constexpr int64_t COLUMNS = 128;  // a row is made as wide, where rows pair up: so many sums wait for each other less

struct Sizes {
    int64_t parts, rows, channels, threads;  // statistics are those of each part; rows of a part
    double epsilon;
};

inline float wide(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint16_t narrow(float x) {  // to the nearest, of two to the even one
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : nearest;
}

inline bool positive(uint16_t half) { return int16_t(half) > 0; }

// What a channel is multiplied by.
inline double slope_of(float weight, float variance, double epsilon) { return weight / std::sqrt(variance + epsilon); }

// One part's rows, several side by side where they are narrow, and what its threads need.
struct Part {
    int64_t rows, channels, columns, threads;
    std::vector<float> sums;      // (threads, 2, columns), of a block
    std::vector<double> totals;   // the same, of all blocks
    std::vector<float> constant;  // (4, columns), a channel's numbers side by side as its pixels are

    explicit Part(const Sizes& s) : rows(s.rows), channels(s.channels), columns(s.channels), threads(s.threads) {
        while (columns < COLUMNS && rows % 2 == 0) columns *= 2, rows /= 2;
        sums.resize(threads * 2 * columns);
        totals.resize(threads * 2 * columns);
        constant.resize(4 * columns);
    }

    void set(int which, int64_t channel, float value) {
        for (int64_t c = channel; c < columns; c += channels) constant[which * columns + c] = value;
    }

    // Every thread's blocks of rows: each(row, thread), and after each block done(thread).
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

    // The sums over rows of the two numbers that each(row, first, second) adds to runs of columns.
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

    double total(int which, int64_t channel) const {
        double all = 0;
        for (int64_t t = 0; t < threads; t++)
            for (int64_t c = channel; c < columns; c += channels) all += totals[(2 * t + which) * columns + c];
        return all;
    }
};

template <bool RELU, bool SHORTCUT>
void forward(const uint16_t* x, const uint16_t* shortcut, uint16_t* y, const float* weight, const float* bias, float* mean,
             float* variance, bool known, const Sizes& sizes) {
    Part part(sizes);
    const int64_t columns = part.columns, pixels = sizes.rows;
    float *scale = part.constant.data(), *shift = scale + columns;
    for (int64_t p = 0; p < sizes.parts; p++) {
        if (!known) {
            part.sum([&](int64_t r, float* first, float* second) {
                const uint16_t* row = x + r * columns;
#pragma omp simd
                for (int64_t c = 0; c < columns; c++) {
                    const float pixel = wide(row[c]);
                    first[c] += pixel;
                    second[c] += pixel * pixel;
                }
            });
            for (int64_t c = 0; c < part.channels; c++) {
                const double centre = part.total(0, c) / pixels;
                mean[c] = float(centre);
                variance[c] = float(std::abs(part.total(1, c) / pixels - centre * centre));  // a maximum with zero could make zero of NaN
            }
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
                    float value = wide(row[c]) * scale[c] + shift[c];
                    if (SHORTCUT) value += wide(other[c]);
                    const uint16_t half = narrow(value);
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
void backward(const uint16_t* x, const uint16_t* y, const uint16_t* grad, uint16_t* grad_x, uint16_t* grad_shortcut, const float* weight,
              const float* mean, const float* variance, float* grad_weight, float* grad_bias, const Sizes& sizes) {
    Part part(sizes);
    const int64_t columns = part.columns, pixels = sizes.rows;
    float *centre = part.constant.data(), *slope = centre + columns, *along = slope + columns, *level = along + columns;
    std::vector<double> of_weight(part.channels), of_bias(part.channels);
    for (int64_t p = 0; p < sizes.parts; p++) {
        for (int64_t c = 0; c < part.channels; c++) part.set(0, c, mean[c]);
        part.sum([&](int64_t r, float* first, float* second) {
            const uint16_t *row = x + r * columns, *made = RELU ? y + r * columns : nullptr, *from = grad + r * columns;
            uint16_t* passed = SHORTCUT ? grad_shortcut + r * columns : nullptr;
#pragma omp simd
            for (int64_t c = 0; c < columns; c++) {
                const uint16_t half = !RELU || positive(made[c]) ? from[c] : 0;
                if (SHORTCUT) passed[c] = half;
                first[c] += wide(half);
                second[c] += wide(half) * (wide(row[c]) - centre[c]);
            }
        });
        for (int64_t c = 0; c < part.channels; c++) {
            const double inverse = slope_of(1, variance[c], sizes.epsilon), rate = slope_of(weight[c], variance[c], sizes.epsilon);
            of_bias[c] += part.total(0, c);
            of_weight[c] += part.total(1, c) * inverse;
            part.set(1, c, float(rate));
            part.set(2, c, float(-rate * inverse * inverse * part.total(1, c) / pixels));
            part.set(3, c, float(-rate * part.total(0, c) / pixels));
        }
        part.walk(
            [&](int64_t r, int64_t) {
                const uint16_t *row = x + r * columns, *made = RELU && !SHORTCUT ? y + r * columns : nullptr;
                const uint16_t* from = (SHORTCUT ? grad_shortcut : grad) + r * columns;  // a shortcut's has been through ReLU
                uint16_t* by_x = grad_x + r * columns;
#pragma omp simd
                for (int64_t c = 0; c < columns; c++) {
                    const float g = !RELU || SHORTCUT || positive(made[c]) ? wide(from[c]) : 0;
                    by_x[c] = narrow(g * slope[c] + (wide(row[c]) - centre[c]) * along[c] + level[c]);
                }
            },
            [](int64_t) {});
        const int64_t size = pixels * part.channels;
        x += size, grad += size, grad_x += size, mean += part.channels, variance += part.channels;
        if (SHORTCUT) grad_shortcut += size;
        if (RELU) y += size;
    }
    std::copy(of_weight.begin(), of_weight.end(), grad_weight);
    std::copy(of_bias.begin(), of_bias.end(), grad_bias);
}

}  // namespace

// x, y and a shortcut or none: (parts x rows, channels); mean and variance: (parts, channels), read where they are known and written where
// not. 1 where memory ended.
extern "C" int norm_forward(const uint16_t* x, const uint16_t* shortcut, uint16_t* y, const float* weight, const float* bias, float* mean,
                            float* variance, int64_t relu, int64_t known, Sizes sizes) {
    try {
        const auto run = relu ? (shortcut ? forward<true, true> : forward<true, false>)
                              : (shortcut ? forward<false, true> : forward<false, false>);
        run(x, shortcut, y, weight, bias, mean, variance, known != 0, sizes);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// y is none where there was no ReLU, grad_shortcut none where there was no shortcut; grad_x may be grad.
extern "C" int norm_backward(const uint16_t* x, const uint16_t* y, const uint16_t* grad, uint16_t* grad_x, uint16_t* grad_shortcut,
                             const float* weight, const float* mean, const float* variance, float* grad_weight,
                             float* grad_bias, Sizes sizes) {
    try {
        const auto run = y ? (grad_shortcut ? backward<true, true> : backward<true, false>)
                              : (grad_shortcut ? backward<false, true> : backward<false, false>);
        run(x, y, grad, grad_x, grad_shortcut, weight, mean, variance, grad_weight, grad_bias, sizes);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
