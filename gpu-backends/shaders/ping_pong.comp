#version 460
#extension GL_GOOGLE_include_directive : require
#include "granule.glsl"
layout(local_size_x = 64) in;

// The device's turn on an array of 64-bit words: each becomes a function of itself. An item is a page of the array, done
// in one window, so that it is done once.
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Arguments {
    uint64_t data;
    uint64_t words;
};

void granule_turn() {
    Arguments arguments = Arguments(granule_arguments);
    uint64_t data = arguments.data;
    uint64_t page = (data & ~0xffful) + 0x1000ul * uint64_t(granule_number);
    uint64_t from = max(page, data);
    uint64_t end = min(page + 0x1000ul, data + 8ul * arguments.words);
    if (!granule_open()) {
        return;
    }
    uint64_t place = granule_reach(from, GRANULE_WRITE);
    if (place != 0ul) {
        for (uint64_t last = place + (end - from); place < last; place += 8ul) {
            GranuleWord64 word = GranuleWord64(place);
            word.value = word.value * 0x2545f4914f6cdd1dul + 1ul;
        }
    }
    granule_close();
    if (place != 0ul) {
        granule_finish();
    }
}

void main() {
    granule_run();
}
