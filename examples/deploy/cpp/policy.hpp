// A policy file, opened to act: clipping, normalisation, network and actuator units are inside the file.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <openvino/runtime/core.hpp>

#include "json.hpp"

// Rows of numbers that the file brings along: inputs, and what must come out.
struct GoldenSet {
    std::vector<std::vector<float>> observation, goal, action, control;
    double tolerance;
};

class Policy {
public:
    // Throws std::exception where the file is truncated or no policy file of this format, or is not signed with
    // the public key in the file `trusted`, unless that is empty.
    explicit Policy(const std::string& path, const std::string& trusted = "");

    // Computes both outputs for one state, on the calling thread and without allocating.
    // Throws std::invalid_argument for a wrong size, NaN and infinity.
    void act(const std::vector<float>& observation, const std::vector<float>& goal);

    // Of the last call: (action_dim) in [-1, 1], and (num_actuators) in actuator units.
    const float* action() const { return action_.data<float>(); }
    const float* control() const { return control_.data<float>(); }
    std::size_t action_size() const { return action_.get_size(); }
    std::size_t control_size() const { return control_.get_size(); }

    // What the file says of itself: names, units, ranges.
    const Json& metadata() const { return metadata_; }
    // Seconds between two calls, above 0.
    double control_dt_s() const { return control_dt_s_; }
    // (num_actuators) the larger of each actuator's two bounds, as a size.
    std::vector<float> control_bounds() const;
    GoldenSet golden() const;

private:
    Json metadata_, golden_;
    double control_dt_s_ = 0.0;
    ov::InferRequest request_;
    ov::Tensor observation_, goal_, action_, control_;
};
