#version 460
#extension GL_GOOGLE_include_directive : require
#define GRANULE_ATOMIC64
#include "granule.glsl"
layout(local_size_x = 1) in;

// Adds one to a word, `additions` times in each of `rounds` windows. The windows are long on purpose: for tests of who
// waits for them.
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Arguments {
    uint64_t at;
    uint64_t rounds;
    uint64_t additions;
};

void granule_turn() {
    Arguments arguments = Arguments(granule_arguments);
    uint64_t at = arguments.at, rounds = arguments.rounds, additions = arguments.additions;
    for (uint64_t done = granule_saved(0u); done < rounds; done++) {
        if (!granule_open()) {
            return;
        }
        uint64_t place = granule_reach(at, GRANULE_WRITE);
        if (place == 0ul) {
            granule_close();
            return;
        }
        for (uint64_t added = 0ul; added < additions; added++) {
            atomicAdd(GranuleWord64(place).value, 1ul);
        }
        granule_close();
        granule_save(0u, done + 1ul);
    }
    granule_finish();
}

void main() {
    granule_run();
}
