// `run_policy policy.onnx` compares the policy with its golden rows, and times it.
// With `--trusted key.pub` it first requires that the file is signed with that key.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#include "policy.hpp"

namespace {

constexpr int kCalls = 20000, kWarmUp = 2000;

// Returns the largest error of an action, or of a control as a share of its bound.
double golden_error(Policy& policy, const GoldenSet& golden) {
    const std::vector<float> bounds = policy.control_bounds();
    double largest = 0.0;
    const auto keep = [&](double error) { largest = error <= largest ? largest : error; };  // keeps NaN
    for (std::size_t row = 0; row < golden.action.size(); ++row) {
        policy.act(golden.observation[row], golden.goal[row]);
        for (std::size_t i = 0; i < policy.action_size(); ++i) {
            keep(std::fabs(policy.action()[i] - golden.action[row].at(i)));
        }
        for (std::size_t i = 0; i < policy.control_size(); ++i) {
            const double error = std::fabs(policy.control()[i] - golden.control[row].at(i));
            keep(bounds[i] > 0.0F ? error / bounds[i] : error);
        }
    }
    return largest;
}

// Returns the durations of calls back to back in microseconds, sorted.
std::vector<double> latencies(Policy& policy, const GoldenSet& golden) {
    std::vector<double> spent;
    spent.reserve(kCalls);
    for (int call = -kWarmUp; call < kCalls; ++call) {
        const std::size_t row = static_cast<std::size_t>(call + kWarmUp) % golden.action.size();
        const auto began = std::chrono::steady_clock::now();
        policy.act(golden.observation[row], golden.goal[row]);
        const std::chrono::duration<double, std::micro> span = std::chrono::steady_clock::now() - began;
        if (call >= 0) spent.push_back(span.count());
    }
    std::sort(spent.begin(), spent.end());
    return spent;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2 && (count != 4 || std::strcmp(arguments[2], "--trusted") != 0)) {
        std::fprintf(stderr, "usage: run_policy policy.onnx [--trusted key.pub]\n");
        return 2;
    }
    try {
        Policy policy(arguments[1], count == 4 ? arguments[3] : "");
        const GoldenSet golden = policy.golden();
        const double error = golden_error(policy, golden);
        std::printf("golden rows: %zu, max error %.2e, tolerance %.0e\n", golden.action.size(), error,
                    golden.tolerance);
        const std::vector<double> spent = latencies(policy, golden);
        std::printf("latency: p50 %.1f us, p99 %.1f us, one thread, back to back\n", spent[spent.size() / 2],
                    spent[spent.size() * 99 / 100]);
        return error <= golden.tolerance ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "Error: %s\n", error.what());
        return 2;
    }
}
