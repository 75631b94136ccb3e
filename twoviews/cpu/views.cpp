// The views of a batch on a CPU: one image at a time, so that it stays in cache, and only the operations that it needs.
// The arithmetic is that of views/ops.py, which explains it; tests compare both in float64. The random numbers come
// from Python.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

struct Geometry {
    int64_t channels, height, width, size, blur, cubic;  // of an image; side of a view; taps of the Gaussian; bicubic crops
};

// The parameters of all images: an entry per image, of `operations` four, in the order in which they are applied.
template <typename T>
struct Params {
    const T *top, *left, *height, *width, *flip;
    const int64_t* operations;
    const T *brightness, *contrast, *saturation, *hue, *gray, *sigma, *solarize;
};

enum { B, C, S, H };  // brightness, contrast, saturation, hue

// Bilinear or bicubic with antialias along one axis: which pixels make an output, and with what weights.
template <typename T>
struct Resampler {
    std::vector<int64_t> first, count;
    std::vector<T> weight;  // (size, source)
    int64_t source, cubic;

    Resampler(int64_t size, int64_t source, int64_t cubic)
        : first(size), count(size), weight(size * source), source(source), cubic(cubic) {}

    T tap(T x) const {
        if (!cubic) return 1 - x;
        return x < 1 ? (T(1.5) * x - T(2.5)) * x * x + 1 : ((T(-0.5) * x + T(2.5)) * x - 4) * x + 2;
    }

    void set_crop(T start, T length, bool reverse) {
        const int64_t size = first.size();
        const T scale = length / size, unit = std::max(scale, T(1)), support = cubic ? 2 : 1, reach = support * unit;
        for (int64_t o = 0; o < size; o++) {
            const T centre = start + ((reverse ? size - 1 - o : o) + T(0.5)) * scale;
            const int64_t low = std::max<int64_t>(int64_t(start), int64_t(std::floor(centre - reach)));
            const int64_t high = std::min<int64_t>(int64_t(start + length), int64_t(std::ceil(centre + reach)) + 1);
            T* w = &weight[o * source];
            T sum = 0;
            int64_t begin = -1, n = 0;
            for (int64_t p = low; p < high; p++) {
                const T distance = std::abs(p + T(0.5) - centre) / unit;
                if (distance >= support) continue;
                if (begin < 0) begin = p;
                w[n++] = tap(distance);
                sum += w[n - 1];
            }
            for (int64_t k = 0; k < n; k++) w[k] /= sum;
            first[o] = begin;
            count[o] = n;
        }
    }
};

// out = the weighted sum of `taps` neighbouring runs of n values. One loop adds the first two: an enlarged crop needs no more.
template <typename T>
void mix(T* __restrict out, const T* __restrict from, int64_t stride, const T* weight, int64_t taps, int64_t n) {
    const T first = weight[0];
    if (taps == 1) {
        for (int64_t i = 0; i < n; i++) out[i] = first * from[i];
        return;
    }
    const T second = weight[1];
    const T* __restrict next = from + stride;
    for (int64_t i = 0; i < n; i++) out[i] = first * from[i] + second * next[i];
    for (int64_t k = 2; k < taps; k++)
        for (int64_t i = 0; i < n; i++) out[i] += weight[k] * from[k * stride + i];
}

// (rows, columns) to (columns, rows), in blocks whose loops have a fixed length, which a compiler can unroll.
template <typename T>
void transpose(const T* __restrict from, T* __restrict to, int64_t rows, int64_t columns) {
    constexpr int64_t SIDE = 8;
    for (int64_t r = 0; r < rows; r += SIDE)
        for (int64_t c = 0; c < columns; c += SIDE) {
            const T* in = from + r * columns + c;
            T* out = to + c * rows + r;
            if (r + SIDE <= rows && c + SIDE <= columns) {
                for (int64_t i = 0; i < SIDE; i++)
                    for (int64_t j = 0; j < SIDE; j++) out[i * rows + j] = in[j * columns + i];
            } else {
                for (int64_t i = 0; i < std::min(SIDE, columns - c); i++)
                    for (int64_t j = 0; j < std::min(SIDE, rows - r); j++) out[i * rows + j] = in[j * columns + i];
            }
        }
}

template <typename T>
struct Worker {
    Geometry s;
    const Params<T> params;
    const T *mean, *deviation;
    int64_t n;  // pixels of a view
    Resampler<T> rows, cols;
    std::vector<T> image, cut, turned, planes, other, gaussian;

    Worker(Geometry s, const Params<T>& params, const T* mean, const T* deviation)
        : s(s), params(params), mean(mean), deviation(deviation), n(s.size * s.size),
          rows(s.size, s.height, s.cubic), cols(s.size, s.width, s.cubic), image(s.channels * s.height * s.width),
          cut(s.channels * s.size * s.width), turned(cut.size()), planes(s.channels * n), other(planes.size()), gaussian(s.blur) {}

    T* plane(int64_t c) { return &planes[c * n]; }

    // Leaves the planes transposed, (C, x, y): each column of the crop is then a run of neighbours in memory.
    void crop(const uint8_t* in, int64_t index) {
        for (size_t i = 0; i < image.size(); i++) image[i] = T(in[i]) / 255;
        rows.set_crop(params.top[index], params.height[index], false);
        cols.set_crop(params.left[index], params.width[index], params.flip[index] > 0);
        const int64_t lines = s.channels * s.size;
        for (int64_t c = 0; c < s.channels; c++)
            for (int64_t y = 0; y < s.size; y++) {
                const T* from = &image[(c * s.height + rows.first[y]) * s.width];
                mix(&cut[(c * s.size + y) * s.width], from, s.width, &rows.weight[y * s.height], rows.count[y], s.width);
            }
        transpose(cut.data(), turned.data(), lines, s.width);
        for (int64_t c = 0; c < s.channels; c++)
            for (int64_t x = 0; x < s.size; x++) {
                const T* from = &turned[cols.first[x] * lines + c * s.size];
                mix(plane(c) + x * s.size, from, lines, &cols.weight[x * s.width], cols.count[x], s.size);
            }
        if (s.cubic)
            for (T& v : planes) v = std::max(std::min(v, T(1)), T(0));
    }

    void gray(T* out) {
        if (s.channels == 3) {
            const T *r = plane(0), *g = plane(1), *b = plane(2);
            for (int64_t i = 0; i < n; i++) out[i] = T(0.2989) * r[i] + T(0.587) * g[i] + T(0.114) * b[i];
            return;
        }
        for (int64_t i = 0; i < n; i++) {
            out[i] = 0;
            for (int64_t c = 0; c < s.channels; c++) out[i] += plane(c)[i] / s.channels;
        }
    }

    void jitter(int64_t op, int64_t index) {
        if (op == H) return hue(params.hue[index]);
        const T f = (op == B ? params.brightness : op == C ? params.contrast : params.saturation)[index];
        if (f == 1) return;
        if (op == B) {
            for (T& v : planes) v = std::min(f * v, T(1));
            return;
        }
        T* rest = other.data();
        gray(rest);
        if (op == C) {
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < n; i++) sum += rest[i];
            std::fill(rest, rest + n, sum / n);
        }
        for (int64_t c = 0; c < s.channels; c++) {
            T* p = plane(c);
            for (int64_t i = 0; i < n; i++) p[i] = std::max(std::min(f * p[i] + (1 - f) * rest[i], T(1)), T(0));
        }
    }

    void hue(T shift) {
        if (shift == 0) return;
        T *__restrict red = plane(0), *__restrict green = plane(1), *__restrict blue = plane(2);
        for (int64_t i = 0; i < n; i++) {
            const T r = red[i], g = green[i], b = blue[i];
            const T top = std::max(std::max(r, g), b), spread = top - std::min(std::min(r, g), b);
            const T inverse = 1 / std::max(spread, T(1e-20));
            const T angle = (top == r ? (g - b) * inverse : top == g ? 2 + (b - r) * inverse : 4 + (r - g) * inverse) + 6 * shift;
            const auto turn = [=](T k) {
                k -= 6 * std::floor(k * T(1. / 6));
                return top - spread * std::max(std::min(std::min(k, 4 - k), T(1)), T(0));
            };
            red[i] = turn(angle + 5);
            green[i] = turn(angle + 3);
            blue[i] = turn(angle + 1);
        }
    }

    int64_t reflect(int64_t i) const { return i < 0 ? -i : i >= s.size ? 2 * (s.size - 1) - i : i; }

    void blur(T sigma) {
        const int64_t radius = s.blur / 2;
        T sum = 0;
        sigma = std::max(sigma, T(1e-3));
        for (int64_t k = 0; k < s.blur; k++) {
            gaussian[k] = std::exp(T(-0.5) * (k - radius) * (k - radius) / (sigma * sigma));
            sum += gaussian[k];
        }
        for (T& w : gaussian) w /= sum;
        std::fill(other.begin(), other.end(), T(0));
        for (int64_t line = 0; line < s.channels * s.size; line++) {  // along y
            const T* from = &planes[line * s.size];
            for (int64_t k = 0; k < s.blur; k++)
                for (int64_t y = 0; y < s.size; y++) other[line * s.size + y] += gaussian[k] * from[reflect(y + k - radius)];
        }
        std::fill(planes.begin(), planes.end(), T(0));
        for (int64_t c = 0; c < s.channels; c++)  // along x
            for (int64_t x = 0; x < s.size; x++)
                for (int64_t k = 0; k < s.blur; k++) {
                    const T* from = &other[c * n + reflect(x + k - radius) * s.size];
                    T* to = plane(c) + x * s.size;
                    for (int64_t y = 0; y < s.size; y++) to[y] += gaussian[k] * from[y];
                }
    }

    void view(const uint8_t* in, int64_t index, T* out) {
        crop(in, index);
        for (int i = 0; i < 4; i++) jitter(params.operations[4 * index + i], index);
        if (params.gray[index] > 0) {
            gray(other.data());
            for (int64_t c = 0; c < s.channels; c++) std::copy_n(other.data(), n, plane(c));
        }
        if (params.sigma[index] > 0) blur(params.sigma[index]);
        if (params.solarize[index] > 0)
            for (T& v : planes) v = v >= T(128. / 255) ? 1 - v : v;
        for (int64_t c = 0; c < s.channels; c++) {
            const T m = mean[c], scale = 1 / deviation[c];
            T* p = plane(c);
            for (int64_t i = 0; i < n; i++) p[i] = (p[i] - m) * scale;
            transpose(p, &other[c * n], s.size, s.size);
        }
        if (s.channels == 3) {
            const T *r = &other[0], *g = &other[n], *b = &other[2 * n];
            for (int64_t i = 0; i < n; i++) out[3 * i] = r[i], out[3 * i + 1] = g[i], out[3 * i + 2] = b[i];
        } else {
            transpose(other.data(), out, s.channels, n);
        }
    }
};

// Returns 0, or 1 if memory ran out: no exception may leave a thread or the library.
template <typename T>
int views(const uint8_t* images, const Params<T>& params, T* out, int64_t count, Geometry s, const T* mean, const T* deviation,
          int64_t threads) {
    std::atomic<int> failed{0};
    const auto work = [&](int64_t from, int64_t to) {
        try {
            Worker<T> worker(s, params, mean, deviation);
            for (int64_t i = from; i < to; i++)
                worker.view(images + i * s.channels * s.height * s.width, i, out + i * s.channels * s.size * s.size);
        } catch (...) {
            failed = 1;
        }
    };
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t t = 0; t < threads; t++) work(count * t / threads, count * (t + 1) / threads);
    return failed;
}

}  // namespace

// Input: images (count, C, H, W) and their parameters. Output: views (count, size, size, C), channels last.
extern "C" int views_float(const uint8_t* images, Params<float> params, float* out, int64_t count, Geometry s, const float* mean,
                           const float* deviation, int64_t threads) {
    return views(images, params, out, count, s, mean, deviation, threads);
}
extern "C" int views_double(const uint8_t* images, Params<double> params, double* out, int64_t count, Geometry s, const double* mean,
                            const double* deviation, int64_t threads) {
    return views(images, params, out, count, s, mean, deviation, threads);
}
