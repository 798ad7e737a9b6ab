#include "formats/pickle.h"

#include <array>
#include <cstring>
#include <deque>
#include <set>
#include <unordered_map>

#include "base/error.h"
#include "formats/dtype.h"

namespace mgm {
namespace {

// Limits against pickles that are small but unfold without end. A state dict of 1,000 tensors makes
// about 30,000 values.
constexpr size_t kMaxValues = 1 << 20;
constexpr size_t kMaxRank = 64;
constexpr size_t kMaxStorageKey = 64;
constexpr size_t kMaxNameBytes = 1 << 28;  // all names together
constexpr int kMaxNesting = 64;            // of dicts inside dicts

struct Value;
using Ref = Value*;  // owned by the machine: a hostile pickle makes cycles

struct Value {
  enum class Kind {
    kOther,  // none, floats, bytes: read over, never needed
    kInt,    // bools too
    kText,
    kTuple,  // lists and sets too
    kDict,
    kGlobal,
    kStorage,
    kTensor,
    kMark
  };
  Kind kind = Kind::kOther;
  int64_t number = 0;                        // kInt
  std::string text;                          // kText; kGlobal: module.name; kStorage: key
  std::string dtype;                         // kStorage; empty for an untyped one
  std::vector<Ref> items;                    // kTuple
  std::vector<std::pair<Ref, Ref>> entries;  // kDict
  PickledTensor tensor;                      // kTensor
};
using Kind = Value::Kind;

constexpr std::string_view kUntyped = "torch.storage.UntypedStorage";

// Our name of "torch.FloatStorage" or of "torch.float32"; empty if there is none.
std::string_view from_torch(std::string_view Dtype::*field, std::string_view torch_name) {
  for (const Dtype& dtype : dtypes()) {
    if (!torch_name.empty() && dtype.*field == torch_name) return dtype.name;
  }
  return {};
}

bool known_global(std::string_view name) {
  constexpr std::array<std::string_view, 6> kFunctions = {"collections.OrderedDict",
                                                          "torch._utils._rebuild_tensor_v2",
                                                          "torch._utils._rebuild_tensor_v3",
                                                          "torch._utils._rebuild_parameter",
                                                          "torch.Size",
                                                          "torch.device"};
  for (const std::string_view function : kFunctions) {
    if (function == name) return true;
  }
  return name == kUntyped || !from_torch(&Dtype::torch_storage, name).empty() ||
         !from_torch(&Dtype::torch, name).empty();
}

class Machine {
 public:
  Machine(std::string_view code, const std::string& source) : code_(code), source_(source) {}

  const Value& run() {
    while (true) {
      const auto op = number<uint8_t>();
      if (op == '.') return *pop();
      if (!push_value(op) && !build_container(op) && !use_stack(op)) {
        fail("opcode ", int{op}, " does not occur in tensor files");
      }
      if (stack_.size() > kMaxValues) fail("too many values");
    }
  }

 private:
  template <class... Args>
  [[noreturn]] void fail(const Args&... message) const {
    throw CheckpointError(source_, ": pickle at byte ", at_, ": ", message...);
  }

  std::string_view take(uint64_t n) {
    if (n > code_.size() - at_) fail("ends too early");
    const std::string_view out = code_.substr(at_, n);
    at_ += n;
    return out;
  }
  template <class T>
  T number() {
    T value{};
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view line() {
    const size_t end = code_.find('\n', at_);
    if (end == code_.npos) fail("ends too early");
    const std::string_view out = code_.substr(at_, end - at_);
    at_ = end + 1;
    return out;
  }

  Ref make(Kind kind) {
    if (values_.size() >= kMaxValues) fail("too many values");
    values_.emplace_back().kind = kind;
    return &values_.back();
  }
  void push(Ref value) { stack_.push_back(value); }
  bool push_int(int64_t n) {
    const Ref value = make(Kind::kInt);
    value->number = n;
    push(value);
    return true;
  }
  bool push_text(std::string_view text) {
    const Ref value = make(Kind::kText);
    value->text = text;
    push(value);
    return true;
  }
  bool push_other(std::string_view /*read over*/ = {}) {
    push(make(Kind::kOther));
    return true;
  }
  bool push_tuple(std::vector<Ref> items) {
    const Ref value = make(Kind::kTuple);
    value->items = std::move(items);
    push(value);
    return true;
  }
  Ref top() {
    if (stack_.empty() || stack_.back()->kind == Kind::kMark)
      fail("takes a value that is not there");
    return stack_.back();
  }
  Ref pop() {
    const Ref value = top();
    stack_.pop_back();
    return value;
  }
  std::vector<Ref> pop_to_mark() {
    size_t mark = stack_.size();
    while (mark > 0 && stack_[mark - 1]->kind != Kind::kMark) --mark;
    if (mark == 0) fail("has no mark to go back to");
    std::vector<Ref> out(stack_.begin() + static_cast<ptrdiff_t>(mark), stack_.end());
    stack_.resize(mark - 1);
    return out;
  }
  std::vector<Ref> pop_n(size_t n) {
    std::vector<Ref> items(n);
    for (size_t i = n; i > 0; --i) items[i - 1] = pop();
    return items;
  }
  bool push_long(std::string_view bytes) {
    if (bytes.size() > 8) return push_other();  // no size or offset is that long
    uint64_t value = !bytes.empty() && (bytes.back() & 0x80) ? ~uint64_t{0} : 0;
    for (size_t i = bytes.size(); i > 0; --i) {
      value = value << 8 | static_cast<uint8_t>(bytes[i - 1]);
    }
    return push_int(static_cast<int64_t>(value));
  }
  bool push_global(const std::string& name) {
    if (!known_global(name)) {
      throw CheckpointError(source_, ": the pickle names '", name,
                            "', which tensors do not need; refusing to go on, since such files can "
                            "run code. Save the tensors alone, or convert the file to safetensors "
                            "where you trust it");
    }
    const Ref value = make(Kind::kGlobal);
    value->text = name;
    push(value);
    return true;
  }

  // Opcodes that push one new value; false for any other opcode.
  bool push_value(uint8_t op) {
    switch (op) {
      case '(':
        return push(make(Kind::kMark)), true;
      case 'N':
        return push_other();
      case 'G':
        return push_other(take(8));  // BINFLOAT
      case 'B':
        return push_other(take(number<uint32_t>()));  // BINBYTES
      case 'C':
        return push_other(take(number<uint8_t>()));  // SHORT_BINBYTES
      case 0x8e:
        return push_other(take(number<uint64_t>()));  // BINBYTES8
      case 0x88:
        return push_int(1);  // NEWTRUE
      case 0x89:
        return push_int(0);  // NEWFALSE
      case 'J':
        return push_int(number<int32_t>());  // BININT
      case 'K':
        return push_int(number<uint8_t>());  // BININT1
      case 'M':
        return push_int(number<uint16_t>());  // BININT2
      case 0x8a:
        return push_long(take(number<uint8_t>()));  // LONG1
      case 'X':
        return push_text(take(number<uint32_t>()));  // BINUNICODE
      case 0x8c:
        return push_text(take(number<uint8_t>()));  // SHORT_BINUNICODE
      case 0x8d:
        return push_text(take(number<uint64_t>()));  // BINUNICODE8
      case 'U':
        return push_text(take(number<uint8_t>()));  // SHORT_BINSTRING
      case 'T':
        return push_text(take(number<uint32_t>()));  // BINSTRING
      case ')':
        return push_tuple({});  // EMPTY_TUPLE
      case ']':
        return push_tuple({});  // EMPTY_LIST
      case 0x8f:
        return push_tuple({});  // EMPTY_SET
      case '}':
        return push(make(Kind::kDict)), true;  // EMPTY_DICT
      case 'c': {                              // GLOBAL
        const std::string module(line());
        return push_global(cat(module, ".", line()));
      }
      default:
        return false;
    }
  }

  // Opcodes that make or fill a container.
  bool build_container(uint8_t op) {
    switch (op) {
      case 0x85:
        return push_tuple(pop_n(1));
      case 0x86:
        return push_tuple(pop_n(2));
      case 0x87:
        return push_tuple(pop_n(3));
      case 't':
        return push_tuple(pop_to_mark());  // TUPLE
      case 'l':
        return push_tuple(pop_to_mark());  // LIST
      case 0x91:
        return push_tuple(pop_to_mark());  // FROZENSET
      case 'a':
        return add_items({pop()});  // APPEND
      case 'e':
        return add_items(pop_to_mark());  // APPENDS
      case 0x90:
        return add_items(pop_to_mark());  // ADDITEMS
      case 'd': {                         // DICT
        const std::vector<Ref> pairs = pop_to_mark();
        push(make(Kind::kDict));
        return set_items(pairs);
      }
      case 's':
        return set_items(pop_n(2));  // SETITEM
      case 'u':
        return set_items(pop_to_mark());  // SETITEMS
      default:
        return false;
    }
  }

  // The rest: the memo, calls, and what is read over.
  bool use_stack(uint8_t op) {
    switch (op) {
      case 0x80:  // PROTO
        if (const int protocol = number<uint8_t>(); protocol > 5) fail("protocol ", protocol);
        return true;
      case 0x95:
        return take(8), true;  // FRAME
      case '0':
        return pop(), true;  // POP
      case '2':
        return push(top()), true;  // DUP
      case 'q':
        return memo_[number<uint8_t>()] = top(), true;  // BINPUT
      case 'r':
        return memo_[number<uint32_t>()] = top(), true;  // LONG_BINPUT
      case 0x94:
        return memo_.emplace(memo_.size(), top()), true;  // MEMOIZE
      case 'h':
        return recall(number<uint8_t>());  // BINGET
      case 'j':
        return recall(number<uint32_t>());  // LONG_BINGET
      case 0x93: {                          // STACK_GLOBAL
        const Ref name = pop(), module = pop();
        return push_global(module->text + "." + name->text);
      }
      case 'Q':
        return persistent_id();
      case 'R':
        return reduce();
      case 'b':
        return pop(), true;  // BUILD: `_metadata` of a state dict, no tensor needs it
      default:
        return false;
    }
  }

  bool recall(uint64_t index) {
    const auto it = memo_.find(index);
    if (it == memo_.end()) fail("recalls value ", index, " that was never stored");
    push(it->second);
    return true;
  }

  bool add_items(const std::vector<Ref>& items) {
    const Ref list = top();
    if (list->kind != Kind::kTuple) fail("appends to what is no list");
    list->items.insert(list->items.end(), items.begin(), items.end());
    return true;
  }

  bool set_items(const std::vector<Ref>& pairs) {
    const Ref dict = top();
    if (dict->kind != Kind::kDict || pairs.size() % 2 != 0) fail("sets items of what is no dict");
    for (size_t i = 0; i < pairs.size(); i += 2) {
      if (pairs[i]->kind != Kind::kText && pairs[i]->kind != Kind::kInt) {
        fail("a dict key that is neither text nor a number");
      }
      dict->entries.emplace_back(pairs[i], pairs[i + 1]);
    }
    return true;
  }

  int64_t as_int(Ref value) const {
    if (value->kind != Kind::kInt) fail("expected a number");
    return value->number;
  }
  std::vector<int64_t> as_ints(Ref value) const {
    if (value->kind != Kind::kTuple) fail("expected a tuple of numbers");
    if (value->items.size() > kMaxRank) fail("a tensor of ", value->items.size(), " dimensions");
    std::vector<int64_t> out;
    for (const Ref item : value->items) out.push_back(as_int(item));
    return out;
  }

  // ('storage', class, key, location, size)
  bool persistent_id() {
    const Ref id = pop();
    if (id->kind != Kind::kTuple || id->items.size() != 5 || id->items[0]->text != "storage" ||
        id->items[1]->kind != Kind::kGlobal || id->items[2]->kind != Kind::kText ||
        id->items[2]->text.size() > kMaxStorageKey) {
      fail("unknown persistent id");
    }
    const std::string& type = id->items[1]->text;
    const std::string_view dtype = from_torch(&Dtype::torch_storage, type);
    if (dtype.empty() && type != kUntyped) fail("'", type, "' is no storage");
    const Ref value = make(Kind::kStorage);
    value->text = id->items[2]->text;
    value->dtype = dtype;
    push(value);
    return true;
  }

  // (storage, offset, shape, stride, ...); v3 adds the dtype of an untyped storage.
  bool rebuild_tensor(const std::vector<Ref>& a, bool v3) {
    if (a.size() < (v3 ? 7 : 4) || a[0]->kind != Kind::kStorage) fail("malformed tensor");
    const Ref value = make(Kind::kTensor);
    PickledTensor& t = value->tensor;
    t.dtype = v3 ? from_torch(&Dtype::torch, a[6]->text) : std::string_view(a[0]->dtype);
    if (t.dtype.empty() || v3 != a[0]->dtype.empty()) fail("a tensor without a known dtype");
    t.storage = a[0]->text;
    const int64_t offset = as_int(a[1]);
    if (offset < 0) fail("storage offset ", offset);
    t.offset = static_cast<uint64_t>(offset);
    t.shape = as_ints(a[2]);
    t.stride = as_ints(a[3]);
    if (t.shape.size() != t.stride.size()) fail("shape and stride differ in rank");
    // After requires_grad, hooks and v3's dtype; {"neg": True}: the values have the other sign.
    const size_t metadata = v3 ? 7 : 6;
    if (a.size() > metadata && !a[metadata]->entries.empty()) {
      fail("a tensor that is lazily negated or conjugated; save it again after .resolve_neg()");
    }
    push(value);
    return true;
  }

  bool reduce() {
    const Ref args = pop(), callable = pop();
    if (callable->kind != Kind::kGlobal || args->kind != Kind::kTuple) {
      fail("calls something that is no function");
    }
    const std::vector<Ref>& a = args->items;
    const std::string& name = callable->text;
    if (name == "collections.OrderedDict") {
      if (!a.empty()) fail("OrderedDict with arguments");
      push(make(Kind::kDict));
      return true;
    }
    if (name == "torch._utils._rebuild_tensor_v2") return rebuild_tensor(a, false);
    if (name == "torch._utils._rebuild_tensor_v3") return rebuild_tensor(a, true);
    if (name == "torch._utils._rebuild_parameter") {
      if (a.empty() || a[0]->kind != Kind::kTensor) fail("malformed parameter");
      push(a[0]);
      return true;
    }
    if (name == "torch.Size" || name == "torch.device") return push_other();
    fail("calls '", name, "'");
  }

  std::string_view code_;
  const std::string& source_;
  size_t at_ = 0;
  std::deque<Value> values_;
  std::vector<Ref> stack_;
  std::unordered_map<uint64_t, Ref> memo_;
};

// Walks the dicts and gives everything its joined name.
class Collector {
 public:
  explicit Collector(const std::string& source) : source_(source) {}

  void walk(const Value& dict, const std::string& prefix, int depth) {
    if (depth > kMaxNesting) {
      throw CheckpointError(source_, ": dicts nested deeper than ", kMaxNesting);
    }
    for (const auto& [key, value] : dict.entries) {
      std::string name =
          prefix + (key->kind == Kind::kText ? key->text : std::to_string(key->number));
      name_bytes_ += name.size() + 1;
      if (name_bytes_ > kMaxNameBytes || ++visited_ > kMaxValues) {
        throw CheckpointError(source_, ": too many or too long names");
      }
      if (value->kind == Kind::kDict) {
        walk(*value, name + ".", depth + 1);
      } else if (value->kind == Kind::kTensor) {
        if (!names_.insert(name).second) {
          throw CheckpointError(source_, ": tensor '", name, "' occurs twice");
        }
        out_.tensors.push_back(value->tensor);
        out_.tensors.back().name = std::move(name);
      } else {
        out_.other_values.push_back(std::move(name));
      }
    }
  }
  PickledState take() { return std::move(out_); }

 private:
  const std::string& source_;
  PickledState out_;
  std::set<std::string> names_;
  size_t visited_ = 0, name_bytes_ = 0;
};

}  // namespace

PickledState parse_state_pickle(std::string_view pickle, const std::string& source) {
  Machine machine(pickle, source);
  const Value& root = machine.run();
  if (root.kind != Kind::kDict) {
    throw CheckpointError(source, ": the pickle holds no dict of tensors");
  }
  Collector collector(source);
  collector.walk(root, "", 0);
  return collector.take();
}

}  // namespace mgm
