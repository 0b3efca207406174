#version 460
#extension GL_GOOGLE_include_directive : require
#define GRANULE_ATOMIC64
#include "granule.glsl"
layout(local_size_x = 64) in;

// Counts in every page of an array while others do: an item adds one to the first word of a page, so many times.
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Arguments {
    uint64_t data;
    uint64_t counters;
    uint64_t times;
};

void granule_turn() {
    Arguments arguments = Arguments(granule_arguments);
    uint64_t at = arguments.data + 0x1000ul * (uint64_t(granule_number) % arguments.counters);
    uint64_t times = arguments.times;
    for (uint64_t done = granule_saved(0u); done < times; done++) {
        uint64_t before;
        if (!granule_add64(at, 1ul, before)) {
            return;
        }
        granule_save(0u, done + 1ul);
    }
    granule_finish();
}

void main() {
    granule_run();
}
