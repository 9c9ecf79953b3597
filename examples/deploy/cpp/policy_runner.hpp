// A policy in its control loop: keeps past readings, time and what was sent, clamps what it sends, or holds.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "policy.hpp"

class PolicyRunner {
public:
    // Whether a step sent a new control, or why it held the last one.
    enum class Status { ok, late, not_finite };
    // By actuator, what counts as sent before the first step.
    using Start = std::map<std::string, float>;

    // The policy must live as long. Throws std::exception where its file lacks what is needed; `start` as in `reset`.
    explicit PolicyRunner(Policy& policy, const Start& start = {});

    // Begins anew. The start of a position servo is where it stands, which the first readings tell where they have
    // its joint. Throws std::invalid_argument where one that the policy builds on is neither given nor known.
    void reset(const Start& start = {});

    // Takes the newest readings, in the order of `readings()`, and a goal; nullptr is one that is late. Does not
    // allocate. Throws std::invalid_argument for a wrong size.
    Status step(const std::vector<float>* readings, const std::vector<float>* goal);

    // (num_actuators) what to send now; empty where nothing was safe to send yet.
    const std::vector<float>& control() const { return has_sent_ ? sent_ : nothing_; }
    // How many steps in a row held the last control.
    std::size_t held() const { return held_; }
    // Names of what `step` takes.
    const std::vector<std::string>& readings() const { return readings_; }

private:
    struct Control {
        std::string name;
        float low, high;         // what is sent never leaves them
        float most;              // the most that it changes in a step
        bool remembered;         // whether what was sent last counts
        float known;             // its start as the file has it; NaN: none
        std::ptrdiff_t reading;  // that of its joint; -1: none
        float gear, begin;       // its start is gear times that reading, or `begin` where that is not NaN
    };
    struct Place {
        std::size_t age, column;
    };
    struct Clock {
        double turn, shift;  // by how much it turns in a step; sin is cos later
    };

    std::vector<float>& past(std::size_t age) { return past_[(newest_ + age) % past_.size()]; }
    // Puts what was sent and the time into a row, after its readings.
    void set_kept(std::vector<float>& row) const;

    Policy& policy_;
    std::vector<std::string> readings_;
    std::vector<Control> controls_;
    std::vector<Clock> clocks_;
    std::vector<Place> inputs_;  // where each number of an observation is
    // A row a step: its readings, what was sent before it, its time. A ring, `newest_` is where the newest row is.
    std::vector<std::vector<float>> past_;
    std::size_t newest_ = 0, held_ = 0, steps_ = 0;
    bool has_sent_ = false;
    std::vector<float> observation_, sent_;
    const std::vector<float> nothing_;
};
