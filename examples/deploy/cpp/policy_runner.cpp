#include "policy_runner.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
constexpr double kTurn = 6.283185307179586;

// Returns where a name stands last in a list; -1 where it does not.
std::ptrdiff_t place_of(const std::string& name, const std::vector<std::string>& names) {
    const auto found = std::find(names.rbegin(), names.rend(), name);
    return names.rend() - found - 1;
}

// Returns how many steps ago an input was read: 2 of `qpos:elbow[0]@-2`, else 0.
std::size_t age_of(const std::string& name) {
    const std::size_t mark = name.rfind("@-");
    if (mark == std::string::npos || name.size() == mark + 2) return 0;
    const std::string digits = name.substr(mark + 2);
    return digits.find_first_not_of("0123456789") == std::string::npos ? std::stoul(digits) : 0;
}

// Returns the period of a clock among the inputs, such as 0.25 of `clock:0.25[1]`; 0 where it is no clock's.
double period_of(const std::string& name) {
    if (name.size() < 10 || name.rfind("clock:", 0) != 0) return 0.0;
    const std::string end = name.substr(name.size() - 3);
    const std::string period = name.substr(6, name.size() - 9);
    if ((end != "[0]" && end != "[1]") || period.find_first_not_of("0123456789.e+-") != std::string::npos) return 0.0;
    return parse_json(period).number("clock");  // whatever the locale
}

bool is_finite(const float* begin, const float* end) {
    return std::all_of(begin, end, [](float value) { return std::isfinite(value); });
}

}  // namespace

PolicyRunner::PolicyRunner(Policy& policy, const Start& start) : policy_(policy) {
    const Json& outputs = policy.metadata().at("outputs").at("control");
    std::vector<std::string> sent, newest, clocks;
    for (const Json& control : outputs.items) sent.push_back("ctrl:" + control.at("name").text("name") + "[0]");
    std::size_t rows = 1;
    for (const Json& input : policy.metadata().at("inputs").at("observation").items) {
        const std::string& name = input.at("name").text("name");
        const std::size_t age = age_of(name);
        newest.push_back(age > 0 ? name.substr(0, name.rfind("@-")) : name);
        inputs_.push_back({age, 0});
        rows = std::max(rows, age + 1);
        if (age > 0 || place_of(name, sent) >= 0) continue;
        if (const double period = period_of(name); period > 0.0) {
            const double shift = name[name.size() - 2] == '1' ? kTurn / 4 : 0.0;
            clocks_.push_back({kTurn * policy.control_dt_s() / period, shift});
            clocks.push_back(name);
        } else {
            readings_.push_back(name);
        }
    }
    std::vector<std::string> columns = readings_;
    columns.insert(columns.end(), sent.begin(), sent.end());
    columns.insert(columns.end(), clocks.begin(), clocks.end());
    for (std::size_t place = 0; place < inputs_.size(); ++place) {
        const std::ptrdiff_t column = place_of(newest[place], columns);
        if (column < 0) {
            throw std::runtime_error("the policy takes earlier readings of " + newest[place] + ", but not the newest");
        }
        inputs_[place].column = static_cast<std::size_t>(column);
    }
    for (std::size_t place = 0; place < sent.size(); ++place) {
        const Json& said = outputs.items[place];
        const Json &rate = said.find("max_rate"), &known = said.find("start");
        const double ends[] = {said.at("low").number("low"), said.at("high").number("high")};
        Control control;
        control.name = said.at("name").text("name");
        control.low = static_cast<float>(std::min(ends[0], ends[1]));
        control.high = static_cast<float>(std::max(ends[0], ends[1]));
        control.most = rate.is_null() ? kInfinity : static_cast<float>(rate.number("max_rate") * policy.control_dt_s());
        control.remembered = !rate.is_null() || place_of(sent[place], newest) >= 0;
        // Where a servo stands must be measured: it would jump to a pose of the file.
        const bool is_known = said.find("kp").is_null() && !known.is_null();
        control.known = is_known ? static_cast<float>(known.number("start")) : kNone;
        const Json& joint = said.find("joint");
        control.reading = joint.is_null() ? -1 : place_of("qpos:" + joint.text("joint") + "[0]", readings_);
        control.gear = control.reading < 0 ? 1.0F : static_cast<float>(said.at("gear").number("gear"));
        controls_.push_back(control);
    }
    past_.assign(rows, std::vector<float>(columns.size()));
    observation_.resize(inputs_.size());
    reset(start);
}

void PolicyRunner::reset(const Start& start) {
    for (const auto& [name, value] : start) {
        const auto names_it = [&name = name](const Control& control) { return control.name == name; };
        if (std::none_of(controls_.begin(), controls_.end(), names_it)) {
            throw std::invalid_argument("there is no actuator " + name);
        }
        if (!std::isfinite(value)) throw std::invalid_argument("a start is NaN or infinite");
    }
    for (Control& control : controls_) {
        const auto given = start.find(control.name);
        control.begin = given != start.end() ? given->second : control.reading < 0 ? control.known : kNone;
        if (control.reading < 0 && std::isnan(control.begin)) {
            if (control.remembered) {
                throw std::invalid_argument("give the start of actuator " + control.name + ": where it stands");
            }
            control.begin = 0.0F;
        }
    }
    has_sent_ = false;
    held_ = steps_ = 0;
}

void PolicyRunner::set_kept(std::vector<float>& row) const {
    const auto after_readings = row.begin() + static_cast<std::ptrdiff_t>(readings_.size());
    const auto after_sent = std::copy(sent_.begin(), sent_.end(), after_readings);
    std::transform(clocks_.begin(), clocks_.end(), after_sent, [&](const Clock& clock) {
        return static_cast<float>(std::cos(static_cast<double>(steps_) * clock.turn - clock.shift));
    });
}

PolicyRunner::Status PolicyRunner::step(const std::vector<float>* readings, const std::vector<float>* goal) {
    Status status = Status::late;
    if (readings != nullptr && goal != nullptr) {
        if (readings->size() != readings_.size()) {
            throw std::invalid_argument("readings have " + std::to_string(readings->size()) + " numbers, not " +
                                        std::to_string(readings_.size()));
        }
        const bool finite = is_finite(readings->data(), readings->data() + readings->size()) &&
                            is_finite(goal->data(), goal->data() + goal->size());
        status = finite ? Status::ok : Status::not_finite;
    }
    if (!has_sent_ && status == Status::ok) {  // as if it had stood there for ever
        sent_.resize(controls_.size());
        std::transform(controls_.begin(), controls_.end(), sent_.begin(), [&](const Control& control) {
            const bool is_told = std::isnan(control.begin);
            const float stands = is_told ? control.gear * (*readings)[control.reading] : control.begin;
            return std::clamp(stands, control.low, control.high);
        });
        steps_ = 0;
        for (std::vector<float>& row : past_) {
            std::copy(readings->begin(), readings->end(), row.begin());
            set_kept(row);
        }
    } else if (has_sent_) {
        newest_ = (newest_ + past_.size() - 1) % past_.size();
        std::vector<float>& row = past(0);
        if (status == Status::ok) {
            std::copy(readings->begin(), readings->end(), row.begin());
        } else if (past_.size() > 1) {  // the last readings count once more
            std::copy_n(past(1).begin(), readings_.size(), row.begin());
        }
        ++steps_;
        set_kept(row);
    }
    if (status == Status::ok) {
        std::transform(inputs_.begin(), inputs_.end(), observation_.begin(),
                       [&](const Place& place) { return past(place.age)[place.column]; });
        policy_.act(observation_, *goal);
        const float* control = policy_.control();
        if (is_finite(control, control + controls_.size())) {
            for (std::size_t place = 0; place < controls_.size(); ++place) {
                const Control& limits = controls_[place];
                const float near = std::clamp(control[place], sent_[place] - limits.most, sent_[place] + limits.most);
                sent_[place] = std::clamp(near, limits.low, limits.high);
            }
            has_sent_ = true;
            held_ = 0;
            return status;
        }
        status = Status::not_finite;
    }
    ++held_;
    return status;
}
