#version 460
#extension GL_GOOGLE_include_directive : require
#define GRANULE_ATOMIC64
#include "granule.glsl"
layout(local_size_x = 64) in;

// How often each byte occurs in an array of 64-bit words. An item has 64 KiB of the array. It counts in what it saves, so
// that it needs one page at a time; then it adds its counts to the bins.
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Arguments {
    uint64_t data;
    uint64_t words;
    uint64_t bins;
};

const uint64_t PER_ITEM = 8192ul;
const uint BINS = 256u;
// Saved: words counted, bins added, then the counts.
const uint COUNTED = 0u, ADDED = 1u, COUNTS = 2u;

void count(uint64_t word) {
    for (uint byte = 0u; byte < 8u; byte++) {
        uint bin = COUNTS + (uint(word) & 255u);
        granule_save(bin, granule_saved(bin) + 1ul);
        word >>= 8;
    }
}

void granule_turn() {
    Arguments arguments = Arguments(granule_arguments);
    uint64_t data = arguments.data, bins = arguments.bins;
    uint64_t first = PER_ITEM * uint64_t(granule_number);
    uint64_t end = min(PER_ITEM, arguments.words - first);
    for (uint64_t done = granule_saved(COUNTED); done < end;) {
        uint64_t from = data + 8ul * (first + done);
        uint taken = uint(min(min(4ul, end - done), granule_to_page_end(from) / 8ul));
        // Into registers inside the window, counted outside.
        uint64_t a = 0ul, b = 0ul, c = 0ul, d = 0ul;
        if (!granule_open()) {
            return;
        }
        uint64_t place = granule_reach(from, GRANULE_READ);
        if (place != 0ul) {
            a = GranuleWord64(place).value;
            if (taken > 1u) { b = GranuleWord64(place + 8ul).value; }
            if (taken > 2u) { c = GranuleWord64(place + 16ul).value; }
            if (taken > 3u) { d = GranuleWord64(place + 24ul).value; }
        }
        granule_close();
        if (place == 0ul) {
            return;
        }
        count(a);
        if (taken > 1u) { count(b); }
        if (taken > 2u) { count(c); }
        if (taken > 3u) { count(d); }
        done += uint64_t(taken);
        granule_save(COUNTED, done);
    }
    for (uint bin = uint(granule_saved(ADDED)); bin < BINS; bin++) {
        uint64_t counted = granule_saved(COUNTS + bin), before;
        if (counted != 0ul && !granule_add64(bins + 8ul * uint64_t(bin), counted, before)) {
            return;
        }
        granule_save(ADDED, uint64_t(bin) + 1ul);
    }
    granule_finish();
}

void main() {
    granule_run();
}
