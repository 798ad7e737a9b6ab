#include "formats/pickle.h"

#include <gtest/gtest.h>

#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

using namespace std::string_literals;

// Pieces of pickles, by hand.
const std::string kStart = "\x80\x02"s;
std::string text(const std::string& s) {
  return "\x8c"s + static_cast<char>(s.size()) + s;  // SHORT_BINUNICODE
}
std::string small(int n) { return "K"s + static_cast<char>(n); }
std::string storage(const std::string& type, const std::string& key) {
  return "(" + text("storage") + "c" + type + "\n" + text(key) + text("cpu") + small(6) + "tQ";
}
// A [2, 3] tensor, column-major.
std::string tensor(const std::string& storage_code) {
  return "ctorch._utils\n_rebuild_tensor_v2\n(" + storage_code + small(1) + small(2) + small(3) +
         "\x86" + small(1) + small(2) + "\x86" + "\x89" + "ccollections\nOrderedDict\n)RtR";
}
const std::string kTensor = tensor(storage("torch\nFloatStorage", "0"));

PickledState parse(const std::string& code) { return parse_state_pickle(code, "f.bin"); }
void refuse(const std::string& code, std::initializer_list<std::string> parts) {
  expect_checkpoint_error([&] { parse(code); }, parts);
}

TEST(Pickle, WritesAndReadsBack) {
  const std::vector<PickledTensor> tensors = {
      {"a.weight", "F32", "0", 0, {3, 5}, {5, 1}},
      {"scalar", "BF16", "1", 0, {}, {}},
      {"empty", "I64", "2", 0, {0, 7}, {7, 1}},
      {"long", "U8", "storage", int64_t{1} << 40, {int64_t{1} << 33}, {1}},
  };
  const PickledState state = parse(make_state_pickle(tensors));
  ASSERT_EQ(state.tensors.size(), tensors.size());
  EXPECT_TRUE(state.other_values.empty());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const PickledTensor &a = tensors[i], &b = state.tensors[i];
    EXPECT_EQ(std::tie(a.name, a.dtype, a.storage, a.offset, a.shape, a.stride),
              std::tie(b.name, b.dtype, b.storage, b.offset, b.shape, b.stride));
  }
  EXPECT_TRUE(parse(make_state_pickle({})).tensors.empty());
  EXPECT_THROW(make_state_pickle({{"a", "F8_E4M3", "0", 0, {1}, {1}}}), CheckpointError);
}

TEST(Pickle, NestedDictsAndOtherValues) {
  const PickledState state =
      parse(kStart + "}(" + text("model") + "}(" + text("w") + kTensor + small(7) + kTensor + "u" +
            text("epoch") + small(3) + text("none") + "N" + text("list") + "]" + small(1) + "a" +
            text("size") + "ctorch\nSize\n" + small(1) + "\x85\x85R" + "u.");
  ASSERT_EQ(state.tensors.size(), 2u);
  EXPECT_EQ(state.tensors[0].name, "model.w");
  EXPECT_EQ(state.tensors[1].name, "model.7");
  EXPECT_EQ(state.tensors[0].offset, 1u);
  EXPECT_EQ(state.tensors[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(state.tensors[0].stride, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(state.other_values, (std::vector<std::string>{"epoch", "none", "list", "size"}));
}

TEST(Pickle, ForeignGlobalsAreNamed) {
  for (const std::string global :
       {"posix\nsystem", "builtins\neval", "numpy.core.multiarray\nscalar",
        "torch._utils\n_rebuild_from_type_v2", "torch\nload"}) {
    std::string dotted = global;
    dotted[dotted.find('\n')] = '.';
    refuse(kStart + "c" + global + "\n" + text("id") + "\x85R.", {"f.bin", "'" + dotted + "'"});
  }
  // By STACK_GLOBAL, and hidden where nobody looks at the value.
  refuse(kStart + "}" + text("x") + text("os") + text("system") + "\x93s.", {"'os.system'"});
  refuse(kStart + "}" + text("x") + text("os\nsystem") + "N\x93s.", {"refusing"});
}

TEST(Pickle, CallsOnlyWhatBuildsTensors) {
  refuse(kStart + "ctorch\nFloatStorage\n)R.", {"calls 'torch.FloatStorage'"});
  refuse(kStart + "ccollections\nOrderedDict\n" + small(1) + "\x85R.", {"with arguments"});
  refuse(kStart + small(1) + ")R.", {"no function"});
  refuse(kStart + text("storage") + "Q.", {"persistent id"});
  refuse(kStart + tensor(storage("collections\nOrderedDict", "0")) + ".", {"is no storage"});
  refuse(kStart + tensor(storage("torch.storage\nUntypedStorage", "0")) + ".", {"known dtype"});
}

TEST(Pickle, RefusesMalformed) {
  refuse("", {"ends too early"});
  refuse(kStart, {"ends too early"});
  refuse(kStart + ".", {"not there"});
  refuse(kStart + "(.", {"not there"});
  refuse("\x80\x09.", {"protocol 9"});
  refuse(kStart + "t.", {"no mark"});
  refuse(kStart + "h\x05.", {"never stored"});
  refuse(kStart + small(1) + text("a") + "Ns.", {"no dict"});
  refuse(kStart + "}(" + small(1) + "u.", {"no dict"});
  refuse(kStart + "}}" + small(1) + "s.", {"key"});
  refuse(kStart + "X\xff\xff\xff\xff.", {"ends too early"});
  refuse(kStart + "\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", {"ends too early"});
  refuse(kStart + "\x81.", {"opcode 129"});
  refuse(kStart + small(1) + ".", {"no dict of tensors"});
  refuse(kStart + "}" + text("a") + kTensor + "s" + text("a") + kTensor + "s.",
         {"'a' occurs twice"});
}

TEST(Pickle, HostileSizes) {
  // A dict inside itself, twice: 2^depth names if walked without care.
  const std::string loop = kStart + "}q\x00"s + text("a") + "h\x00s"s + text("b") + "h\x00s."s;
  refuse(loop, {"nested deeper"});
  // Sixty levels of two references each, no cycle.
  std::string tree = kStart + "}";
  for (int level = 0; level < 60; ++level) {
    tree += "q\x01}"s + text("a") + "h\x01s"s + text("b") + "h\x01s"s;
  }
  refuse(tree + ".", {"too many"});
  // A tensor of a hundred dimensions.
  std::string shape = "(";
  for (int i = 0; i < 100; ++i) shape += small(1);
  shape += "t";
  refuse(kStart + "ctorch._utils\n_rebuild_tensor_v2\n(" + storage("torch\nFloatStorage", "0") +
             small(0) + shape + shape + "tR.",
         {"100 dimensions"});
  // Values without end.
  refuse(kStart + std::string(3 << 20, 'N') + ".", {"too many values"});
  refuse(kStart + "N" + std::string(3 << 20, '2') + ".", {"too many values"});
}

}  // namespace
}  // namespace mgm
