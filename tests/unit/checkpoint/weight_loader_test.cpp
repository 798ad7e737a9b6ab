#include "checkpoint/weight_loader.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "checkpoint/tensor_writer.h"
#include "unit/checkpoint/files.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

class WeightLoaderTest : public FilesTest {
 protected:
  void declare(const std::string& name, std::vector<int64_t> shape, at::Tensor value = {}) {
    owned_.push_back(std::make_unique<Param>());
    owned_.back()->spec.name = name;
    owned_.back()->spec.shape = std::move(shape);
    owned_.back()->value = std::move(value);
    params_.push_back(owned_.back().get());
  }
  SourcePtr source(const std::map<std::string, at::Tensor>& tensors) {
    write_safetensors(folder_ / "m.safetensors", tensors);
    return open_safetensors(folder_ / "m.safetensors");
  }

  std::vector<std::unique_ptr<Param>> owned_;
  std::vector<Param*> params_;
};

TEST_F(WeightLoaderTest, CopiesAndBinds) {
  at::Tensor bound = at::zeros({3, 5}, at::kBFloat16).requires_grad_();
  const void* storage = bound.data_ptr();
  declare("bound", {3, 5}, bound);
  declare("same", {7});
  declare("converted", {2});
  declare("scalar", {});
  const at::Tensor fp32 = numbered({3, 5}, 1, at::kFloat), half = numbered({2}, 3, at::kHalf);
  const LoadReport report = load_weights(
      params_, *source({{"bound", fp32},
                        {"same", numbered({7}, 2, at::kFloat)},
                        {"converted", half},
                        {"scalar", numbered({}, 4, at::kDouble)},
                        {"model.layers.3.self_attn.rotary_emb.inv_freq", at::ones({4})},
                        {"vision_model.embeddings.position_ids", at::ones({1, 5}, at::kLong)}}));
  EXPECT_EQ(report.loaded, 4);
  EXPECT_EQ(report.converted, 3);
  EXPECT_EQ(report.bytes, 60u + 28 + 4 + 8);
  EXPECT_EQ(report.ignored.size(), 2u);
  EXPECT_EQ(params_[0]->value.data_ptr(), storage);
  expect_same(params_[0]->value.detach(), fp32.to(at::kBFloat16));
  expect_same(params_[1]->value, numbered({7}, 2, at::kFloat));
  expect_same(params_[2]->value, half.to(at::kFloat));
  expect_same(params_[3]->value, numbered({}, 4, at::kFloat));
}

TEST_F(WeightLoaderTest, SinkGetsTheFilesOwnType) {
  declare("a", {3}, at::zeros({3}, at::kBFloat16));
  std::vector<std::string> got;
  load_weights(params_, *source({{"a", numbered({3}, 1, at::kFloat)}}), {},
               [&](Param& param, int64_t, const at::Tensor& value) {
                 got.push_back(param.spec.name);
                 EXPECT_EQ(value.scalar_type(), at::kFloat);
               });
  EXPECT_EQ(got, std::vector<std::string>{"a"});
  expect_same(params_[0]->value, at::zeros({3}, at::kBFloat16));
}

TEST_F(WeightLoaderTest, TellsEveryProblemAtOnceAndTouchesNothing) {
  declare("model.norm.weight", {4}, at::zeros({4}));
  declare("model.layers.0.mlp.up_proj.weight", {6, 4});
  declare("model.layers.0.self_attn.k_proj.weight", {4, 4});
  declare("model.layers.1.mlp.up_proj.weight", {6, 4});
  const SourcePtr s = source({{"model.norm.weight", at::ones({4})},
                              {"model.layers.0.mlp.up_proj.weight", at::ones({6, 4}, at::kByte)},
                              {"model.layers.0.self_attn.k_proj.weight", at::ones({2, 4})},
                              {"model.layers.2.mlp.up_proj.weight", at::ones({6, 4})}});
  expect_checkpoint_error(
      [&] { load_weights(params_, *s); },
      {"m.safetensors", "4 problems", "the model of 4 tensors", "1 missing:",
       "model.layers.1.mlp.up_proj.weight", "1 unexpected:", "model.layers.2.mlp.up_proj.weight",
       "1 of another shape:", "[2, 4]", "[4, 4] in the model", "num_key_value_heads",
       "1 of a type that is no weight:", "U8", "quantised"});
  expect_same(params_[0]->value, at::zeros({4}));
}

TEST_F(WeightLoaderTest, LikelyCauses) {
  const auto cause = [&](const std::string& name, std::vector<int64_t> want,
                         std::vector<int64_t> have, const std::string& part) {
    owned_.clear();
    params_.clear();
    declare(name, std::move(want));
    const SourcePtr s = source({{name, at::ones(have)}});
    expect_checkpoint_error([&] { load_weights(params_, *s); }, {part});
  };
  const std::string clip = "model.vision_tower.vision_tower.vision_model.";
  cause(
      clip + "embeddings.position_embedding.weight", {577, 8}, {257, 8},
      "16 x 16 patches and the class token, the model 24 x 24 patches and the class token: a CLIP "
      "of another image or patch size");
  cause(clip + "encoder.layers.0.mlp.fc1.weight", {4, 8}, {4, 9}, "a CLIP of another size");
  cause("model.vision_tower_aux.vision_stem.0.weight", {2, 3, 4, 4}, {4, 3, 4, 4}, "ConvNeXt");
  cause("model.embed_tokens.weight", {100, 4}, {103, 4}, "a vocabulary of 103 in the file, of 100");
  cause("model.mm_projector.0.weight", {4, 8}, {4, 9}, "another vision tower");
  cause("model.mm_projector.2.weight", {4, 4}, {5, 5}, "another language model");
  cause("model.vlm_uni_aux_projector.0.weight", {4}, {5}, "another pair of towers");
  cause("model.norm.weight", {4}, {5}, "hidden_size");
}

TEST_F(WeightLoaderTest, AThousandProblemsAreCut) {
  for (int i = 0; i < 1000; ++i) declare(cat("p", i), {1});
  const SourcePtr s = source({});
  expect_checkpoint_error([&] { load_weights(params_, *s); },
                          {"1000 missing", "p11", "... and 988 more"});
}

TEST_F(WeightLoaderTest, MissingAndUnexpectedMayBeAllowed) {
  declare("a", {1}, at::zeros({1}));
  declare("b", {1}, at::zeros({1}));
  LoadOptions options;
  options.allow_unexpected = true;
  options.may_lack = [](const Param& param) { return param.spec.name == "b"; };
  const LoadReport report =
      load_weights(params_, *source({{"a", at::ones({1})}, {"c", at::ones({1})}}), options);
  EXPECT_EQ(report.loaded, 1);
  EXPECT_EQ(report.missing, std::vector<std::string>{"b"});
  EXPECT_EQ(report.unexpected, std::vector<std::string>{"c"});
}

TEST_F(WeightLoaderTest, MissingAndUnusedComeTogether) {
  declare("a", {1}, at::zeros({1}));
  declare("b", {1}, at::zeros({1}));
  declare("c", {1}, at::zeros({1}));
  LoadOptions options;
  options.may_lack = [](const Param& param) { return param.spec.name == "b"; };
  options.unused = {"other.bin: d"};
  options.advice = "look again";
  const SourcePtr s = source({{"a", at::ones({1})}, {"e", at::ones({1})}});
  expect_checkpoint_error([&] { load_weights(params_, *s, options); },
                          {"3 problems", "1 missing:\n  c", "2 unexpected:", "e in ",
                           "\n  other.bin: d", "\nlook again"});
  expect_same(params_[0]->value, at::zeros({1}));
  // Advice is for what is missing.
  params_.pop_back();
  try {
    load_weights(params_, *s, options);
    ADD_FAILURE() << "two tensors are unexpected";
  } catch (const CheckpointError& e) {
    EXPECT_EQ(std::string(e.what()).find("look again"), std::string::npos);
  }
}

TEST_F(WeightLoaderTest, TiedHead) {
  const at::Tensor table = numbered({5, 3}, 1, at::kFloat), other = numbered({5, 3}, 2, at::kFloat);
  declare("model.embed_tokens.weight", {5, 3});
  load_weights(params_, *source({{"model.embed_tokens.weight", table}}));
  const LoadReport report = load_weights(
      params_, *source({{"model.embed_tokens.weight", table}, {"lm_head.weight", table}}));
  EXPECT_EQ(report.ignored, std::vector<std::string>{"lm_head.weight"});
  for (const at::Tensor& head : {other, table.to(at::kHalf), numbered({4, 3}, 1, at::kFloat)}) {
    const SourcePtr s = source({{"model.embed_tokens.weight", table}, {"lm_head.weight", head}});
    expect_checkpoint_error([&] { load_weights(params_, *s); },
                            {"lm_head.weight: differs from model.embed_tokens.weight"});
  }
  declare("lm_head.weight", {5, 3});
  const SourcePtr s = source({{"model.embed_tokens.weight", table}});
  expect_checkpoint_error([&] { load_weights(params_, *s); }, {"1 missing", "tie_word_embeddings"});
}

TEST_F(WeightLoaderTest, NamesTensorsThatAreNotFinite) {
  at::Tensor nan = at::ones({3, 1000001});  // the last element, in a second piece
  nan[2][1000000] = std::nan("");
  at::Tensor inf = at::ones({3}, at::kBFloat16);
  inf[1] = -INFINITY;
  declare("a", nan.sizes().vec());
  declare("b", {3});
  declare("c", {3});
  const SourcePtr s = source({{"a", nan}, {"b", inf}, {"c", at::ones({3}, at::kHalf)}});
  expect_checkpoint_error([&] { load_weights(params_, *s); },
                          {"2 with NaN or infinity", "a in ", "1 NaN and 0 infinite of 3000003",
                           "b in ", "0 NaN and 1 infinite of 3"});
  LoadOptions options;
  options.check_finite = false;
  EXPECT_EQ(load_weights(params_, *s, options).loaded, 3);
}

TEST_F(WeightLoaderTest, RefusesNanOfEveryTypeAtEveryPlace) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    // The largest and the smallest finite values have neighbours that are not.
    at::Tensor good = numbered({3, 70}, 1, type);
    good[0][0] = type == at::kHalf ? 65504 : 1e38;
    good[0][1] = 1e-40;
    declare("a", {3, 70});
    load_weights(params_, *source({{"a", good}}));
    for (const int64_t place : {0, 1, 63, 64, 208, 209}) {
      for (const double value : {std::nan(""), double{INFINITY}, -double{INFINITY}}) {
        at::Tensor bad = good.clone();
        bad.view(-1)[place] = value;
        EXPECT_THROW(load_weights(params_, *source({{"a", bad}})), CheckpointError)
            << type << " " << place << " " << value;
      }
    }
    params_.clear();
  }
}

// What rank `rank` of `world` takes of a parameter of `numel` elements.
ElementRange part_of(int64_t numel, int64_t rank, int64_t world) {
  const int64_t part = (numel + world - 1) / world, first = std::min(numel, rank * part);
  return {first, std::min(part, numel - first)};
}

// Whatever of a mapped tensor lies on pages without an element of `wanted` cannot be read any more:
// a touch ends the process.
void forbid_all_but(const at::Tensor& mapped, const ElementRange& wanted) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto up = [&](uintptr_t at) { return (at + page - 1) / page * page; };
  const auto down = [&](uintptr_t at) { return at / page * page; };
  const auto forbid = [&](uintptr_t begin, uintptr_t end) {
    if (begin >= end) return;
    const int failed = ::mprotect(reinterpret_cast<void*>(begin), end - begin, PROT_NONE);
    MGM_CHECK(failed == 0, "mprotect: ", std::strerror(errno));
  };
  const auto begin = reinterpret_cast<uintptr_t>(mapped.const_data_ptr());
  const uintptr_t size = mapped.element_size(), end = begin + mapped.nbytes();
  const uintptr_t first = begin + size * static_cast<uintptr_t>(wanted.first);
  const uintptr_t last = first + size * static_cast<uintptr_t>(wanted.count);
  forbid(up(begin), down(wanted.count > 0 ? first : end));
  forbid(up(wanted.count > 0 ? last : end), down(end));
}

TEST_F(WeightLoaderTest, RangesOfAllRanksAreTheWholeAndEachIsReadOnce) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    owned_.clear();
    params_.clear();
    declare("a", {101, 13});
    declare("b", {3});  // the last ranks of five have none of it
    const at::Tensor a = numbered({101, 13}, 1, type), b = numbered({3}, 2, type);
    const SourcePtr s = source({{"a", a}, {"b", b}});
    std::map<std::string, at::Tensor> got = {{"a", at::full({1313}, -1, type)},
                                             {"b", at::full({3}, -1, type)}};
    uint64_t bytes = 0;
    for (const int64_t rank : {0, 1, 2, 3, 4}) {
      LoadOptions options;
      options.range = [&](const Param& p) { return part_of(p.spec.numel(), rank, 5); };
      const auto keep = [&](Param& param, int64_t first, const at::Tensor& values) {
        EXPECT_EQ(values.scalar_type(), type);
        at::Tensor place = got[param.spec.name].narrow(0, first, values.numel());
        EXPECT_TRUE(place.eq(-1).all().item<bool>()) << param.spec.name << " comes twice";
        place.copy_(values);
      };
      const uint64_t of_rank = load_weights(params_, *s, options, keep).bytes;
      const int64_t elements = part_of(1313, rank, 5).count + part_of(3, rank, 5).count;
      EXPECT_EQ(of_rank, static_cast<uint64_t>(elements) * a.element_size()) << rank;
      bytes += of_rank;
    }
    EXPECT_EQ(bytes, a.nbytes() + b.nbytes());
    expect_same(got["a"].view({101, 13}), a);
    expect_same(got["b"], b);
  }
}

TEST_F(WeightLoaderTest, NaNOutsideOfTheRangeIsAnotherRanksToFind) {
  declare("a", {40, 10});
  at::Tensor poisoned = at::full({400}, std::nan(""));
  poisoned.narrow(0, 100, 100).copy_(numbered({100}, 1, at::kFloat));
  const SourcePtr s = source({{"a", poisoned.view({40, 10})}});
  LoadOptions options;
  options.range = [](const Param&) { return ElementRange{100, 100}; };
  at::Tensor got;
  load_weights(params_, *s, options, [&](Param&, int64_t first, const at::Tensor& values) {
    EXPECT_EQ(first, 100);
    got = values.clone();
  });
  expect_same(got, numbered({100}, 1, at::kFloat));
  options.range = [](const Param&) { return ElementRange{100, 101}; };
  const auto ignore = [](Param&, int64_t, const at::Tensor&) {};
  expect_checkpoint_error([&] { load_weights(params_, *s, options, ignore); },
                          {"a in ", "1 NaN and 0 infinite of 101"});
}

// Of a mapped file nothing is touched but pages with elements of the range: checks, the overlay
// that every start reads through and bookkeeping included.
TEST_F(WeightLoaderTest, TouchesNoPageOutsideOfTheRange) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto load = [&](const ElementRange& wanted, bool whole) {
    declare("a", {1031, 97});
    declare("other", {1031, 97});  // of another rank altogether
    const at::Tensor a = numbered({1031, 97}, 1, at::kFloat);
    const OverlaySource s({{source({{"a", a}, {"other", a}}), {}}});
    forbid_all_but(s.read("a"), wanted);
    forbid_all_but(s.read("other"), {0, 0});
    LoadOptions options;
    if (!whole) {
      options.range = [&](const Param& param) {
        return param.spec.name == "a" ? wanted : ElementRange{0, 0};
      };
    }
    bool same = false;
    load_weights(params_, s, options, [&](Param&, int64_t first, const at::Tensor& values) {
      const at::Tensor want = a.view(-1).narrow(0, wanted.first, wanted.count);
      same = first == wanted.first && at::equal(values, want);
    });
    std::exit(same ? 0 : 3);
  };
  const auto well = testing::ExitedWithCode(0);
  for (const int64_t rank : {0, 1, 2}) EXPECT_EXIT(load(part_of(100007, rank, 3), false), well, "");
  // The measurement sees a read of everything.
  EXPECT_EXIT(load(part_of(100007, 1, 3), true), [&](int status) { return !well(status); }, "");
}

// Tensors of 256 MiB of which no byte is there; notes what it is asked for, and by how much that is
// ahead of what is read.
class Announced : public TensorSource {
 public:
  Announced() {
    for (const char* name : {"a", "b", "c", "d", "e"}) {
      names_.emplace_back(name);
      infos_[name] = {"F32", at::kFloat, {1 << 26}, uint64_t{1} << 28, "file"};
    }
  }
  std::string description() const override { return "file"; }
  const std::vector<std::string>& names() const override { return names_; }
  bool contains(const std::string& name) const override { return infos_.count(name) > 0; }
  const TensorInfo& info(const std::string& name) const override { return infos_.at(name); }
  at::Tensor read(const std::string& name) const override {
    std::unique_lock lock(mutex);
    if (slow) heard.wait(lock, [&] { return asked.find(name) != asked.npos; });
    ++reads;
    return at::zeros({1}).expand({1 << 26});
  }
  void will_read(const std::string& name, uint64_t begin, uint64_t size) const override {
    const std::lock_guard lock(mutex);
    asked += cat("(", name, " ", begin >> 20, "+", size >> 20, ")");
    most_ahead = std::max(most_ahead, ++count - reads);
    heard.notify_one();
  }
  bool slow = true;  // a read comes behind what was asked for it
  mutable std::mutex mutex;
  mutable std::condition_variable heard;
  mutable std::string asked;
  mutable int count = 0, reads = 0, most_ahead = 0;

 private:
  std::vector<std::string> names_;
  std::map<std::string, TensorInfo> infos_;
};

TEST_F(WeightLoaderTest, AsksTheDiskForWhatComesNext) {
  for (const char* name : {"a", "b", "c", "d", "e"}) declare(name, {1 << 26});
  LoadOptions options;
  options.check_finite = false;
  const auto nothing = [](Param&, int64_t, const at::Tensor&) {};
  const Announced whole, part;
  load_weights(params_, whole, options, nothing);
  EXPECT_EQ(whole.asked, "(a 0+256)(b 0+256)(c 0+256)(d 0+256)(e 0+256)");
  EXPECT_LE(whole.most_ahead, 3);  // half a GiB, and the one that is being read
  options.range = [](const Param&) { return ElementRange{1 << 25, 1 << 24}; };
  load_weights(params_, part, options, nothing);
  EXPECT_EQ(part.asked, "(a 128+64)(b 128+64)(c 128+64)(d 128+64)(e 128+64)");
  Announced fast;  // nobody waits for the asking
  fast.slow = false;
  EXPECT_EQ(load_weights(params_, fast, options, nothing).loaded, 5);
}

TEST_F(WeightLoaderTest, NoParameters) { EXPECT_EQ(load_weights({}, *source({})).loaded, 0); }

}  // namespace
}  // namespace mgm
