#version 460
#extension GL_GOOGLE_include_directive : require
#include "granule.glsl"
layout(local_size_x = 64) in;

// Doubles every word of an array that the CPU allocated. An item has one word, and a pointer to it: 8 bytes per item
// would be too little work for a good kernel, and are few enough for a first one.
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Arguments {
    uint64_t words;
};

void granule_turn() {
    uint64_t at = Arguments(granule_arguments).words + 8ul * uint64_t(granule_number);
    // One window for both accesses: either the word is doubled, or nothing has happened.
    if (!granule_open()) {
        return;
    }
    uint64_t place = granule_reach(at, GRANULE_WRITE);
    if (place != 0ul) {
        GranuleWord64(place).value *= 2ul;
    }
    granule_close();
    if (place != 0ul) {
        granule_finish();
    }
}

void main() {
    granule_run();
}
