#version 460
#extension GL_GOOGLE_include_directive : require
#define GRANULE_ATOMIC64
#include "granule.glsl"
layout(local_size_x = 1) in;

// One access: what the conformance suite's engines do. The result is left in the arguments.
layout(buffer_reference, std430, buffer_reference_align = 8) volatile buffer Access {
    uint64_t what; // 0 load, 1 store, 2 add
    uint64_t at;
    uint64_t value;
};

void granule_turn() {
    Access access = Access(granule_arguments);
    uint64_t value = access.value;
    bool done;
    if (access.what == 0ul) {
        done = granule_load64(access.at, value);
    } else if (access.what == 1ul) {
        done = granule_store64(access.at, value);
    } else {
        uint64_t before;
        done = granule_add64(access.at, value, before);
        value = before;
    }
    if (done) {
        access.value = value;
        granule_finish();
    }
}

void main() {
    granule_run();
}
