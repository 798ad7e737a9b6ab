#include "text/bpe_tokenizer.h"

#include <algorithm>

#include "base/error.h"

namespace mgm {
namespace {

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeTokenizerParts parts) : parts_(std::move(parts)) {
    for (auto& [spelling, id] : parts_.vocabulary) set_piece(id, spelling);
    parts_.vocabulary.clear();
    for (const AddedToken& token : parts_.added) add_token(token);
    bos_ = named(parts_.bos, "bos");
    eos_ = named(parts_.eos, "eos");
    pad_ = named(parts_.pad, "pad");
    for (const std::vector<int32_t>& around : {parts_.before, parts_.after}) {
      for (const int32_t id : around) {
        if (!has(id)) {
          throw DataError(parts_.source, ": the post-processor adds id ", id,
                          ", which is no token");
        }
      }
    }
  }

  std::vector<TokenSpan> encode_spans(std::string_view raw) const override {
    const std::string text = clean(raw);
    std::vector<TokenSpan> out;
    for (const int32_t id : parts_.before) out.push_back({id, 0, 0});
    for (const AddedTokenFinder::Part& part : raw_tokens_.split(text, parts_.split_special)) {
      const std::string_view view =
          std::string_view(text).substr(part.begin, part.end - part.begin);
      if (part.token) {
        append(part.token->id, int64_t(part.begin), int64_t(part.end), out);
      } else {
        encode_text(view, int64_t(part.begin), out);
      }
    }
    const auto size = static_cast<int64_t>(text.size());
    for (const int32_t id : parts_.after) out.push_back({id, size, size});
    return out;
  }

  std::string decode(const std::vector<int32_t>& ids, bool skip_special) const override {
    std::vector<std::string> tokens;
    tokens.reserve(ids.size());
    for (const int32_t id : ids) {
      check(id);
      if (!(skip_special && is_special(id))) tokens.push_back(pieces_[size_t(id)]);
    }
    return decode_tokens(parts_.decoder, std::move(tokens));
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(pieces_.size()); }
  std::string piece(int32_t id) const override {
    check(id);
    return pieces_[size_t(id)];
  }
  int32_t token_id(const std::string& piece) const override {
    const auto it = ids_.find(piece);
    return it == ids_.end() ? -1 : it->second;
  }
  bool is_special(int32_t id) const override { return has(id) && special_[size_t(id)]; }
  // One byte that is no UTF-8 spoils the whole run of bytes it is in.
  bool is_tentative(int32_t id) const override {
    return parts_.decoder.byte_fallback && has(id) && is_fallback_byte(pieces_[size_t(id)]);
  }
  int32_t bos_id() const override { return bos_; }
  int32_t eos_id() const override { return eos_; }
  int32_t pad_id() const override { return pad_; }
  bool adds_bos() const override {
    return bos_ >= 0 && !parts_.before.empty() && parts_.before[0] == bos_;
  }
  const TokenizerFiles& files() const override { return parts_.files; }

 private:
  bool has(int32_t id) const {
    return id >= 0 && size_t(id) < pieces_.size() && present_[size_t(id)];
  }
  void check(int32_t id) const {
    if (!has(id)) {
      throw DataError("token id ", id, " is outside the vocabulary of ", vocab_size(), " tokens");
    }
  }

  void set_piece(int32_t id, const std::string& spelling) {
    if (size_t(id) >= pieces_.size()) {
      pieces_.resize(size_t(id) + 1);
      present_.resize(pieces_.size());
      special_.resize(pieces_.size());
    }
    pieces_[size_t(id)] = spelling;
    present_[size_t(id)] = true;
    ids_[spelling] = id;
  }

  void add_token(const AddedToken& token) {
    const auto fail = [&](const auto&... why) {
      throw DataError(parts_.source, ": added token '", token.content, "' (id ", token.id, ") ",
                      why...);
    };
    if (token.content.empty()) fail("is empty");
    if (size_t(token.id) > pieces_.size() + (1 << 20)) fail("is far beyond the vocabulary");
    const auto it = ids_.find(token.content);
    if (it != ids_.end() && it->second != token.id) fail("has the id ", it->second, " before");
    if (it == ids_.end() && has(token.id)) {
      fail("takes the id of '", pieces_[size_t(token.id)], "'");
    }
    set_piece(token.id, token.content);
    special_[size_t(token.id)] = token.special;
    if (token.normalized) {
      AlignedText spelling(token.content, 0);
      normalize(parts_.normalizer, spelling);
      normalized_tokens_.add(std::string(spelling.text()), token);
    } else {
      raw_tokens_.add(token.content, token);
    }
  }

  int32_t named(const std::string& content, const char* role) const {
    if (content.empty()) return -1;
    const int32_t id = token_id(content);
    if (id < 0) {
      throw DataError(parts_.source, ": the ", role, " token '", content,
                      "' is not in the vocabulary");
    }
    return id;
  }

  // A stretch of text without raw tokens that begins at byte `offset`.
  void encode_text(std::string_view text, int64_t offset, std::vector<TokenSpan>& out) const {
    AlignedText aligned(text, offset);
    normalize(parts_.normalizer, aligned);
    if (normalized_tokens_.empty()) return encode_words(aligned, 0, aligned.text().size(), out);
    for (const AddedTokenFinder::Part& part :
         normalized_tokens_.split(aligned.text(), parts_.split_special)) {
      if (part.token) {
        append(part.token->id, aligned.original_begin(part.begin), aligned.original_end(part.end),
               out);
      } else {
        encode_words(aligned, part.begin, part.end, out);
      }
    }
  }

  void encode_words(const AlignedText& text, size_t begin, size_t end,
                    std::vector<TokenSpan>& out) const {
    if (begin == end) return;
    Pieces pieces;
    pieces.list.push_back({&text, begin, end});
    for (const auto& step : parts_.pre_tokenizer.steps) step(pieces);
    static thread_local std::vector<BpeToken> tokens;
    for (const Piece& piece : pieces.list) {
      tokens.clear();
      parts_.bpe->encode(piece.view(), tokens);
      for (const BpeToken& token : tokens) {
        append(token.id, piece.text->original_begin(piece.begin + token.begin),
               piece.text->original_end(piece.begin + token.end), out);
      }
    }
  }

  // Spans never go back: where a normalizer joined characters, the first token has them.
  static void append(int32_t id, int64_t begin, int64_t end, std::vector<TokenSpan>& out) {
    const int64_t floor = out.empty() ? 0 : out.back().end;
    begin = std::max(begin, floor);
    out.push_back({id, begin, std::max(begin, end)});
  }

  BpeTokenizerParts parts_;
  AddedTokenFinder raw_tokens_, normalized_tokens_;
  std::vector<std::string> pieces_;  // by id
  std::vector<bool> present_, special_;
  std::unordered_map<std::string, int32_t> ids_;
  int32_t bos_ = -1, eos_ = -1, pad_ = -1;
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeTokenizerParts parts) {
  return std::make_unique<BpeTokenizer>(std::move(parts));
}

}  // namespace mgm
