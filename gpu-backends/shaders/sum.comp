#version 460
#extension GL_GOOGLE_include_directive : require
#define GRANULE_ATOMIC64
#include "granule.glsl"
layout(local_size_x = 64) in;

// The sum of an array of 64-bit words in `parts` parts of nearly the same size. An item is a page of the array; it adds
// what it has of a part to that part's sum.
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Arguments {
    uint64_t data;
    uint64_t words;
    uint64_t sums;
    uint64_t parts;
};

void granule_turn() {
    Arguments arguments = Arguments(granule_arguments);
    uint64_t data = arguments.data, words = arguments.words, sums = arguments.sums, parts = arguments.parts;
    uint64_t page = (data & ~0xffful) + 0x1000ul * uint64_t(granule_number);
    uint64_t first = page > data ? (page - data) / 8ul : 0ul;
    uint64_t end = min(words, (page + 0x1000ul - data) / 8ul);
    // What is saved: the next word; what was added up before it and is not in the part's sum yet; whether there is such.
    uint64_t next = max(first, granule_saved(0u)), sum = granule_saved(1u);
    bool pending = granule_saved(2u) != 0ul;
    while (pending || next < end) {
        // The word before `next` tells the part to which a pending sum belongs.
        uint64_t word = pending ? next - 1ul : next;
        uint64_t part = word * parts / words;
        while (words * (part + 1ul) / parts <= word) {
            part++;
        }
        if (!pending) {
            uint64_t stop = min(end, words * (part + 1ul) / parts);
            if (!granule_open()) {
                return;
            }
            uint64_t place = granule_reach(data + 8ul * next, GRANULE_READ);
            sum = 0ul;
            if (place != 0ul) {
                for (uint64_t last = place + 8ul * (stop - next); place < last; place += 8ul) {
                    sum += GranuleWord64(place).value;
                }
            }
            granule_close();
            if (place == 0ul) {
                return;
            }
            next = stop;
            granule_save(0u, next);
            granule_save(1u, sum);
            granule_save(2u, 1ul);
        }
        uint64_t before;
        if (!granule_add64(sums + 8ul * part, sum, before)) {
            return;
        }
        pending = false;
        granule_save(2u, 0ul);
    }
    granule_finish();
}

void main() {
    granule_run();
}
