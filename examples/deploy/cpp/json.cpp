#include "json.hpp"

#include <cstddef>
#include <cstdint>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace {

constexpr int kMostNested = 32;

class Reader {
public:
    explicit Reader(const std::string& text) : text_(text) {}

    Json whole() {
        Json found = value(0);
        if (next() != '\0') fail();
        return found;
    }

private:
    [[noreturn]] static void fail() { throw std::runtime_error("the metadata is no JSON"); }

    // Returns the next character that is no space, without passing it; '\0' at the end.
    char next() {
        place_ = text_.find_first_not_of(" \t\r\n", place_);
        if (place_ == std::string::npos) place_ = text_.size();
        return place_ < text_.size() ? text_[place_] : '\0';
    }

    // Passes a character, if it comes next.
    bool passed(char wanted) {
        const bool found = next() == wanted;
        place_ += found ? 1 : 0;
        return found;
    }

    void expect(char wanted) {
        if (!passed(wanted)) fail();
    }

    bool passed_word(const char* word) {
        const std::string wanted(word);
        const bool found = text_.compare(place_, wanted.size(), wanted) == 0;
        place_ += found ? wanted.size() : 0;
        return found;
    }

    Json value(int depth) {
        if (depth > kMostNested) fail();
        Json found;
        const char first = next();
        if (first == '{') {
            found.kind = Json::Kind::object;
            expect('{');
            for (bool more = !passed('}'); more; more = !closed('}')) {
                const std::string key = string();
                expect(':');
                found.members[key] = value(depth + 1);
            }
        } else if (first == '[') {
            found.kind = Json::Kind::array;
            expect('[');
            for (bool more = !passed(']'); more; more = !closed(']')) found.items.push_back(value(depth + 1));
        } else if (first == '"') {
            found.kind = Json::Kind::text;
            found.string = string();
        } else if (passed_word("null")) {
            found.kind = Json::Kind::null;
        } else if (passed_word("true") || passed_word("false")) {
            found.kind = Json::Kind::boolean;
        } else {
            found.kind = Json::Kind::number;
            found.value = number();
        }
        return found;
    }

    // Returns whether a list ends here; if not, another part must follow.
    bool closed(char end) {
        if (passed(end)) return true;
        expect(',');
        return false;
    }

    double number() {
        const std::size_t end = text_.find_first_not_of("+-.0123456789eE", place_);
        std::istringstream stream(text_.substr(place_, end - place_));
        stream.imbue(std::locale::classic());
        double found = 0.0;
        if (!(stream >> found) || stream.peek() != std::istringstream::traits_type::eof()) fail();
        place_ = end == std::string::npos ? text_.size() : end;
        return found;
    }

    std::string string() {
        expect('"');
        std::string found;
        while (true) {
            if (place_ >= text_.size()) fail();
            char letter = text_[place_++];
            if (letter == '"') return found;
            if (letter == '\\') {
                if (place_ >= text_.size()) fail();
                letter = text_[place_++];
                if (letter == 'u') {
                    append(found, code_point());
                    continue;
                }
                const std::string from = "bfnrt", to = "\b\f\n\r\t";
                const std::size_t which = from.find(letter);
                if (which != std::string::npos) letter = to[which];
            }
            found += letter;
        }
    }

    std::uint32_t four_digits() {
        std::uint32_t found = 0;
        for (int digit = 0; digit < 4; ++digit, ++place_) {
            const std::size_t value =
                place_ < text_.size() ? std::string("0123456789abcdef0123456789ABCDEF").find(text_[place_]) : 32;
            if (value >= 32) fail();
            found = found * 16 + static_cast<std::uint32_t>(value % 16);
        }
        return found;
    }

    std::uint32_t code_point() {
        const std::uint32_t first = four_digits();
        if (first < 0xD800 || first > 0xDBFF) return first;
        if (!passed_word("\\u")) fail();  // the second half of a character beyond 16 bits
        return 0x10000 + ((first - 0xD800) << 10) + (four_digits() & 0x3FF);
    }

    static void append(std::string& text, std::uint32_t code) {
        const auto add = [&](std::uint32_t byte) { text += static_cast<char>(byte); };
        if (code < 0x80) {
            add(code);
        } else if (code < 0x800) {
            add(0xC0 | code >> 6), add(0x80 | (code & 63));
        } else if (code < 0x10000) {
            add(0xE0 | code >> 12), add(0x80 | (code >> 6 & 63)), add(0x80 | (code & 63));
        } else {
            add(0xF0 | code >> 18), add(0x80 | (code >> 12 & 63));
            add(0x80 | (code >> 6 & 63)), add(0x80 | (code & 63));
        }
    }

    const std::string& text_;
    std::size_t place_ = 0;
};

}  // namespace

const Json& Json::at(const std::string& key) const {
    const auto found = members.find(key);
    if (found == members.end()) throw std::runtime_error("the metadata lacks " + key);
    return found->second;
}

const Json& Json::find(const std::string& key) const {
    static const Json nothing;
    const auto found = members.find(key);
    return found == members.end() ? nothing : found->second;
}

double Json::number(const std::string& what) const {
    if (kind != Kind::number) throw std::runtime_error("the metadata's " + what + " is no number");
    return value;
}

const std::string& Json::text(const std::string& what) const {
    if (kind != Kind::text) throw std::runtime_error("the metadata's " + what + " is no text");
    return string;
}

Json parse_json(const std::string& text) { return Reader(text).whole(); }
