#include "policy.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include <openvino/openvino.hpp>

#include "signature.hpp"

namespace {

constexpr int kOldest = 3, kNewest = 4;  // 4 has earlier readings or a clock, which PolicyRunner fills in

// Returns the golden rows of an input or output.
std::vector<std::vector<float>> rows(const Json& golden, const std::string& key) {
    std::vector<std::vector<float>> found;
    for (const Json& row : golden.at(key).items) {
        found.emplace_back();
        for (const Json& value : row.items) found.back().push_back(static_cast<float>(value.number(key)));
    }
    return found;
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
void require_sizes(const std::string& path, const std::vector<ov::Output<ov::Node>>& ports, const Json& json,
                   const std::string& side, const std::vector<std::string>& names) {
    if (ports.size() != names.size()) {
        throw std::runtime_error(path + " has " + std::to_string(ports.size()) + " " + side + ", not " +
                                 std::to_string(names.size()) + ": export it again");
    }
    for (const std::string& name : names) {
        const std::size_t said = json.at(side).at(name).items.size(), actual = size_of(ports, name);
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

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream content;
    content << file.rdbuf();
    return file && content ? content.str() : "";
}

// Opens the bytes that were checked, not the file, which may be another one by now.
std::shared_ptr<ov::Model> read(ov::Core& core, const std::string& path, const std::string& trusted) {
    const std::string content = read_file(path);
    if (content.empty()) throw std::runtime_error(path + " is missing or empty");
    if (!trusted.empty()) require_signature(content, trusted);
    try {
        return core.read_model(content, ov::Tensor());
    } catch (const std::exception&) {  // many lines about OpenVINO's own sources
        throw std::runtime_error(path + " is missing, truncated or no ONNX file");
    }
}

}  // namespace

Policy::Policy(const std::string& path, const std::string& trusted) {
    ov::Core core;
    const std::shared_ptr<ov::Model> model = read(core, path, trusted);
    // OpenVINO keeps the metadata of an ONNX file under "framework".
    if (!model->has_rt_info("framework", "thousandfold") ||
        !model->has_rt_info("framework", "thousandfold_golden")) {
        throw std::runtime_error(path + " is no policy file: it has no metadata of its own");
    }
    metadata_ = parse_json(model->get_rt_info<std::string>("framework", "thousandfold"));
    golden_ = parse_json(model->get_rt_info<std::string>("framework", "thousandfold_golden"));
    const double version = metadata_.at("format_version").number("format_version");
    if (version != kOldest && version != kNewest) {
        throw std::runtime_error(path + " is no policy file of format 3 or 4: export it again");
    }
    control_dt_s_ = metadata_.at("control_dt_s").number("control_dt_s");
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
    for (const Json& control : metadata_.at("outputs").at("control").items) {
        const double low = control.at("low").number("low"), high = control.at("high").number("high");
        bounds.push_back(static_cast<float>(std::max(std::fabs(low), std::fabs(high))));
    }
    return bounds;
}

GoldenSet Policy::golden() const {
    GoldenSet found{rows(golden_, "observation"), rows(golden_, "goal"), rows(golden_, "action"),
                    rows(golden_, "control"), golden_.at("tolerance").number("tolerance")};
    const std::size_t count = found.action.size();
    if (count == 0 || found.observation.size() != count || found.goal.size() != count ||
        found.control.size() != count) {
        throw std::runtime_error("the golden rows are damaged: export the policy again");
    }
    return found;
}
