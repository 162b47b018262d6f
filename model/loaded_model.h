#ifndef BATON_MODEL_LOADED_MODEL_H_
#define BATON_MODEL_LOADED_MODEL_H_

// A checkpoint directory: described by its JSON files (ModelManifest), or with its weights ready to
// run (LoadedModel: what several Runners of one process share). Immutable; any thread may read.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/weights.h"

namespace baton::model {

struct ModelManifest {
  std::string directory;
  std::string name;  // last component of the directory
  std::string config_json;
  ModelConfig config;
  GenerationDefaults generation;
};

// Reads config.json and generation_config.json (optional), nothing else. NOT_FOUND for a missing
// file, INVALID_ARGUMENT with every problem of the first file that has any.
absl::StatusOr<ModelManifest> ReadModelManifest(const std::string& directory);

struct LoadedModel {
  std::string directory;
  std::string name;  // last component of the directory
  std::string hash;  // Checkpoint::Hash: equal on all workers that may share a request
  ModelConfig config;
  GenerationDefaults generation;
  Checkpoint checkpoint;
  Weights weights;  // views into `checkpoint`
};

// Reads the manifest and the safetensors of `directory`. Takes as
// long as mapping the files and reading their headers. NOT_FOUND for a missing file,
// INVALID_ARGUMENT with every problem of the first file set that has any.
absl::StatusOr<std::shared_ptr<const LoadedModel>> LoadModel(const std::string& directory);

}  // namespace baton::model

#endif  // BATON_MODEL_LOADED_MODEL_H_
