// Runs a bundle of HEAT, in ONNX or OpenVINO format, through OpenVINO's C++ API.
//
//     detect BUNDLE IMAGE.ppm
//
// Prints one line of JSON: boxes in pixels of the image, scores, names. PPM is what any image tool
// writes; a program that has an image library gives its RGB bytes to letterbox() instead.

#include <algorithm>
#include <exception>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

#include "json.hpp"
#include "letterbox.hpp"

static std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

static Image read_ppm(const std::string& path) {
    std::istringstream file(contents(path));
    std::string magic;
    Image image;
    int most = 0;
    file >> magic >> image.width >> image.height >> most;
    file.get();
    if (magic != "P6" || most != 255 || image.width < 1 || image.height < 1)
        throw std::runtime_error(path + " is no binary PPM (P6) of 8 bits");
    image.rgb.resize(static_cast<size_t>(image.width) * image.height * 3);
    if (!file.read(reinterpret_cast<char*>(image.rgb.data()), image.rgb.size()))
        throw std::runtime_error(path + " ends early");
    return image;
}

static std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char each : text) {
        if (each == '"' || each == '\\') out += '\\';
        out += each;
    }
    return out + "\"";
}

struct Object {
    double box[4];  // x0, y0, x1, y1 in pixels of the image
    float score;
    std::string name;
};

static double overlap(const Object& a, const Object& b) {
    const double wide = std::min(a.box[2], b.box[2]) - std::max(a.box[0], b.box[0]);
    const double tall = std::min(a.box[3], b.box[3]) - std::max(a.box[1], b.box[1]);
    const double shared = std::max(wide, 0.0) * std::max(tall, 0.0);
    const auto area = [](const Object& o) { return (o.box[2] - o.box[0]) * (o.box[3] - o.box[1]); };
    return shared / std::max(area(a) + area(b) - shared, 1e-9);
}

// Each object once: of boxes that overlap, whatever their classes, the best; best first.
static std::vector<Object> once(std::vector<Object> found) {
    std::stable_sort(found.begin(), found.end(), [](const Object& a, const Object& b) { return a.score > b.score; });
    std::vector<Object> kept;
    for (const Object& object : found)
        if (std::none_of(kept.begin(), kept.end(), [&](const Object& o) { return overlap(o, object) > 0.4; }))
            kept.push_back(object);
    return kept;
}

static void run(const std::string& bundle, const std::string& image_path) {
    const std::string text = contents(bundle + "/card.json");
    const Json card = JsonReader(text).value();
    if (card["raw"].number) throw std::runtime_error(bundle + " is raw: its graph ends before the boxes");
    const int height = static_cast<int>(card["input"]["height"].number);
    const int width = static_cast<int>(card["input"]["width"].number);
    uint8_t pad[3];
    for (int i = 0; i < 3; ++i) pad[i] = static_cast<uint8_t>(card["input"]["pad_rgb"].list.at(i).number);

    ov::Core core;
    // OpenVINO picks bfloat16 by itself on some CPUs: the precision is what the card says.
    const std::string precision = card["precision"].text;
    const auto type = precision == "bf16" ? ov::element::bf16 : precision == "f16" ? ov::element::f16 : ov::element::f32;
    ov::CompiledModel model = core.compile_model(
        bundle + "/" + card["model"].text, "CPU", ov::hint::inference_precision(type),
        ov::inference_num_threads(static_cast<int>(card["threads"].number)),
        ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));

    const Image image = read_ppm(image_path);
    double factors[2];
    Image input = letterbox(image, height, width, pad, factors);
    ov::InferRequest request = model.create_infer_request();
    const ov::Shape shape{1, static_cast<size_t>(height), static_cast<size_t>(width), 3};
    request.set_input_tensor(ov::Tensor(ov::element::u8, shape, input.rgb.data()));
    request.infer();
    const float* boxes = request.get_output_tensor(0).data<const float>();
    const ov::Tensor score_tensor = request.get_output_tensor(1), label_tensor = request.get_output_tensor(2);
    const float* scores = score_tensor.data<const float>();

    std::vector<Object> found;
    for (size_t i = 0; i < score_tensor.get_size(); ++i) {
        const int64_t label = label_tensor.get_element_type() == ov::element::i64
            ? label_tensor.data<const int64_t>()[i] : label_tensor.data<const int32_t>()[i];
        const std::string& name = card["names"].list.at(label).text;
        const Json& threshold = card["thresholds"][name];
        const auto least = static_cast<float>(threshold.kind == Json::Number ? threshold.number : 0.3);
        if (scores[i] <= 0 || scores[i] < least) continue;
        Object object{{}, scores[i], name};
        for (int side = 0; side < 4; ++side) {
            const double most = side % 2 ? image.height : image.width;
            object.box[side] = std::clamp(boxes[i * 4 + side] / factors[side % 2], 0.0, most);
        }
        found.push_back(object);
    }

    std::ostringstream rows, kept, names;
    const char* comma = "";
    for (const Object& object : once(found)) {
        const double* box = object.box;
        rows << comma << "[" << box[0] << ", " << box[1] << ", " << box[2] << ", " << box[3] << "]";
        kept << comma << object.score;
        names << comma << quoted(object.name);
        comma = ", ";
    }
    std::cout << "{\"boxes_xyxy_px\": [" << rows.str() << "], \"scores\": [" << kept.str()
              << "], \"names\": [" << names.str() << "]}" << std::endl;
}

int main(int count, char** arguments) {
    if (count != 3) {
        std::cerr << "usage: detect BUNDLE IMAGE.ppm" << std::endl;
        return 2;
    }
    try {
        run(arguments[1], arguments[2]);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << std::endl;
        return 2;
    }
    return 0;
}
