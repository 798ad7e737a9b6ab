// mgm inspect: what a model directory or a weights file holds.
#include <iostream>

#include "assemble/inspect.h"
#include "base/strings.h"
#include "cli/commands.h"

namespace mgm::cli {
namespace {

struct InspectArgs {
  std::string path;
  bool tensors = false, json = false;
};

void line(const char* key, const std::string& value) {
  if (!value.empty()) std::cout << strf("%-13s ", key) << printable(value) << "\n";
}

// "F32 61, Q4_1 210".
std::string counts(const std::map<std::string, size_t>& map) {
  std::vector<std::string> out;
  for (const auto& [name, count] : map) out.push_back(cat(name, " ", count));
  return join(out, ", ");
}

void print_files(const Inspection& i) {
  constexpr size_t kShown = 4;
  if (i.files.size() <= kShown) return line("files", counts(i.files));
  line("files", cat(i.files.size(), ", ", i.files.begin()->first, " to ", i.files.rbegin()->first));
}

void print_text(const Inspection& i, bool tensors) {
  line("path", i.path);
  line("kind", i.kind);
  line("format", i.format);
  line("architecture", i.architecture);
  line("class", i.generation.empty() ? i.class_name
                                     : cat(i.class_name, " (names of the ", i.generation,
                                           " generation; mgm writes the mgm one)"));
  std::vector<std::string> sizes;
  for (const auto& [key, value] : i.sizes) sizes.push_back(cat(key, " ", value));
  line("config", join(sizes, ", "));
  line("tensors", cat(i.tensors.size(), ": ", counts(i.dtypes)));
  line("parameters", cat(with_commas(static_cast<int64_t>(i.parameters)), ", ",
                         human_bytes(static_cast<double>(i.bytes)), " when read"));
  print_files(i);
  line("tokenizer", i.tokenizer_files.empty() ? "none" : join(i.tokenizer_files, ", "));
  line("chat", i.chat_template);
  for (const InspectedPart& p : i.parts) {
    line("part",
         p.tensors > 0 ? cat(p.name, ": ", p.tensors, " tensors") : cat(p.name, ": ", p.place));
  }
  for (const std::string& note : i.notes) line("note", note);
  if (!tensors) return;
  for (const InspectedTensor& t : i.tensors) {
    std::vector<std::string> shape;
    for (const int64_t size : t.shape) shape.push_back(std::to_string(size));
    std::cout << printable(t.name) << " " << t.dtype << " [" << join(shape, ", ") << "] " << t.file
              << "\n";
  }
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto args = std::make_shared<InspectArgs>();
  CLI::App* command =
      app.add_subcommand("inspect", "Print what a model directory or a weights file holds");
  command
      ->add_option("path", args->path,
                   "Model directory, safetensors, torch or GGUF file, or the index of shards")
      ->required();
  command->add_flag("--tensors", args->tensors, "Every tensor: name, type, shape, file");
  command->add_flag("--json", args->json, "One JSON object");
  command->footer(
      "Reads headers of weights only, and the tokenizer where a chat template is to be compared.\n"
      "Exit code 4: nothing that can be read is there.\n"
      "Example: mgm inspect runs/tiny/model --tensors");
  command->callback([args] {
    const Inspection found = inspect_weights(args->path);
    if (args->json) {
      std::cout << to_json(found, args->tensors)
                       .dump(2, ' ', false, OrderedJson::error_handler_t::replace)
                << "\n";
    } else {
      print_text(found, args->tensors);
    }
  });
}

}  // namespace mgm::cli
