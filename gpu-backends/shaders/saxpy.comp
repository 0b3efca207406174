#version 460
#extension GL_GOOGLE_include_directive : require
#include "granule.glsl"
layout(local_size_x = 64) in;

// y = a * x + y over two arrays of 32-bit floats. An item has 1024 elements. It needs one page at a time: what it loaded
// of x is saved if y misses.
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Arguments {
    uint64_t x;
    uint64_t y;
    uint64_t count;
    uint64_t a; // the bits of a float
};

const uint64_t PER_ITEM = 1024ul;
const uint GROUP = 8u;

void granule_turn() {
    Arguments arguments = Arguments(granule_arguments);
    uint64_t x = arguments.x, y = arguments.y;
    float a = uintBitsToFloat(uint(arguments.a));
    uint64_t first = PER_ITEM * uint64_t(granule_number);
    uint64_t end = min(arguments.count, first + PER_ITEM);
    // Saved: how many elements are done, with bit 63 set if x of the next group is in the other four words.
    uint64_t done = granule_saved(0u) & ~(1ul << 63);
    bool loaded = (granule_saved(0u) >> 63) != 0ul;
    uint values[GROUP];
    if (loaded) {
        for (uint i = 0u; i < GROUP; i++) {
            values[i] = uint(granule_saved(1u + i / 2u) >> (32u * (i & 1u)));
        }
    }
    for (uint64_t at = first + done; at < end;) {
        uint64_t from_x = x + 4ul * at, from_y = y + 4ul * at;
        uint64_t bytes = min(granule_to_page_end(from_x), granule_to_page_end(from_y));
        uint count = uint(min(min(bytes / 4ul, end - at), uint64_t(GROUP)));
        if (!loaded) {
            if (!granule_open()) {
                granule_save(0u, at - first);
                return;
            }
            uint64_t place = granule_reach(from_x, GRANULE_READ);
            if (place != 0ul) {
                for (uint i = 0u; i < GROUP; i++) {
                    if (i < count) {
                        values[i] = GranuleWord32(place + 4ul * uint64_t(i)).value;
                    }
                }
            }
            granule_close();
            if (place == 0ul) {
                granule_save(0u, at - first);
                return;
            }
            loaded = true;
        }
        uint64_t place = 0ul;
        if (granule_open()) {
            place = granule_reach(from_y, GRANULE_WRITE);
            if (place != 0ul) {
                for (uint i = 0u; i < GROUP; i++) {
                    if (i < count) {
                        GranuleWord32 word = GranuleWord32(place + 4ul * uint64_t(i));
                        precise float product = a * uintBitsToFloat(values[i]);
                        precise float sum = uintBitsToFloat(word.value) + product;
                        word.value = floatBitsToUint(sum);
                    }
                }
            }
            granule_close();
        }
        if (place == 0ul) {
            for (uint i = 0u; i < GROUP; i += 2u) {
                granule_save(1u + i / 2u, uint64_t(values[i]) | (uint64_t(values[i + 1u]) << 32));
            }
            granule_save(0u, (at - first) | (1ul << 63));
            return;
        }
        loaded = false;
        at += uint64_t(count);
    }
    granule_finish();
}

void main() {
    granule_run();
}
