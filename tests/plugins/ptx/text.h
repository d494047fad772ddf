// PTX as text (PTX ISA 8.5): what a module declares, and the statements of its entries. Syntax only: what a statement
// does is decided in decode.h. Whatever is not known here is an error.
#pragma once

#include <array>
#include <cctype>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

// Text that is not PTX, or PTX that this machine does not know.
struct Unknown : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Operand {
  enum class Kind { kPlain, kVector, kAddress, kPair } kind = Kind::kPlain;
  std::vector<std::string> names;  // registers, numbers or symbols: of a vector {a, b}, or a pair d|p, all
  int64_t offset = 0;              // of an address [name+offset]
};

struct Statement {
  std::string text, guard, opcode;  // guard: the predicate register of @p or @!p, or empty
  bool guard_is_negated = false;
  std::vector<Operand> operands;
};

struct Variable {
  size_t alignment = 1, bytes = 0;
  bool is_extern = false;
};

struct Entry {
  std::string name, parameter;  // of parameters there is one: the struct of arguments
  Variable parameter_type;
  std::array<unsigned, 3> most_threads{};  // .maxntid; zeros where there is none
  std::map<std::string, int> registers;    // bits of each; 1 is a predicate
  std::map<std::string, size_t> labels;    // the statement that follows
  std::vector<Statement> statements;
};

struct Module {
  std::string target;
  std::map<std::string, Variable> shared;
  std::map<std::string, Entry> entries;
};

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(without_comments(text)) {}

  Module module() {
    Module found;
    while (skip_space()) {
      if (takes(".version") || takes(".address_size 64")) {
        line();
      } else if (takes(".target")) {
        found.target = trimmed(line());
      } else if (const bool is_extern = takes(".extern .shared"); is_extern || takes(".shared")) {
        declare_shared(found, is_extern);
      } else if (takes(".global")) {
        until(';');  // constants that NVRTC keeps and nothing reads: to name one in an operand is an error
      } else if (takes(".visible .entry")) {
        Entry entry = this->entry(found);
        found.entries.emplace(entry.name, std::move(entry));
      } else {
        throw Unknown("not known: " + line());
      }
    }
    return found;
  }

 private:
  static std::string without_comments(const std::string& text) {
    std::string kept;
    for (size_t at = 0; at < text.size(); ++at) {
      if (text.compare(at, 2, "/*") == 0) throw Unknown("a comment of several lines");
      if (text.compare(at, 2, "//") == 0) at = std::min(text.find('\n', at), text.size() - 1);
      kept += text[at];
    }
    return kept;
  }

  static bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || std::strchr("_$%.", c); }

  static std::string trimmed(const std::string& text) {
    const char* const space = " \t\r\n";
    const size_t first = text.find_first_not_of(space);
    return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(space) - first + 1);
  }

  bool skip_space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
    return at_ < text_.size();
  }

  bool takes(const std::string& word) {
    skip_space();
    if (text_.compare(at_, word.size(), word) != 0 || is_name(text_[at_ + word.size()])) return false;
    at_ += word.size();
    return true;
  }

  std::string until(char end) {
    const size_t found = text_.find(end, at_);
    if (found == std::string::npos) throw Unknown(std::string("there is no ") + end + " after " + line());
    const std::string taken = trimmed(text_.substr(at_, found - at_));
    at_ = found + 1;
    return taken;
  }

  std::string line() {
    const size_t end = std::min(text_.find('\n', at_), text_.size()), first = at_;
    at_ = end;
    return text_.substr(first, end - first);
  }

  // ".align 16 .b8 name[128]" or "name[]"
  static Variable declaration(const std::string& text, std::string& name) {
    Variable found;
    char symbol[512], bytes[32] = "";
    if (std::sscanf(text.c_str(), ".align %zu .b8 %511[^[ ][%31[0-9]]", &found.alignment, symbol, bytes) < 2)
      throw Unknown("a declaration: " + text);
    name = symbol;
    found.bytes = *bytes ? std::stoul(bytes) : 0;
    return found;
  }

  // NVRTC declares it inside an entry too; its names are unique.
  void declare_shared(Module& module, bool is_extern) {
    std::string name;
    Variable variable = declaration(until(';'), name);
    variable.is_extern = is_extern;
    module.shared[name] = variable;
  }

  Entry entry(Module& module) {
    Entry found;
    found.name = until('(');
    if (!takes(".param")) throw Unknown(found.name + " has no parameter");
    found.parameter_type = declaration(until(')'), found.parameter);
    while (!takes("{")) {
      const std::string directive = trimmed(line());
      auto& most = found.most_threads;
      if (std::sscanf(directive.c_str(), ".maxntid %u, %u, %u", &most[0], &most[1], &most[2]) != 3 &&
          directive.rfind(".minnctapersm ", 0) != 0)
        throw Unknown("of " + found.name + ": " + directive);
    }
    body(module, found);
    return found;
  }

  void body(Module& module, Entry& entry) {
    scopes_ = {{}};
    while (!scopes_.empty()) {
      if (!skip_space()) throw Unknown(entry.name + " does not end");
      if (text_[at_] == '{') {
        ++at_;
        scopes_.emplace_back();
      } else if (text_[at_] == '}') {
        ++at_;
        scopes_.pop_back();
      } else if (takes(".shared")) {
        declare_shared(module, false);
      } else if (takes(".reg")) {
        declare(entry, until(';'));
      } else if (takes(".pragma")) {
        until(';');  // advice to the compiler of PTX
      } else if (const size_t end = label_end(); end) {
        entry.labels[text_.substr(at_, end - at_)] = entry.statements.size();
        at_ = end + 1;
      } else {
        entry.statements.push_back(statement(until(';')));
      }
    }
  }

  // Where a label's name ends, or 0: a name and a single colon.
  size_t label_end() const {
    size_t end = at_;
    while (is_name(text_[end])) ++end;
    return text_[end] == ':' && text_[end + 1] != ':' ? end : 0;
  }

  // ".b32 %r<283>", or one name. A register of an inner scope gets a name that no other has.
  void declare(Entry& entry, const std::string& text) {
    static const std::map<std::string, int> bits = {{".pred", 1},  {".b16", 16}, {".u16", 16}, {".b32", 32},
                                                    {".f32", 32}, {".b64", 64}, {".f64", 64}};
    const size_t space = text.find_first_of(" \t");
    const auto type = bits.find(text.substr(0, space));
    if (type == bits.end() || text.find(',') != std::string::npos) throw Unknown("a register: " + text);
    const std::string name = trimmed(text.substr(space)), unique = "#" + std::to_string(++declared_);
    const size_t count = name.find('<');
    if (count == std::string::npos) {
      scopes_.back()[name] = name + unique;
      entry.registers[name + unique] = type->second;
      return;
    }
    for (int i = 0; i < std::stoi(name.substr(count + 1)); ++i) {
      const std::string each = name.substr(0, count) + std::to_string(i);
      scopes_.back()[each] = each + unique;
      entry.registers[each + unique] = type->second;
    }
  }

  std::string resolved(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto found = scope->find(name); found != scope->end()) return found->second;
    return name;
  }

  Statement statement(const std::string& text) const {
    Statement found;
    found.text = text;
    std::string rest = text;
    if (rest[0] == '@') {
      found.guard_is_negated = rest[1] == '!';
      const size_t space = rest.find_first_of(" \t"), first = found.guard_is_negated ? 2 : 1;
      found.guard = resolved(rest.substr(first, space - first));
      rest = trimmed(rest.substr(space));
    }
    const size_t space = std::min(rest.find_first_of(" \t"), rest.size());
    found.opcode = rest.substr(0, space);
    for (const std::string& each : split(rest.substr(space), ',')) found.operands.push_back(operand(each));
    return found;
  }

  // At commas that are in no braces or brackets.
  static std::vector<std::string> split(const std::string& text, char at) {
    std::vector<std::string> parts;
    std::string part;
    int depth = 0;
    for (char c : text) {
      depth += (c == '{' || c == '[') - (c == '}' || c == ']');
      if (c == at && depth == 0) parts.push_back(trimmed(part)), part.clear();
      else part += c;
    }
    if (!trimmed(part).empty()) parts.push_back(trimmed(part));
    return parts;
  }

  Operand operand(const std::string& text) const {
    Operand found;
    const std::string inner = text.substr(1, text.size() - 2);
    if (text[0] == '{') {
      found.kind = Operand::Kind::kVector;
      for (const std::string& each : split(inner, ',')) found.names.push_back(resolved(each));
    } else if (text[0] == '[') {
      found.kind = Operand::Kind::kAddress;
      const size_t plus = inner.find('+');
      found.names = {resolved(trimmed(inner.substr(0, plus)))};
      if (plus != std::string::npos) found.offset = std::stoll(inner.substr(plus + 1));
    } else {
      for (const std::string& each : split(text, '|')) found.names.push_back(resolved(each));
      if (found.names.size() == 2) found.kind = Operand::Kind::kPair;
    }
    return found;
  }

  const std::string text_;
  size_t at_ = 0;
  int declared_ = 0;
  std::vector<std::map<std::string, std::string>> scopes_;  // what a register is called, by its name in the text
};

}  // namespace ptx
