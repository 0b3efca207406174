#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
layout(local_size_x = 1) in;

// Without the library: walks a list in a buffer and adds up its values. A node has four words: the number of the next node
// and one (0 at the end), a value, two that are not used.
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Words { uint64_t word[]; };
layout(push_constant) uniform Push {
    uint64_t nodes;
    uint64_t first;
    uint64_t sum;
} push;

void main() {
    Words nodes = Words(push.nodes);
    uint64_t sum = 0ul;
    for (uint64_t node = push.first; node != 0ul; node = nodes.word[uint(4ul * (node - 1ul))]) {
        sum += nodes.word[uint(4ul * (node - 1ul) + 1ul)];
    }
    Words(push.sum).word[0] = sum;
}
