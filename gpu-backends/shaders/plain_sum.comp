#version 460
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#extension GL_EXT_shader_atomic_int64 : require
layout(local_size_x = 64) in;

// Without the library: the sum of an array of 64-bit words in a buffer. An item is a page of it.
layout(buffer_reference, std430, buffer_reference_align = 8) buffer Words { uint64_t word[]; };
layout(push_constant) uniform Push {
    uint64_t data;
    uint64_t words;
    uint64_t sum;
} push;

void main() {
    uint64_t first = 512ul * uint64_t(gl_GlobalInvocationID.x), end = min(push.words, first + 512ul), sum = 0ul;
    Words data = Words(push.data);
    for (uint64_t at = first; at < end; at++) {
        sum += data.word[uint(at)];
    }
    if (first < end) {
        atomicAdd(Words(push.sum).word[0], sum);
    }
}
