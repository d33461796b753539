// Reads card.json: as much of JSON as one file needs, so that the example depends on nothing.
#pragma once

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Json {
    enum Kind { Null, Bool, Number, Text, List, Object } kind = Null;
    double number = 0;
    std::string text;
    std::vector<Json> list;
    std::map<std::string, Json> object;

    const Json& operator[](const std::string& key) const {
        static const Json none;
        const auto found = object.find(key);
        return found == object.end() ? none : found->second;
    }
};

class JsonReader {
  public:
    explicit JsonReader(const std::string& text) : text_(text) {}

    Json value() {
        Json out;
        switch (next()) {
            case '{':
                out.kind = Json::Object;
                for (++at_; next() != '}';) {
                    const std::string key = string();
                    expect(':');
                    out.object[key] = value();
                    if (next() == ',') ++at_;
                }
                ++at_;
                return out;
            case '[':
                out.kind = Json::List;
                for (++at_; next() != ']';) {
                    out.list.push_back(value());
                    if (next() == ',') ++at_;
                }
                ++at_;
                return out;
            case '"': out.kind = Json::Text; out.text = string(); return out;
            case 't': at_ += 4; out.kind = Json::Bool; out.number = 1; return out;
            case 'f': at_ += 5; out.kind = Json::Bool; return out;
            case 'n': at_ += 4; return out;
            default: {
                char* end = nullptr;
                out.kind = Json::Number;
                out.number = std::strtod(text_.c_str() + at_, &end);
                if (end == text_.c_str() + at_) throw std::runtime_error("card.json is damaged");
                at_ = end - text_.c_str();
                return out;
            }
        }
    }

  private:
    char next() {
        while (at_ < text_.size() && std::string(" \n\r\t").find(text_[at_]) != std::string::npos) ++at_;
        if (at_ >= text_.size()) throw std::runtime_error("card.json ends early");
        return text_[at_];
    }

    void expect(char wanted) {
        if (next() != wanted) throw std::runtime_error("card.json is damaged");
        ++at_;
    }

    std::string string() {
        expect('"');
        std::string out;
        for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
            if (text_[at_] != '\\') { out += text_[at_]; continue; }
            const char escaped = text_.at(++at_);
            if (escaped == 'n') out += '\n';
            else if (escaped == 't') out += '\t';
            else if (escaped == 'u') { code(out, point()); }
            else out += escaped;
        }
        ++at_;
        return out;
    }

    unsigned long unit() {  // the four digits after a 'u'
        const auto found = std::stoul(text_.substr(at_ + 1, 4), nullptr, 16);
        at_ += 4;
        return found;
    }

    unsigned long point() {  // two surrogates are one character
        const auto high = unit();
        if (high < 0xD800 || high > 0xDBFF || text_.compare(at_ + 1, 2, "\\u") != 0) return high;
        at_ += 2;
        return 0x10000 + ((high - 0xD800) << 10) + (unit() - 0xDC00);
    }

    static void code(std::string& out, unsigned long point) {  // as UTF-8
        if (point < 0x80) { out += static_cast<char>(point); return; }
        if (point < 0x800) { out += static_cast<char>(0xC0 | point >> 6); }
        else if (point < 0x10000) { out += static_cast<char>(0xE0 | point >> 12); out += static_cast<char>(0x80 | (point >> 6 & 0x3F)); }
        else {
            out += static_cast<char>(0xF0 | point >> 18);
            out += static_cast<char>(0x80 | (point >> 12 & 0x3F));
            out += static_cast<char>(0x80 | (point >> 6 & 0x3F));
        }
        out += static_cast<char>(0x80 | (point & 0x3F));
    }

    const std::string& text_;
    size_t at_ = 0;
};
