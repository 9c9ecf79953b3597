#include "policy.hpp"

#include <algorithm>
#include <cmath>
#include <locale>
#include <sstream>
#include <stdexcept>

#include <openvino/openvino.hpp>

namespace {

constexpr int kFormatVersion = 3;

// Returns where the value of `"key":` begins, from a place on. Enough for what is asked for here: keys whose
// first occurrence is theirs, and numbers as values.
std::size_t value_of(const std::string& json, const std::string& key, std::size_t from = 0) {
    const std::string quoted = '"' + key + '"';
    for (std::size_t found = json.find(quoted, from); found != std::string::npos; found = json.find(quoted, found + 1)) {
        const std::size_t colon = json.find_first_not_of(" \t\r\n", found + quoted.size());
        if (colon != std::string::npos && json[colon] == ':') return colon + 1;
    }
    throw std::runtime_error("the metadata lacks " + key);
}

// Returns a stream over the text from a place on. It reads numbers as JSON writes them, whatever the locale of the
// process: std::strtod takes 0.05 for 0 where a comma is expected, as in a Qt program in German.
std::istringstream text_from(const std::string& json, std::size_t place) {
    std::istringstream text(json.substr(place));
    text.imbue(std::locale::classic());
    return text;
}

double number(const std::string& json, const std::string& key, std::size_t from = 0) {
    std::istringstream text = text_from(json, value_of(json, key, from));
    double value = 0.0;
    if (!(text >> value)) throw std::runtime_error("the metadata's " + key + " is no number");
    return value;
}

// Returns the rows of `"key": [[1, 2], [3, 4]]`.
std::vector<std::vector<float>> rows(const std::string& json, const std::string& key) {
    std::vector<std::vector<float>> found;
    std::istringstream text = text_from(json, value_of(json, key));
    int depth = 0;
    for (char letter = '\0'; text >> letter;) {
        if (letter == '[') {
            if (++depth == 2) found.emplace_back();
        } else if (letter == ']') {
            if (--depth == 0) return found;
        } else if (letter != ',') {
            double value = 0.0;
            if (depth != 2 || !(text.putback(letter) >> value)) {
                throw std::runtime_error("the golden rows of " + key + " hold something else than numbers");
            }
            found.back().push_back(static_cast<float>(value));
        }
    }
    throw std::runtime_error("the golden rows of " + key + " do not end");
}

// Returns how many objects `"key": [{...}, {...}]` lists, from a place on. Texts may hold brackets.
std::size_t count_of(const std::string& json, const std::string& key, std::size_t from) {
    std::size_t found = 0;
    int depth = 0;
    bool in_text = false;
    for (std::size_t place = value_of(json, key, from); place < json.size(); ++place) {
        const char letter = json[place];
        if (in_text && letter == '\\') {
            ++place;
        } else if (letter == '"') {
            in_text = !in_text;
        } else if (!in_text && (letter == '[' || letter == '{')) {
            if (++depth == 2) ++found;
        } else if (!in_text && (letter == ']' || letter == '}') && --depth <= 0) {
            return found;
        }
    }
    throw std::runtime_error("the metadata's " + key + " does not end");
}

// Returns how many numbers a graph's input or output of shape (batch, size) has a row; 0 where there is no such.
std::size_t size_of(const std::vector<ov::Output<ov::Node>>& ports, const std::string& name) {
    for (const ov::Output<ov::Node>& port : ports) {
        const ov::PartialShape& shape = port.get_partial_shape();
        if (port.get_names().count(name) > 0 && shape.rank() == 2 && shape[1].is_static()) {
            return static_cast<std::size_t>(shape[1].get_length());
        }
    }
    return 0;
}

// Throws unless the graph has the inputs, or the outputs, that the metadata lists, with as many numbers each.
void require_sizes(const std::string& path, const std::vector<ov::Output<ov::Node>>& ports, const std::string& json,
                   const std::string& side, const std::vector<std::string>& names) {
    if (ports.size() != names.size()) {
        throw std::runtime_error(path + " has " + std::to_string(ports.size()) + " " + side + ", not " +
                                 std::to_string(names.size()) + ": export it again");
    }
    for (const std::string& name : names) {
        const std::size_t said = count_of(json, name, value_of(json, side)), actual = size_of(ports, name);
        if (said != actual) {
            throw std::runtime_error(path + " has " + std::to_string(actual) + " numbers of " + name +
                                     " in its graph, its metadata lists " + std::to_string(said) + ": export it again");
        }
    }
}

void fill(ov::Tensor& tensor, const std::vector<float>& values, const char* name) {
    if (values.size() != tensor.get_size()) {
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(values.size()) +
                                    " numbers, not " + std::to_string(tensor.get_size()));
    }
    // The clip inside the graph may hide NaN and infinity.
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
        throw std::invalid_argument(std::string(name) + " holds NaN or infinity: stop, or repeat the last control");
    }
    std::copy(values.begin(), values.end(), tensor.data<float>());
}

std::shared_ptr<ov::Model> read(ov::Core& core, const std::string& path) {
    try {
        return core.read_model(path);
    } catch (const std::exception&) {  // many lines about OpenVINO's own sources
        throw std::runtime_error(path + " is missing, truncated or no ONNX file");
    }
}

}  // namespace

Policy::Policy(const std::string& path) {
    ov::Core core;
    const std::shared_ptr<ov::Model> model = read(core, path);
    // OpenVINO keeps the metadata of an ONNX file under "framework".
    if (!model->has_rt_info("framework", "thousandfold") ||
        !model->has_rt_info("framework", "thousandfold_golden")) {
        throw std::runtime_error(path + " is no policy file: it has no metadata of its own");
    }
    metadata_ = model->get_rt_info<std::string>("framework", "thousandfold");
    golden_ = model->get_rt_info<std::string>("framework", "thousandfold_golden");
    if (number(metadata_, "format_version") != kFormatVersion) {
        throw std::runtime_error(path + " is no policy file of format " + std::to_string(kFormatVersion) +
                                 ": export it again");
    }
    control_dt_s_ = number(metadata_, "control_dt_s");
    if (!(control_dt_s_ > 0.0) || !std::isfinite(control_dt_s_)) {
        throw std::runtime_error(path + " has a control_dt_s that is no time above 0: export it again");
    }
    require_sizes(path, model->inputs(), metadata_, "inputs", {"observation", "goal"});
    require_sizes(path, model->outputs(), metadata_, "outputs", {"action", "control"});
    for (const char* name : {"observation", "goal"}) {  // one state a call: fixed shapes, no look-ups later
        ov::PartialShape shape = model->input(name).get_partial_shape();
        shape[0] = 1;
        model->reshape({{name, shape}});
    }
    // By default OpenVINO may compute in bfloat16 where the processor can.
    ov::CompiledModel compiled = core.compile_model(
        model, "CPU", ov::inference_num_threads(1), ov::num_streams(1),
        ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
        ov::hint::inference_precision(ov::element::f32), ov::hint::enable_cpu_pinning(false));
    request_ = compiled.create_infer_request();
    observation_ = request_.get_tensor("observation");
    goal_ = request_.get_tensor("goal");
    action_ = request_.get_tensor("action");
    control_ = request_.get_tensor("control");
}

void Policy::act(const std::vector<float>& observation, const std::vector<float>& goal) {
    fill(observation_, observation, "observation");
    fill(goal_, goal, "goal");
    request_.infer();
}

std::vector<float> Policy::control_bounds() const {
    std::vector<float> bounds;
    std::size_t place = value_of(metadata_, "control", value_of(metadata_, "outputs"));
    while (bounds.size() < control_size()) {
        const double low = number(metadata_, "low", place), high = number(metadata_, "high", place);
        bounds.push_back(static_cast<float>(std::max(std::fabs(low), std::fabs(high))));
        // Behind both, whichever comes first.
        place = std::max(value_of(metadata_, "low", place), value_of(metadata_, "high", place));
    }
    return bounds;
}

GoldenSet Policy::golden() const {
    GoldenSet found{rows(golden_, "observation"), rows(golden_, "goal"), rows(golden_, "action"),
                    rows(golden_, "control"), number(golden_, "tolerance")};
    const std::size_t count = found.action.size();
    if (count == 0 || found.observation.size() != count || found.goal.size() != count ||
        found.control.size() != count) {
        throw std::runtime_error("the golden rows are damaged: export the policy again");
    }
    return found;
}
