// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "experiment.hpp"
#include "kernel.hpp"
#include "run.hpp"

namespace lab {

/// Name and version of the JSON the lab writes; the schema is lab/schema.json.
inline constexpr const char* schema_name = "reuseport-restart-lab/1";

nlohmann::json to_json(const Outcome& outcome);

/// The whole document. @param command the words of the command line.
nlohmann::json document(const KernelAnswer& kernel, const std::vector<std::string>& command,
                        const std::vector<Outcome>& outcomes,
                        const std::vector<Unmeasured>& unmeasured,
                        const std::vector<Check>& checks);

/// What its drains ended with, and how often: "drained 29x, deadline hit 1x".
std::string really(const Outcome& outcome);

/// A table for people: one row an outcome, columns as wide as they need to be.
/// @param wide adds latencies, wrong generation and what the method needs.
std::string table(const std::vector<Outcome>& outcomes, bool wide);

/// Writes beside the file and renames, so that `path` is never half a document.
Result<void> write_file(const std::string& path, const std::string& text);

}  // namespace lab
