#version 460
#extension GL_GOOGLE_include_directive : require
#define GRANULE_ATOMIC64
#include "granule.glsl"
layout(local_size_x = 64) in;

// One level of a breadth-first search over a graph in compressed rows: gives the unseen neighbours of every vertex of
// this level the next one, and counts them. An item has 64 vertices.
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer Arguments {
    uint64_t rows;
    uint64_t edges;
    uint64_t distances;
    uint64_t vertices;
    uint64_t level;
    uint64_t found;
};

const uint UNSEEN = 0xffffffffu;
const uint64_t PER_ITEM = 64ul;

// Where an item stands: the vertex, the next edge of it, how many it found.
void keep(uint64_t vertex, uint64_t edge, uint64_t found) {
    if (granule_saved(0u) != vertex || granule_saved(1u) != edge || granule_saved(2u) != found) {
        granule_save(0u, vertex);
        granule_save(1u, edge);
        granule_save(2u, found);
    }
}

void granule_turn() {
    Arguments arguments = Arguments(granule_arguments);
    uint64_t rows = arguments.rows, edges = arguments.edges, distances = arguments.distances;
    uint64_t found_at = arguments.found;
    uint level = uint(arguments.level);
    uint64_t first = PER_ITEM * uint64_t(granule_number);
    uint64_t end = min(arguments.vertices, first + PER_ITEM) - first;
    uint64_t vertex = granule_saved(0u), edge = granule_saved(1u), found = granule_saved(2u);
    while (vertex < end) {
        uint distance, from, until;
        uint64_t row = rows + 4ul * (first + vertex);
        if (!granule_load32(distances + 4ul * (first + vertex), distance)) {
            keep(vertex, edge, found);
            return;
        }
        if (distance == level) {
            if (!granule_load32(row, from) || !granule_load32(row + 4ul, until)) {
                keep(vertex, edge, found);
                return;
            }
            while (uint64_t(from) + edge < uint64_t(until)) {
                uint neighbour, seen;
                if (!granule_load32(edges + 4ul * (uint64_t(from) + edge), neighbour)
                    || !granule_load32(distances + 4ul * uint64_t(neighbour), seen)
                    || (seen == UNSEEN && !granule_store32(distances + 4ul * uint64_t(neighbour), level + 1u))) {
                    keep(vertex, edge, found);
                    return;
                }
                found += seen == UNSEEN ? 1ul : 0ul;
                edge++;
            }
        }
        vertex++;
        edge = 0ul;
    }
    uint64_t before;
    if (found != 0ul && !granule_add64(found_at, found, before)) {
        keep(vertex, edge, found);
        return;
    }
    granule_finish();
}

void main() {
    granule_run();
}
