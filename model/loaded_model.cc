#include "model/loaded_model.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::model {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

// "models/demo/" -> "demo".
std::string LastComponent(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

absl::StatusOr<GenerationDefaults> LoadGeneration(const std::string& path,
                                                  const ModelConfig& config) {
  const absl::StatusOr<std::string> text = ReadTextFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return DefaultGeneration(config);
  BATON_RETURN_IF_ERROR(text.status());
  return ParseGenerationConfig(*text, path, config);
}

}  // namespace

absl::StatusOr<ModelManifest> ReadModelManifest(const std::string& directory) {
  ModelManifest manifest;
  manifest.directory = directory;
  manifest.name = LastComponent(directory);
  const std::string config_path = absl::StrCat(directory, "/config.json");
  BATON_ASSIGN_OR_RETURN(manifest.config_json, ReadTextFile(config_path, kMaxConfigBytes));
  BATON_ASSIGN_OR_RETURN(manifest.config, ParseModelConfig(manifest.config_json, config_path));
  BATON_ASSIGN_OR_RETURN(
      manifest.generation,
      LoadGeneration(absl::StrCat(directory, "/generation_config.json"), manifest.config));
  return manifest;
}

absl::StatusOr<std::shared_ptr<const LoadedModel>> LoadModel(const std::string& directory) {
  BATON_ASSIGN_OR_RETURN(ModelManifest manifest, ReadModelManifest(directory));
  BATON_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(directory));
  BATON_ASSIGN_OR_RETURN(Weights weights, BindWeights(manifest.config, checkpoint));

  auto model = std::make_shared<LoadedModel>();
  model->directory = directory;
  model->name = std::move(manifest.name);
  model->hash = checkpoint.Hash(manifest.config_json);
  model->config = std::move(manifest.config);
  model->generation = std::move(manifest.generation);
  model->checkpoint = std::move(checkpoint);
  model->weights = std::move(weights);
  return model;
}

}  // namespace baton::model
