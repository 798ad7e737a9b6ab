#include "data/show.h"

#include "base/base64.h"
#include "base/html.h"
#include "base/strings.h"
#include "image/encode.h"
#include "text/tokenizer.h"
#include "types/batch.h"

namespace mgm {
namespace {

constexpr int kJpegQuality = 90;

// Tokens as one shows them: a picture's rows are one entry.
struct Shown {
  int64_t id = 0;
  std::string text;
  bool supervised = false;
};

std::vector<Shown> shown_tokens(const Sample& sample, const SampleBuilder& builder) {
  std::vector<Shown> out;
  const Tokenizer& tokenizer = builder.tokenizer();
  StreamDecoder decoder(tokenizer);  // a character of several tokens shows with the last of them
  const auto visual = static_cast<size_t>(builder.geometry().tokens());
  size_t picture = 0;
  for (size_t t = 0; t < sample.ids.size(); ++t) {
    const auto id = static_cast<int32_t>(sample.ids[t]);
    const bool supervised = sample.labels[t] != kIgnoreIndex;
    if (id == kImageTokenIndex) {
      out.push_back({id, cat("<image ", ++picture, ": ", visual, " visual tokens>"), false});
      t += visual - 1;
    } else {
      out.push_back(
          {id, tokenizer.is_special(id) ? tokenizer.piece(id) : decoder.push(id), supervised});
    }
  }
  if (!out.empty()) out.back().text += decoder.finish();
  return out;
}

std::string geometry_line(const ImageGeometry& g) {
  std::string out =
      cat("HR canvas ", g.hr_size, " x ", g.hr_size, ", ", g.lr_views(), " LR view",
          g.lr_views() == 1 ? "" : "s", " of ", g.lr_size, " x ", g.lr_size, " (", g.grid, " x ",
          g.grid, " tiles", g.global ? " + global" : "", "), ", g.tokens(), " visual tokens");
  if (g.window > 0) out += cat(", each looks at ", g.window, " x ", g.window, " HR positions");
  return out;
}

std::string counts_line(const Sample& sample, const SampleBuilder& builder) {
  const auto visual = static_cast<int64_t>(sample.pictures.size()) * builder.geometry().tokens();
  const auto tokens = static_cast<int64_t>(sample.ids.size());
  std::string out = cat(tokens, " tokens (", tokens - visual, " text, ", visual, " visual), ",
                        sample.targets, " supervised");
  if (sample.straddling_tokens > 0) {
    out += cat("; ", sample.straddling_tokens,
               " not, being the end of a prompt and the beginning of its answer in one");
  }
  return out;
}

constexpr const char* kPage = R"(<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>sample</title><style>
body{font:16px/1.6 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
.text{white-space:pre-wrap;border:1px solid #ccc;border-radius:6px;padding:1em}
.s{background:#b8e6b8}.i{background:#cfe0ff}.ids{font:13px/1.5 monospace;overflow-wrap:anywhere}
span:hover{outline:1px solid #888}figure{display:inline-block;margin:0 1em 1em 0}
figcaption{font-size:13px;max-width:384px;overflow-wrap:anywhere}img{max-width:384px;border:1px solid #ccc}
</style></head><body>
)";

}  // namespace

std::string show_text(const Sample& sample, const SampleBuilder& builder, const Marks& marks) {
  const std::vector<Shown> tokens = shown_tokens(sample, builder);
  std::string out = cat(builder.annotations().where(sample.index), ", index ", sample.index,
                        sample.id.empty() ? "" : cat(", id '", sample.id, "'"), "\n",
                        counts_line(sample, builder), "\n");
  for (const Picture& picture : sample.pictures) {
    out += cat("picture ", picture.path, ": ", picture.width, " x ", picture.height, "\n");
  }
  if (!sample.pictures.empty()) out += geometry_line(builder.geometry()) + "\n";
  out += cat("\ntext, supervised tokens ", marks.open, "so", marks.close, ":\n");
  bool inside = false;
  for (const Shown& token : tokens) {
    if (token.supervised != inside) out += token.supervised ? marks.open : marks.close;
    inside = token.supervised;
    out += token.text;
  }
  if (inside) out += marks.close;
  out += "\n\nids:\n";
  inside = false;
  for (const Shown& token : tokens) {
    if (token.supervised != inside) out += token.supervised ? marks.open : marks.close;
    inside = token.supervised;
    out += cat(token.id, " ");
  }
  if (inside) out += marks.close;
  return out + "\n";
}

std::string show_html(const Sample& sample, const SampleBuilder& builder) {
  const std::vector<Shown> tokens = shown_tokens(sample, builder);
  std::string out = kPage;
  out += cat("<h1>", html_escape(sample.id.empty() ? cat("sample ", sample.index) : sample.id),
             "</h1>\n<p>", html_escape(builder.annotations().where(sample.index)), ", index ",
             sample.index, "<br>", counts_line(sample, builder), "</p>\n");
  for (const Picture& picture : sample.pictures) {
    out += cat("<figure><img alt=\"the HR canvas\" src=\"data:image/jpeg;base64,",
               base64(encode_jpeg(picture.canvas, kJpegQuality)), "\"><figcaption>",
               html_escape(picture.path), "<br>", picture.width, " x ", picture.height,
               "; shown as the model gets it</figcaption></figure>\n");
  }
  if (!sample.pictures.empty()) {
    out += cat("<p>", geometry_line(builder.geometry()), "</p>\n");
  }
  out +=
      "<p>The <span class=\"s\">supervised tokens</span> are what the model learns to write.</p>"
      "\n<div class=\"text\">";
  for (const Shown& token : tokens) {
    out += cat("<span class=\"",
               token.id == kImageTokenIndex ? "i"
               : token.supervised           ? "s"
                                            : "t",
               "\" title=\"", token.id, "\">", html_escape(token.text), "</span>");
  }
  out += "</div>\n<p class=\"ids\">";
  for (const Shown& token : tokens) {
    out += cat(token.supervised ? "<span class=\"s\">" : "<span>", token.id, "</span> ");
  }
  return out + "</p>\n</body></html>\n";
}

}  // namespace mgm
