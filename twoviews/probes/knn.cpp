// The k nearest rows of a bank, exactly, without looking at most of them twice. Both sides are rounded to 8 bits a number; their product
// costs a fourth of one in float32, and by Cauchy and Schwarz it is off by a bound that each pair of rows has. Pairs that may belong to the
// k nearest, going by their bounds, are looked at again in double: nothing that is returned was rounded.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16, PANEL = 2 * LANES, TILE = 12, BLOCK = 20 * TILE;  // rows of the bank; queries
constexpr float ROUNDING = 1e-6f;  // of float32 in a bound, relative to the largest that its terms can be: some six operations
enum { COSINE, EUCLIDEAN, METRICS };

typedef int32_t Lanes __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(4 * LANES)));

// sums += the product of four bytes in each lane with the same four of a query.
inline Lanes dot4(Lanes sums, const uint8_t* bank, int32_t query) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (Lanes)_mm512_dpbusd_epi32((__m512i)sums, _mm512_loadu_si512(bank), _mm512_set1_epi32(query));
#else
    for (int64_t lane = 0; lane < LANES; lane++)
        for (int64_t i = 0; i < 4; i++) sums[lane] += int32_t(bank[4 * lane + i]) * int8_t(uint32_t(query) >> (8 * i));
    return sums;
#endif
}

inline Floats load(const std::vector<float>& column, int64_t row) {
    Floats out;
    __builtin_memcpy(&out, &column[row], sizeof out);
    return out;
}

// A row x about a centre, near the bank's mean, as low + step * code, and how far that is from it.
struct Rounded {
    double low, step, codes = 0, error = 0, norm = 0, reach;  // codes: their sum; error, norm: of x - x^ and of x^; reach: the most of sqrt(D) |x^|

    template <typename Code>
    Rounded(const std::vector<double>& x, int64_t first, Code code) {
        const auto range = std::minmax_element(x.begin(), x.end());
        step = (*range.second - *range.first) / 255;
        low = *range.first - step * first;
        for (size_t i = 0; i < x.size(); i++) {
            const int64_t c = step > 0 ? first + int64_t(std::lround((x[i] - *range.first) / step)) : first;
            const double back = low + step * c;
            code(i, c);
            codes += c;
            error += (x[i] - back) * (x[i] - back);
            norm += back * back;
        }
        error = std::sqrt(error), norm = std::sqrt(norm);
        reach = std::sqrt(double(x.size())) * (std::abs(low) + 255 * step);
    }
};

struct Found {
    int64_t row;
    float product, error;  // estimate of (q - mean) (b - mean), and its bound
};

struct Query {
    float step = 0, low = 0, codes = 0, norm = 0, error = 0, reach = 0, shift = 0;
    float least[METRICS] = {std::numeric_limits<float>::max(), std::numeric_limits<float>::max()};  // what one of the k nearest has at least
    std::vector<Found> found;
    size_t limit = 0;
};

template <typename T>
struct Search {
    const T *bank, *queries;
    const double* mean;
    const double scale;  // times every feature: to about one, so that squares fit
    const int64_t rows, count, width, k;
    int64_t* const* out_rows;  // of each metric, (count, k); null: not wanted
    T* const* out_similarity;
    const int64_t threads, groups = (width + 3) / 4, panels = (rows + PANEL - 1) / PANEL;
    // Of the bank, an entry a row; a product with it is step * codes . codes + (its sum of x^) * query.low + low * (...)
    std::vector<uint8_t> codes = std::vector<uint8_t>(panels * groups * PANEL * 4);  // (panels, groups, rows of a panel, 4)
    std::vector<float> step = std::vector<float>(panels * PANEL), low = step, sum = step, error = step, norm = step, reach = step;
    std::vector<float> half = step, shift = step, inverse = step;
    std::vector<double> length = std::vector<double>(rows);

    // Runs work(i) for i < n on all threads; false where memory ran out, since no exception may leave a thread.
    template <typename Work>
    bool share(int64_t n, Work work) const {
        std::atomic<int64_t> next{0};
        std::atomic<bool> fine{true};
#pragma omp parallel num_threads(int(std::min(threads, n)))
        try {
            for (int64_t i; (i = next++) < n && fine;) work(i);
        } catch (...) {
            fine = false;
        }
        return fine;
    }

    void centre(const T* from, std::vector<double>& x) const {
        for (int64_t i = 0; i < width; i++) x[i] = (from[i] - mean[i]) * scale;
    }

    void round_panel(int64_t panel) {
        std::vector<double> x(width);
        for (int64_t r = 0; r < PANEL; r++) {
            const int64_t row = panel * PANEL + r;
            if (row >= rows) continue;
            const T* b = bank + row * width;
            centre(b, x);
            uint8_t* place = &codes[(panel * groups * PANEL + r) * 4];
            const Rounded rounded(x, 0, [&](int64_t i, int64_t code) { place[i / 4 * PANEL * 4 + i % 4] = uint8_t(code); });
            double along = 0, square = 0, whole = 0;
            for (int64_t i = 0; i < width; i++) {
                along += x[i] * mean[i] * scale;
                square += x[i] * x[i];
                whole += double(b[i]) * b[i];
            }
            length[row] = std::max(std::sqrt(whole), 1e-12);
            step[row] = rounded.step, low[row] = rounded.low, sum[row] = width * rounded.low + rounded.step * rounded.codes;
            error[row] = rounded.error, norm[row] = rounded.norm, reach[row] = ROUNDING * rounded.reach;
            // Both rounded to the side on which nothing is lost; see `upper`.
            half[row] = square / 2 * (1 - ROUNDING), shift[row] = along + ROUNDING * std::abs(along);
            inverse[row] = 1 / (length[row] * scale);
        }
    }

    // What the cosine (times the query's length) and minus half the squared distance (plus a constant of the query) are at most.
    float upper(int metric, const Query& q, int64_t row, float product, float bound) const {
        return metric == COSINE ? (product + bound + (shift[row] + q.shift)) * inverse[row] : product + bound - half[row];
    }

    float lower(int metric, const Query& q, int64_t row, float product, float bound) const {
        if (metric == EUCLIDEAN) return product - bound - half[row] * (1 + 4 * ROUNDING);
        const float slack = 4 * ROUNDING * (std::abs(shift[row]) + std::abs(q.shift));
        return (product - bound + (shift[row] + q.shift - slack)) * inverse[row];
    }

    // Keeps what may belong to the k nearest, and raises what they have at least.
    void sift(Query& q, std::vector<float>& lowest) const {
        for (int metric = 0; metric < METRICS; metric++) {
            if (!out_rows[metric] || q.found.size() < size_t(k)) continue;
            lowest.clear();
            for (const Found& f : q.found) lowest.push_back(lower(metric, q, f.row, f.product, f.error));
            std::nth_element(lowest.begin(), lowest.begin() + (k - 1), lowest.end(), [](float a, float b) { return a > b; });
            q.least[metric] = std::max(q.least[metric], lowest[k - 1]);
        }
        const auto hopeless = [&](const Found& f) {
            for (int metric = 0; metric < METRICS; metric++)
                if (upper(metric, q, f.row, f.product, f.error) >= q.least[metric]) return false;
            return true;
        };
        q.found.erase(std::remove_if(q.found.begin(), q.found.end(), hopeless), q.found.end());
        q.limit = 2 * q.found.size() + 4 * k + 64;
    }

    void block(int64_t which) const {
        const int64_t first = which * BLOCK, size = std::min(BLOCK, count - first), tiles = (size + TILE - 1) / TILE;
        std::vector<Query> block(tiles * TILE);
        std::vector<int32_t> packed(tiles * groups * TILE);  // (tiles, groups, queries of a tile), four codes each
        std::vector<double> x(width), from_mean(size);
        std::vector<float> lowest;
        for (int64_t i = 0; i < size; i++) {
            Query& q = block[i];
            centre(queries + (first + i) * width, x);
            auto* place = reinterpret_cast<int8_t*>(&packed[i / TILE * groups * TILE + i % TILE]);
            const Rounded rounded(x, -128, [&](int64_t d, int64_t code) { place[d / 4 * TILE * 4 + d % 4] = int8_t(code); });
            double square = 0, along = 0;
            for (int64_t d = 0; d < width; d++) {
                square += x[d] * x[d];
                along += (x[d] + mean[d] * scale) * mean[d] * scale;
            }
            from_mean[i] = square;
            q.step = rounded.step, q.low = rounded.low, q.codes = rounded.step * rounded.codes;
            q.norm = std::sqrt(square), q.error = rounded.error, q.reach = rounded.reach;
            q.shift = along + ROUNDING * std::abs(along);
            for (int metric = 0; metric < METRICS; metric++)
                if (out_rows[metric]) q.least[metric] = std::numeric_limits<float>::lowest();
            q.limit = 4 * k + 64;
        }
        for (int64_t panel = 0; panel < panels; panel++)
            for (int64_t tile = 0; tile < tiles; tile++) score(panel, &packed[tile * groups * TILE], &block[tile * TILE], lowest);
        for (int64_t i = 0; i < size; i++) {
            sift(block[i], lowest);
            look(block[i], first + i, from_mean[i]);
        }
    }

    // Sums of their own, indexed by constants alone, so that they stay in registers.
    void multiply(const uint8_t* b, const int32_t* packed, Lanes (&out)[TILE][2]) const {
        Lanes sums[TILE][2] = {};
        for (int64_t g = 0; g < groups; g++, b += PANEL * 4, packed += TILE)
#pragma GCC unroll 12
            for (int64_t i = 0; i < TILE; i++) {
                sums[i][0] = dot4(sums[i][0], b, packed[i]);
                sums[i][1] = dot4(sums[i][1], b + LANES * 4, packed[i]);
            }
#pragma GCC unroll 12
        for (int64_t i = 0; i < TILE; i++) out[i][0] = sums[i][0], out[i][1] = sums[i][1];
    }

    // A panel of the bank against a tile of queries.
    void score(int64_t panel, const int32_t* packed, Query* tile, std::vector<float>& lowest) const {
        Lanes sums[TILE][2];
        multiply(&codes[panel * groups * PANEL * 4], packed, sums);
        for (int64_t v = 0; v < 2; v++) {
            const int64_t row = panel * PANEL + v * LANES;
            const Floats steps = load(step, row), lows = load(low, row), total = load(sum, row), errors = load(error, row);
            const Floats norms = load(norm, row), reaches = load(reach, row), halves = load(half, row), shifts = load(shift, row);
            const Floats inverses = load(inverse, row);
            for (int64_t i = 0; i < TILE; i++) {
                Query& q = tile[i];
                const Floats product = __builtin_convertvector(sums[i][v], Floats) * (steps * q.step) + (total * q.low + lows * q.codes);
                const Floats bound = errors * q.norm + norms * q.error + reaches * q.reach, most = product + bound;
                const Lanes near = ((most + (shifts + q.shift)) * inverses >= q.least[COSINE]) | (most - halves >= q.least[EUCLIDEAN]);
                if (!any(near)) continue;
                for (int64_t lane = 0; lane < LANES; lane++)
                    if (near[lane] && row + lane < rows) q.found.push_back({row + lane, product[lane], bound[lane]});
                if (q.found.size() > q.limit) sift(q, lowest);
            }
        }
    }

    static bool any(const Lanes& mask) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
        return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
        int32_t all = 0;
        for (int64_t lane = 0; lane < LANES; lane++) all |= mask[lane];
        return all != 0;
#endif
    }

    // The k nearest of a query's candidates. The k most promising give a mark that the k nearest reach; who cannot is not looked at.
    void look(Query& q, int64_t query, double from_mean) const {
        const T* x = queries + query * width;
        double own = 0;
        for (int64_t d = 0; d < width; d++) own += double(x[d]) * x[d];
        own = std::max(std::sqrt(own), 1e-12);
        std::vector<std::pair<float, int64_t>> order;                           // what a candidate has at most, negated, and which it is
        std::vector<std::pair<double, int64_t>> best;                           // distance or minus cosine, and row
        std::vector<std::pair<double, double>> known(q.found.size(), {-1, 0});  // squared distance and dot product
        for (int metric = 0; metric < METRICS; metric++) {
            if (!out_rows[metric]) continue;
            order.clear(), best.clear();
            for (size_t i = 0; i < q.found.size(); i++) {
                const Found& f = q.found[i];
                order.emplace_back(-upper(metric, q, f.row, f.product, f.error), i);
            }
            std::nth_element(order.begin(), order.begin() + (k - 1), order.end());
            double mark = 0, worst = -std::numeric_limits<double>::max();
            for (size_t place = 0; place < order.size(); place++) {
                const auto [minus_most, i] = order[place];
                if (place >= size_t(k) && -minus_most < mark) continue;
                const int64_t row = q.found[i].row;
                if (known[i].first < 0) known[i] = compare(x, bank + row * width);
                best.emplace_back(metric == COSINE ? -known[i].second / (length[row] * own) : known[i].first, row);
                if (place >= size_t(k)) continue;
                worst = std::max(worst, best.back().first);
                mark = metric == COSINE ? -worst * own * scale : (from_mean - worst * scale * scale) / 2;  // as `upper` has it
            }
            std::partial_sort(best.begin(), best.begin() + k, best.end());
            for (int64_t i = 0; i < k; i++) {
                out_rows[metric][query * k + i] = best[i].second;
                out_similarity[metric][query * k + i] = T(metric == COSINE ? -best[i].first : -std::sqrt(best[i].first));
            }
        }
    }

    // Squared distance and dot product, in double.
    std::pair<double, double> compare(const T* x, const T* b) const {
        double apart = 0, dot = 0;
#pragma omp simd reduction(+ : apart, dot)
        for (int64_t d = 0; d < width; d++) {
            const double one = x[d], other = b[d];
            apart += (one - other) * (one - other);
            dot += one * other;
        }
        return {apart, dot};
    }

    int run() {
        const bool fine = share(panels, [this](int64_t panel) { round_panel(panel); }) &&
                          share((count + BLOCK - 1) / BLOCK, [this](int64_t which) { block(which); });
        return fine ? 0 : 1;
    }
};

template <typename T>
int search(const T* bank, const T* queries, const double* mean, double scale, int64_t rows, int64_t count, int64_t width, int64_t k,
           int64_t* const* out_rows, T* const* out_similarity, int64_t threads) {
    try {
        return Search<T>{bank, queries, mean, scale, rows, count, width, k, out_rows, out_similarity, threads}.run();
    } catch (...) {
        return 1;
    }
}

}  // namespace

// Bank (rows, width), queries (count, width) and a centre (width,), best the bank's mean, in; of each wanted metric, in the order cosine,
// euclidean, the k nearest rows (count, k) and their cosine or minus their distance out. 0, or 1 where memory ran out.
extern "C" int search_float(const float* bank, const float* queries, const double* mean, double scale, int64_t rows, int64_t count,
                            int64_t width, int64_t k, int64_t* const* out_rows, float* const* out_similarity, int64_t threads) {
    return search(bank, queries, mean, scale, rows, count, width, k, out_rows, out_similarity, threads);
}
extern "C" int search_double(const double* bank, const double* queries, const double* mean, double scale, int64_t rows, int64_t count,
                             int64_t width, int64_t k, int64_t* const* out_rows, double* const* out_similarity, int64_t threads) {
    return search(bank, queries, mean, scale, rows, count, width, k, out_rows, out_similarity, threads);
}
