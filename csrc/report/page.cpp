#include "report/page.h"

#include "base/base64.h"
#include "base/error.h"
#include "base/fs.h"
#include "base/html.h"
#include "base/json.h"
#include "base/json_problem.h"
#include "image/decode.h"
#include "image/encode.h"
#include "image/resize.h"
#include "report/svg.h"

namespace mgm {
namespace {

constexpr int64_t kThumbnail = 144;  // pixels, longer side

constexpr const char* kStyle = R"css(
:root{--ink:#1d2430;--soft:#5d6878;--line:#d9dee6;--page:#fff;--card:#f6f7f9;--curve:#1f6feb;--good:#1a7f37;--bad:#b42318}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa5b4;--line:#343c48;--page:#14181e;--card:#1c222b;--curve:#6aa5ff;--good:#56d364;--bad:#ff7b72}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:28px 20px 60px;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}
p{margin:.4rem 0;max-width:75ch}.soft{color:var(--soft)}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft)}td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
.charts,.cards{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(300px,1fr))}
.charts{grid-template-columns:repeat(auto-fit,minmax(310px,1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px}
.cards .card{display:flex;gap:12px}
img{max-width:100%;border-radius:4px;background:#fff}
.cards img{width:96px;height:96px;object-fit:contain;display:block;margin-bottom:6px}
ul{list-style:none;margin:0;padding:0;font-size:.92rem}li{margin-bottom:.45rem}
.pair{display:flex;gap:8px}.pair img{width:50%;image-rendering:pixelated}
svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:var(--soft)}
.chart-title text{font-size:13px;fill:var(--ink);font-weight:600}
.grid{stroke:var(--line);stroke-width:1}.curve{fill:none;stroke:var(--curve);stroke-width:1.6;stroke-linejoin:round}
.good{color:var(--good)}.bad{color:var(--bad)}
.legend{display:inline-block;width:150px;height:12px;border-radius:3px;border:1px solid var(--line);background:linear-gradient(90deg,rgba(230,60,20,0),rgba(230,60,20,.85))}
)css";

std::string data_uri(const std::string& type, const std::string& bytes) {
  return "data:image/" + type + ";base64," + base64(bytes);
}

std::string thumbnail(const std::string& path) {
  const RgbImage image = decode_rgb(read_file(path), path);
  const double scale = double(kThumbnail) / double(std::max(image.width, image.height));
  const auto side = [&](int64_t pixels) {
    return std::max<int64_t>(1, static_cast<int64_t>(double(pixels) * std::min(1.0, scale)));
  };
  const RgbImage small = resize_bicubic(image, side(image.width), side(image.height));
  return data_uri("jpeg", encode_jpeg(small, 85));
}

std::string percent(const Accuracy& a) {
  return strf("%.1f %%", 100 * a.share()) + cat(" (", a.right, " of ", a.total, ")");
}

std::string accuracies(const std::vector<QuestionSet>& sets) {
  std::string out =
      "<table><tr><th>questions</th><th class=\"number\">as trained</th><th "
      "class=\"number\">pictures "
      "exchanged</th><th class=\"number\">HR map zeroed</th></tr>";
  for (const QuestionSet& set : sets) {
    out += "<tr><td>" + html_escape(set.title) + "</td>";
    for (const Evaluation* e :
         {&set.plain, set.permuted ? &*set.permuted : nullptr, &set.zero_hr}) {
      out += "<td class=\"number\">" + (e ? percent(e->all) : "&ndash;") + "</td>";
    }
    out += "</tr>";
  }
  out += "</table>";
  for (const QuestionSet& set : sets) {
    const std::string why = why_not_exchanged(set);
    if (!why.empty()) out += "<p class=\"soft\">" + html_escape(why) + "</p>";
  }
  return out;
}

// Wordings that many pictures share, the most asked first.
std::string by_question(const QuestionSet& set) {
  std::vector<std::pair<int64_t, std::string>> order;
  for (const auto& [text, accuracy] : set.plain.by_question)
    order.emplace_back(-accuracy.total, text);
  std::sort(order.begin(), order.end());
  constexpr size_t kShown = 12;
  if (order.size() > kShown) order.resize(kShown);
  std::string out =
      "<table><tr><th>question</th><th class=\"number\">as trained</th><th "
      "class=\"number\">pictures "
      "exchanged</th></tr>";
  for (const auto& [count, text] : order) {
    out += "<tr><td>" + html_escape(text) + "</td><td class=\"number\">" +
           percent(set.plain.by_question.at(text)) + "</td><td class=\"number\">" +
           (set.permuted ? percent(set.permuted->by_question.at(text)) : "&ndash;") + "</td></tr>";
  }
  return out + "</table>";
}

std::string answer_row(const Question& q, const std::string& answer) {
  const bool right = answer == q.expected;
  std::string out = "<li>" + html_escape(q.text) + "<br><span class=\"" + (right ? "good" : "bad") +
                    "\">" + html_escape(answer.empty() ? "(nothing)" : answer) + "</span>";
  if (!right) out += " <span class=\"soft\">expected: " + html_escape(q.expected) + "</span>";
  return out + "</li>";
}

// One card per picture (or pictures) with all its questions.
std::string cards(const QuestionSet& set) {
  std::string out = "<div class=\"cards\">";
  for (size_t k = 0; k < set.shown.size();) {
    const std::vector<std::string>& images = set.questions[set.shown[k]].images;
    out += "<div class=\"card\"><div class=\"pictures\">";
    for (const std::string& path : images) {
      out += "<img alt=\"\" src=\"" + thumbnail(path) + "\">";
    }
    out += "</div><ul>";
    for (; k < set.shown.size() && set.questions[set.shown[k]].images == images; ++k) {
      out += answer_row(set.questions[set.shown[k]], set.plain.answers[set.shown[k]]);
    }
    out += "</ul></div>";
  }
  return out + "</div>";
}

std::string charts(const std::vector<RunMetrics>& runs) {
  std::string out = "<div class=\"charts\">";
  for (const RunMetrics& run : runs) {
    const Chart all[] = {{run.name + ": loss", true, run.step, run.loss},
                         {run.name + ": learning rate", false, run.step, run.lr},
                         {run.name + ": gradient norm", true, run.step, run.grad_norm}};
    for (const Chart& chart : all) out += "<div class=\"card\">" + svg_chart(chart) + "</div>";
  }
  return out + "</div>";
}

std::string attention(const std::vector<AttentionPicture>& pictures) {
  std::string out = "<div class=\"charts\">";
  for (const AttentionPicture& picture : pictures) {
    out += "<div class=\"card\"><div class=\"pair\"><img alt=\"\" src=\"" +
           data_uri("png", picture.canvas_png) + "\"><img alt=\"\" src=\"" +
           data_uri("png", picture.overlay_png) + "\"></div><div class=\"soft\">" +
           html_escape(picture.caption) + "</div></div>";
  }
  return out + "</div>";
}

}  // namespace

std::string why_not_exchanged(const QuestionSet& set) {
  if (set.permuted) return "";
  const size_t pictures = count_pictures(set.questions);
  return cat(set.title, ": pictures were not exchanged, since the questions are about ",
             pictures == 0 ? "no picture" : "one picture alone");
}

RunMetrics read_metrics(const std::string& run_dir) {
  const std::string path = (fs::path(run_dir) / "metrics.jsonl").string();
  RunMetrics out;
  out.name = fs::path(run_dir).lexically_normal().filename().string();
  int64_t number = 0;
  for (const std::string& line : split(read_file(path), '\n')) {
    ++number;
    if (line.empty()) continue;
    const std::string where = cat(path, ":", number);
    const Json json = parse_json_line(line, static_cast<size_t>(number), path);
    try {
      // Not finite, or of a step without targets: no point of the curve.
      if (json.at("loss").is_null() || json.at("grad_norm").is_null()) continue;
      out.step.push_back(json.at("step").get<double>());
      out.loss.push_back(json.at("loss").get<double>());
      out.lr.push_back(json.at("lr").get<double>());
      out.grad_norm.push_back(json.at("grad_norm").get<double>());
    } catch (const Json::exception& e) {
      throw DataError(where, ": no line of metrics: ", json_problem(e));
    }
  }
  return out;
}

std::string report_page(const Report& report) {
  std::string out =
      "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
      "<title>mgm report</title><style>";
  out += kStyle;
  out += "</style></head><body><h1>Mini-Gemini, two stages</h1><p class=\"soft\">" +
         html_escape(report.model_summary) + "</p>";
  if (!report.note.empty()) out += "<p>" + html_escape(report.note) + "</p>";
  out += "<h2>Exact answers</h2>" + accuracies(report.sets);
  out += "<h2>Training</h2>" + charts(report.runs);
  for (const QuestionSet& set : report.sets) {
    out += "<h2>" + html_escape(set.title) + "</h2>" + cards(set);
  }
  if (!report.sets.empty()) {
    out += "<h2>By question, " + html_escape(report.sets.front().title) + "</h2>" +
           by_question(report.sets.front());
  }
  if (!report.attention.empty()) {
    out +=
        "<h2>Where patch info mining looks</h2><p>Each low-resolution token weighs the positions "
        "of "
        "its own window of the high-resolution map. Left the picture, right the weights: untinted "
        "where a position gets its even share or less, full tint at four times that.<br>1 &times; "
        "<span class=\"legend\"></span> 4 &times;</p>" +
        attention(report.attention);
  }
  return out + "</body></html>\n";
}

}  // namespace mgm
