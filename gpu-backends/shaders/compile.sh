#!/usr/bin/env bash
# Compiles the shaders; a test does the same and compares. glslangValidator 12.0.0 (Debian 12) gives these very bytes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
for source in *.comp; do
    glslangValidator --quiet -V --target-env vulkan1.2 -o "${source%.comp}.spv" "$source"
    spirv-val --target-env vulkan1.2 "${source%.comp}.spv"
done
