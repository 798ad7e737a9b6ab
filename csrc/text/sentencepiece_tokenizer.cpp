// Equal to Hugging Face's slow LlamaTokenizer and GemmaTokenizer (transformers 4.57): added and
// special tokens are split off first, longest match at the leftmost place; what is between goes to
// sentencepiece.
#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "text/tokenizer_kinds.h"
#include "text/tokenizer_settings.h"
#include "text/utf8.h"

namespace mgm {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, sentencepiece's blank

// The settings of the files over those the slow classes start from.
TokenizerSettings settings_of(const TokenizerFiles& files, const fs::path& source) {
  TokenizerSettings settings = parse_settings_files(files, source.parent_path());
  const bool gemma = settings.class_name.rfind("Gemma", 0) == 0;
  settings.use_defaults_of(gemma ? "GemmaTokenizer" : "LlamaTokenizer");
  settings.add_bos = settings.add_bos.value_or(true);
  settings.add_eos = settings.add_eos.value_or(false);
  settings.add_prefix_space = settings.add_prefix_space.value_or(true);
  const auto check = [&](bool asked, const char* key, const char* flag) {
    if (!asked || !settings.role(key).empty()) return;
    throw DataError(source.string(), ": the settings beside it ask for a token that they say is ",
                    "null: ", flag, " is true and ", key, " null; name the token or set ", flag,
                    ": false");
  };
  check(*settings.add_bos, "bos_token", "add_bos_token");
  check(*settings.add_eos, "eos_token", "add_eos_token");
  return settings;
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::string& model, TokenizerSettings settings,
                         const std::string& source, TokenizerFiles files)
      : settings_(std::move(settings)),
        files_(std::move(files)),
        gemma_(settings_.class_name.rfind("Gemma", 0) == 0) {
    std::string proto = model;
    // legacy: false turns the dummy prefix off. A later field of a protobuf message overrides an
    // earlier one, so a second NormalizerSpec {add_dummy_prefix: false} behind the model is enough.
    if (!gemma_ && !settings_.legacy) proto += std::string("\x1A\x02\x18\x00", 4);
    const auto status = processor_.LoadFromSerializedProto(proto);
    if (!status.ok()) {
      throw DataError(source, ": not a sentencepiece model: ", status.ToString());
    }
    add_tokens(source);
    unk_text_ = settings_.role("unk_token");
    unk_prefix_ = encode_plain(unk_text_).size();
  }

  std::vector<TokenSpan> encode_spans(std::string_view raw) const override {
    const std::string replaced = clean(raw);
    const std::string_view text = replaced;
    std::vector<TokenSpan> out;
    if (adds_bos()) out.push_back({bos_, 0, 0});
    encode_body(text, out);
    const auto size = static_cast<int64_t>(text.size());
    if (*settings_.add_eos && eos_ >= 0) out.push_back({eos_, size, size});
    return out;
  }

  std::string decode(const std::vector<int32_t>& ids, bool skip_special) const override {
    std::string out;
    std::vector<int32_t> group;  // ids since the last added token that stands apart
    const auto append = [&](const std::string& text) {
      if (text.empty()) return;
      if (!out.empty() && !gemma_) out += " ";
      out += text;
    };
    for (const int32_t id : ids) {
      if (is_special(id) && skip_special) continue;
      if (!stands_apart(id)) {
        group.push_back(id);
        continue;
      }
      append(decode_group(group));
      append(piece(id));
      group.clear();
    }
    if (!group.empty() && !out.empty() && !gemma_) out += " ";  // though it may be empty
    return out + decode_group(group);
  }

  int64_t vocab_size() const override {
    int64_t size = processor_.GetPieceSize();
    for (const auto& [id, token] : settings_.added) size = std::max<int64_t>(size, id + 1);
    return size;
  }
  std::string piece(int32_t id) const override {
    const auto it = settings_.added.find(id);
    if (it != settings_.added.end()) return it->second.content;
    if (id < 0 || id >= processor_.GetPieceSize()) {
      throw DataError("token id ", id, " is outside the vocabulary of ", vocab_size(), " tokens");
    }
    return processor_.IdToPiece(id);
  }
  int32_t token_id(const std::string& text) const override {
    const auto it = by_content_.find(text);
    if (it != by_content_.end()) return it->second;
    const int id = processor_.PieceToId(text);
    return id == processor_.unk_id() && text != unk_text_ ? -1 : id;
  }
  bool is_special(int32_t id) const override {
    const auto it = settings_.added.find(id);
    return it != settings_.added.end() && it->second.special;
  }
  int32_t bos_id() const override { return bos_; }
  int32_t eos_id() const override { return eos_; }
  int32_t pad_id() const override { return pad_; }
  bool adds_bos() const override { return *settings_.add_bos && bos_ >= 0; }
  const TokenizerFiles& files() const override { return files_; }

 private:
  // The named special tokens are added tokens too, whether or not added_tokens_decoder lists them.
  void add_tokens(const std::string& source) {
    std::optional<int32_t> next;  // the id of a token that is new; as Hugging Face, by counting
    for (const NamedToken& named : settings_.special_tokens()) {
      const std::string& content = named.token.content;
      const auto listed = [&](const NamedToken& one) {
        return one.additional && one.token.content == content;
      };
      const auto& more = settings_.additional;
      if (std::none_of(more.begin(), more.end(), listed)) in_roles_.insert(content);
      const auto same = [&](const auto& have) { return have.second.content == content; };
      auto it = std::find_if(settings_.added.begin(), settings_.added.end(), same);
      if (it != settings_.added.end() && !(named.details && named.additional)) {
        it->second.special = true;
        continue;
      }
      const bool listed_before = it != settings_.added.end();
      int32_t id = listed_before ? it->first : processor_.PieceToId(content);
      if (!listed_before && (settings_.added.count(id) || processor_.IdToPiece(id) != content)) {
        if (!next) next = count_names();
        id = (*next)++;
        if (settings_.added.count(id)) {
          throw DataError(source, ": the special token '", content, "' is to be added with the id ",
                          id, ", which added_tokens_decoder gives to '",
                          settings_.added[id].content,
                          "'; list it in added_tokens_decoder with an id of its own");
        }
      }
      settings_.added[id] = named.token;
      settings_.added[id].id = id;
    }
    const auto id_of = [&](const char* role) {
      const std::string content = settings_.role(role);
      for (const auto& [id, token] : settings_.added) {
        if (!content.empty() && token.content == content) return id;
      }
      return -1;
    };
    unk_ = id_of("unk_token");
    bos_ = id_of("bos_token");
    eos_ = id_of("eos_token");
    pad_ = id_of("pad_token");
    for (const auto& [id, token] : settings_.added) {
      if (token.content.empty()) throw DataError(source, ": added token ", id, " is empty");
      if (token.single_word) {
        throw DataError(source, ": added token '", token.content,
                        "' has single_word, which is not ",
                        "supported beside a sentencepiece model; a tokenizer.json in place of it ",
                        "is read with it");
      }
      by_content_[token.content] = id;
      longest_ = std::max(longest_, token.content.size());
      first_byte_[static_cast<uint8_t>(token.content[0])] = true;
    }
  }

  // Different tokens, those of the model and the added ones.
  int32_t count_names() const {
    std::unordered_set<std::string> names;
    for (int32_t id = 0; id < processor_.GetPieceSize(); ++id) names.insert(piece(id));
    for (const auto& [id, token] : settings_.added) names.insert(token.content);
    return static_cast<int32_t>(names.size());
  }

  struct Part {
    int64_t begin, end;
    const AddedToken* token;  // null: plain text
  };

  std::vector<Part> split_added(std::string_view text) const {
    std::vector<Part> parts;
    size_t plain = 0;
    for (size_t at = settings_.split_special ? text.size() : 0; at < text.size();) {
      const AddedToken* hit = nullptr;
      if (first_byte_[static_cast<uint8_t>(text[at])]) {
        for (size_t n = std::min(longest_, text.size() - at); n > 0 && !hit; --n) {
          const auto it = by_content_.find(std::string(text.substr(at, n)));
          if (it != by_content_.end()) hit = &settings_.added.at(it->second);
        }
      }
      if (!hit) {
        ++at;
        continue;
      }
      if (at > plain) parts.push_back({int64_t(plain), int64_t(at), nullptr});
      parts.push_back({int64_t(at), int64_t(at + hit->content.size()), hit});
      at += hit->content.size();
      plain = at;
    }
    if (plain < text.size()) parts.push_back({int64_t(plain), int64_t(text.size()), nullptr});
    const auto of = [&](const Part& part) {
      return text.substr(size_t(part.begin), size_t(part.end - part.begin));
    };
    for (size_t i = 0; i < parts.size(); ++i) {
      if (!parts[i].token) continue;
      if (parts[i].token->rstrip && i + 1 < parts.size() && !parts[i + 1].token) {
        parts[i + 1].begin += int64_t(space_in_front(of(parts[i + 1])));
      }
      if (parts[i].token->lstrip && i > 0 && !parts[i - 1].token) {
        parts[i - 1].end -= int64_t(space_behind(of(parts[i - 1])));
      }
    }
    return parts;
  }

  // What str.lstrip() and rstrip() take away; without legacy a U+2581 of the text is a blank by
  // then.
  size_t space_in_front(std::string_view text) const {
    size_t count = leading_space(text);
    while (modern() && text.substr(count).starts_with(kSpace)) {
      count += kSpace.size();
      count += leading_space(text.substr(count));
    }
    return count;
  }
  size_t space_behind(std::string_view text) const {
    size_t rest = text.size() - trailing_space(text);
    while (modern() && text.substr(0, rest).ends_with(kSpace)) {
      rest -= kSpace.size();
      rest -= trailing_space(text.substr(0, rest));
    }
    return text.size() - rest;
  }
  bool modern() const { return !gemma_ && !settings_.legacy; }

  void encode_body(std::string_view text, std::vector<TokenSpan>& out) const {
    // LlamaTokenizer.tokenize, legacy False: the blank goes in front of the text once, then the
    // text is split, and the prefix is dropped again if it stands alone before a special token.
    const bool prefix = modern() && *settings_.add_prefix_space && !text.empty();
    bool first = true;
    std::vector<TokenSpan> body;
    const std::vector<Part> parts = split_added(text);
    if (prefix && !parts.empty() && parts[0].token && !parts[0].token->special) {
      encode_text("", 0, true, body);  // a blank before a token that is added but not special stays
    }
    for (const Part& part : parts) {
      if (part.token) {
        body.push_back({part.token->id, part.begin, part.end});
      } else if (part.begin < part.end) {
        encode_text(text.substr(size_t(part.begin), size_t(part.end - part.begin)), part.begin,
                    prefix && first, body);
      }
      first = false;
    }
    // Without the prefix the same rule hits a blank of the text itself.
    const bool lone = modern() && body.size() > 1 && piece(body[0].id) == kSpace;
    const bool drop = lone && is_special(body[1].id);
    out.insert(out.end(), body.begin() + (drop ? 1 : 0), body.end());
  }

  // One stretch of plain text at byte `offset`, with a blank put before it if `prefix`.
  void encode_text(std::string_view text, int64_t offset, bool prefix,
                   std::vector<TokenSpan>& out) const {
    std::string input(text);
    int64_t inserted = 0;  // bytes of `input` that are not in the text
    if (modern()) {
      if (prefix) input.insert(0, kSpace), inserted += int64_t(kSpace.size());
      // sentencepiece strips leading blanks; behind the unknown token's spelling they survive, and
      // its pieces are cut off again (LlamaTokenizer._tokenize).
      const bool blank = input.rfind(kSpace, 0) == 0 || input.rfind(' ', 0) == 0;
      const std::vector<TokenSpan> pieces = encode_plain(blank ? unk_text_ + input : input);
      const auto unk_bytes = blank ? int64_t(unk_text_.size()) : int64_t{0};
      const size_t skip = blank && pieces.size() >= unk_prefix_ ? unk_prefix_ : 0;
      append(pieces, skip, offset - inserted - unk_bytes, offset, out);
      return;
    }
    append(encode_plain(input), 0, offset, offset, out);
  }

  static void append(const std::vector<TokenSpan>& pieces, size_t skip, int64_t shift,
                     int64_t floor, std::vector<TokenSpan>& out) {
    for (size_t i = skip; i < pieces.size(); ++i) {
      out.push_back({pieces[i].id, std::max(floor, pieces[i].begin + shift),
                     std::max(floor, pieces[i].end + shift)});
    }
  }

  std::vector<TokenSpan> encode_plain(const std::string& text) const {
    const auto proto = processor_.EncodeAsImmutableProto(text);
    std::vector<TokenSpan> out;
    out.reserve(proto.pieces_size());
    for (size_t i = 0; i < proto.pieces_size(); ++i) {
      const auto piece = proto.pieces(static_cast<int>(i));
      out.push_back({static_cast<int32_t>(piece.id()), static_cast<int64_t>(piece.begin()),
                     static_cast<int64_t>(piece.end())});
    }
    return out;
  }

  // Added tokens that Hugging Face decodes on their own, with a blank on both sides (Llama's
  // class).
  bool stands_apart(int32_t id) const {
    const auto it = settings_.added.find(id);
    if (it == settings_.added.end()) return false;
    if (gemma_ || !it->second.special) return true;
    return !in_roles_.count(it->second.content) && id >= processor_.GetPieceSize();
  }

  // LlamaTokenizer.convert_tokens_to_string, blanks in odd places included.
  std::string decode_group(const std::vector<int32_t>& ids) const {
    std::string out;
    std::vector<std::string> run;  // pieces since the last special token
    bool after_special = false;
    const bool prefix = *settings_.add_prefix_space && !gemma_;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::string text = piece(ids[i]);
      if (is_special(ids[i])) {
        if (!after_special && i != 0 && settings_.legacy) out += " ";
        out += decode_run(run) + text;
        run.clear();
        after_special = true;
        continue;
      }
      if (after_special && i == 1 && prefix && text.rfind(kSpace, 0) != 0) out += " ";
      run.push_back(i == 0 && prefix ? without_space(text) : text);
      after_special = false;
    }
    return out + decode_run(run);
  }

  std::string decode_run(const std::vector<std::string>& run) const {
    return run.empty() ? std::string() : processor_.DecodePieces(run);
  }
  static std::string without_space(const std::string& text) {
    return text.rfind(kSpace, 0) == 0 ? text.substr(kSpace.size()) : text;
  }

  sentencepiece::SentencePieceProcessor processor_;
  TokenizerSettings settings_;
  TokenizerFiles files_;
  bool gemma_;
  std::unordered_map<std::string, int32_t> by_content_;
  std::unordered_set<std::string> in_roles_;  // special, and not listed as additional
  std::array<bool, 256> first_byte_{};
  size_t longest_ = 0;
  std::string unk_text_;
  size_t unk_prefix_ = 0;  // pieces the unknown token's spelling takes
  int32_t unk_ = -1, bos_ = -1, eos_ = -1, pad_ = -1;
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece(const fs::path& path) {
  TokenizerFiles files = {{"tokenizer.model", read_file(path)}};
  read_settings_files(path.parent_path(), files);
  return make_sentencepiece_tokenizer(path, std::move(files));
}

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(const fs::path& source,
                                                        TokenizerFiles files) {
  TokenizerSettings settings = settings_of(files, source);
  const std::string model = files.front().second;
  return std::make_unique<SentencePieceTokenizer>(model, std::move(settings), source.string(),
                                                  std::move(files));
}

}  // namespace mgm
