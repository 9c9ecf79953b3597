// A reader of JSON, enough for the metadata of a policy file: no JSON library is needed.
#pragma once

#include <map>
#include <string>
#include <vector>

// A value; of its parts, those of its kind are filled.
struct Json {
    enum class Kind { null, boolean, number, text, array, object };

    Kind kind = Kind::null;
    double value = 0.0;  // of a number
    std::string string;  // of a text, in UTF-8
    std::vector<Json> items;
    std::map<std::string, Json> members;

    // Returns a member; throws std::runtime_error where there is none.
    const Json& at(const std::string& key) const;
    // Returns a member, or null where there is none.
    const Json& find(const std::string& key) const;
    bool is_null() const { return kind == Kind::null; }
    // Returns it as a number, or as a text; throws std::runtime_error, which names `what`, where it is none.
    double number(const std::string& what) const;
    const std::string& text(const std::string& what) const;
};

// Throws std::runtime_error where the text is no JSON. Numbers are read as JSON writes them, whatever the locale of
// the process: std::strtod takes 0.05 for 0 where a comma is expected, as in a Qt program in German.
Json parse_json(const std::string& text);
