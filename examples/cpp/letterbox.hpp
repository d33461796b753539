// Fits an image into the network input as HEAT does: keep the ratio, pad right and bottom.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

struct Image {
    int height = 0, width = 0;
    std::vector<uint8_t> rgb;  // [height, width, 3]
};

// One output cell of a side: the input cells that it takes, and how much of each.
struct Taken {
    int first;
    std::vector<float> weights;
};

// Area averaging where a side shrinks, linear where it grows.
inline std::vector<Taken> taken(int from, int to) {
    std::vector<Taken> cells(to);
    const double ratio = static_cast<double>(from) / to;
    for (int cell = 0; cell < to; ++cell) {
        if (ratio > 1) {
            const double begin = cell * ratio, end = std::min<double>((cell + 1) * ratio, from);
            const int first = static_cast<int>(begin);
            const int last = std::min(from, static_cast<int>(std::ceil(end - 1e-6)));
            cells[cell].first = first;
            for (int index = first; index < last; ++index) {
                const double share = std::min<double>(index + 1, end) - std::max<double>(index, begin);
                cells[cell].weights.push_back(static_cast<float>(share / (end - begin)));
            }
        } else {
            const double centre = std::clamp((cell + 0.5) * ratio - 0.5, 0.0, from - 1.0);
            const int first = std::min(static_cast<int>(centre), std::max(0, from - 2));
            const float share = static_cast<float>(centre - first);
            cells[cell].first = first;
            cells[cell].weights = from == 1 ? std::vector<float>{1} : std::vector<float>{1 - share, share};
        }
    }
    return cells;
}

inline Image resized(const Image& image, int height, int width) {
    if (image.height == height && image.width == width) return image;
    const auto rows = taken(image.height, height), columns = taken(image.width, width);
    Image out{height, width, std::vector<uint8_t>(static_cast<size_t>(height) * width * 3)};
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            for (int channel = 0; channel < 3; ++channel) {
                float sum = 0;
                for (size_t i = 0; i < rows[y].weights.size(); ++i)
                    for (size_t j = 0; j < columns[x].weights.size(); ++j) {
                        const size_t at = static_cast<size_t>(rows[y].first + i) * image.width + columns[x].first + j;
                        sum += rows[y].weights[i] * columns[x].weights[j] * image.rgb[at * 3 + channel];
                    }
                const float value = std::clamp(std::nearbyint(sum), 0.0f, 255.0f);
                out.rgb[(static_cast<size_t>(y) * width + x) * 3 + channel] = static_cast<uint8_t>(value);
            }
    return out;
}

// Returns the input of `height` x `width`, and the factors from image to network pixels, across and down.
inline Image letterbox(const Image& image, int height, int width, const uint8_t pad[3], double factors[2]) {
    const double scale = std::min(static_cast<double>(height) / image.height, static_cast<double>(width) / image.width);
    // nearbyint rounds halves to even, as Python does.
    const int h = std::clamp(static_cast<int>(std::nearbyint(image.height * scale)), 1, height);
    const int w = std::clamp(static_cast<int>(std::nearbyint(image.width * scale)), 1, width);
    factors[0] = static_cast<double>(w) / image.width;
    factors[1] = static_cast<double>(h) / image.height;
    const Image small = resized(image, h, w);
    Image out{height, width, std::vector<uint8_t>(static_cast<size_t>(height) * width * 3)};
    for (size_t i = 0; i < out.rgb.size(); ++i) out.rgb[i] = pad[i % 3];
    for (int y = 0; y < h; ++y)
        std::copy_n(&small.rgb[static_cast<size_t>(y) * w * 3], w * 3, &out.rgb[static_cast<size_t>(y) * width * 3]);
    return out;
}
