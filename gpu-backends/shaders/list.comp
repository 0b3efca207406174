#version 460
#extension GL_GOOGLE_include_directive : require
#include "granule.glsl"
layout(local_size_x = 1) in;

// Walks linked lists, one per item: adds up the values, and writes into every node. A node has four words: the address
// of the next one (0 at the end), a value, what is made of it, a tag.
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Arguments {
    uint64_t sums;
    uint64_t heads[];
};

void granule_turn() {
    Arguments arguments = Arguments(granule_arguments);
    uint64_t sums = arguments.sums;
    // Saved: whether the walk has begun; the node that comes next; the sum so far.
    bool begun = granule_saved(0u) != 0ul;
    uint64_t node = begun ? granule_saved(1u) : arguments.heads[granule_number];
    uint64_t sum = granule_saved(2u);
    while (node != 0ul) {
        uint64_t first = 0ul, last = 0ul, next = 0ul;
        if (granule_open()) {
            // A node may lie in two pages. Only its third word is written, but that is in one of them.
            first = granule_reach(node, GRANULE_WRITE);
            last = granule_to_page_end(node) >= 32ul ? first + 24ul : granule_reach(node + 24ul, GRANULE_WRITE);
            if (first != 0ul && last != 0ul) {
                uint64_t room = granule_to_page_end(node);
                uint64_t value = GranuleWord64(room > 8ul ? first + 8ul : last - 16ul).value;
                GranuleWord64 made = GranuleWord64(room > 16ul ? first + 16ul : last - 8ul);
                made.value += ((value << 7) | (value >> 57)) ^ 0xa5a5ul;
                sum += value;
                next = GranuleWord64(first).value;
            }
            granule_close();
        }
        if (first == 0ul || last == 0ul) {
            granule_save(0u, 1ul);
            granule_save(1u, node);
            granule_save(2u, sum);
            return;
        }
        node = next;
    }
    if (!granule_store64(sums + 8ul * uint64_t(granule_number), sum)) {
        granule_save(0u, 1ul);
        granule_save(1u, 0ul);
        granule_save(2u, sum);
        return;
    }
    granule_finish();
}

void main() {
    granule_run();
}
