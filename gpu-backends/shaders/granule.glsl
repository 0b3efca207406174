// granule.glsl: the CPU's pointers in a compute shader, page faults included. docs/vulkan.md explains the rules
// with examples; this is their short form.
//
//   #version 460
//   #extension GL_GOOGLE_include_directive : require
//   #include "granule.glsl"
//   layout(local_size_x = 64) in;
//   void granule_turn() {
//       ...
//       if (!granule_load64(at, value)) return;    // a miss was announced: the item gives up its turn
//       ...
//       granule_finish();                          // no further turn
//   }
//   void main() { granule_run(); }
//
// # Rules for kernels
// 1. An item is one invocation. It has turns: calls of granule_turn, until it calls granule_finish. A turn that ends
//    without it (after a miss, or because the device is stopped) is followed by another one, in this dispatch or in a
//    later one, which knows what granule_save kept and nothing else. So whatever a turn changed before a miss must be
//    saved before it returns, or must be harmless if it is done again.
// 2. Memory is reached inside a window: granule_open ... granule_close. Addresses that granule_reach returns are good
//    up to the end of their page and until granule_close, never longer. The functions that load and store one word
//    have a window of their own.
// 3. A window is short and waits for nothing: no loop on a value that another item writes, no access but through
//    addresses that were reached in it: no push constant, no descriptor, no array with a computed index (a driver keeps
//    it in memory of its own). Keep such things in variables before. Windows are not nested.
// 4. Every path from granule_open leads to granule_close. A turn has no barriers: its neighbours may have left.
// 5. Whoever reaches several addresses in one window reaches all of them before it looks at the first result, so that
//    all misses are announced at once.
//
// A page that was reached for reading may be reached for writing later; each is announced on its own.

#ifndef GRANULE_GLSL
#define GRANULE_GLSL
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require

layout(buffer_reference, std430, buffer_reference_align = 8) buffer GranuleWord64 { uint64_t value; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer GranuleWord32 { uint value; };
layout(buffer_reference, std430, buffer_reference_align = 8) volatile buffer GranuleEntry { uint64_t value; };
layout(buffer_reference, std430, buffer_reference_align = 4) volatile buffer GranuleCount { uint value; };

// What all launches share: src/vulkan/control.rs writes it.
layout(buffer_reference, std430, buffer_reference_align = 8) readonly buffer GranuleControl {
    uint64_t table;
    uint64_t iommu;
    uint64_t memory;
    uint64_t windows;
    uint window_mask;
    uint window_unused;
    uint64_t directory;
};

// What one launch has: src/vulkan/launch_block.rs writes it.
layout(buffer_reference, std430, buffer_reference_align = 8) volatile buffer GranuleLaunch {
    uint64_t items;
    uint64_t faults;
    uint64_t seen;
    uint fault_capacity;
    uint seen_mask;
    uint item_count;
    uint turn;
    uint fault_count;
    uint finished;
    uint failed;
    uint advanced;
    uint stopped;
    uint patience;
    uint ended;
    uint item_bytes;
};

// One per item. States: 0 has turns, 1 finished, 2 failed.
layout(buffer_reference, std430, buffer_reference_align = 8) volatile buffer GranuleItem {
    uint state;
    uint cause;
    uint64_t missed;
    uint missed_access;
    uint missed_turn;
    uint64_t saved[];
};

layout(buffer_reference, std430, buffer_reference_align = 8) volatile buffer GranuleFault {
    uint64_t at;
    uint item;
    uint access;
};

layout(push_constant) uniform GranulePush {
    uint64_t control;
    uint64_t launch;
    uint64_t arguments;
} granule_push;

const uint GRANULE_READ = 0u;
const uint GRANULE_WRITE = 1u;

const uint GRANULE_CLOSED = 0x80000000u;
const uint GRANULE_SIDE = 0x40000000u;
const uint GRANULE_TRIES = 64u;
const uint GRANULE_IOMMU = 100u;

const uint64_t GRANULE_VALID = 1ul;
const uint64_t GRANULE_MAY_WRITE = 2ul;
const uint64_t GRANULE_SYSTEM = 4ul;
const uint64_t GRANULE_LEAF = 8ul;
const uint64_t GRANULE_TARGET = ~0xffful;

GranuleControl granule_control;
GranuleLaunch granule_launch;
GranuleItem granule_item;
uint64_t granule_arguments;
uint granule_number;
uint64_t granule_window;
uint granule_inside;
bool granule_missed;
bool granule_got_on;

// What the kernel does: one turn of this item.
void granule_turn();

// Finds what this item works with; false if it has no turn.
bool granule_begin() {
    granule_control = GranuleControl(granule_push.control);
    granule_launch = GranuleLaunch(granule_push.launch);
    granule_arguments = granule_push.arguments;
    granule_number = gl_GlobalInvocationID.x;
    if (granule_number >= granule_launch.item_count) {
        return false;
    }
    granule_item = GranuleItem(granule_launch.items + uint64_t(granule_launch.item_bytes) * uint64_t(granule_number));
    granule_window = granule_control.windows + 64ul * uint64_t(gl_WorkGroupID.x & granule_control.window_mask);
    return granule_item.state == 0u;
}

// The item's last turn ends: what it was to do is done.
void granule_finish() {
    if (atomicCompSwap(granule_item.state, 0u, 1u) == 0u) {
        atomicAdd(granule_launch.finished, 1u);
    }
}

// What an earlier turn saved; zero at first. There are 5 words, or as many as the launch says.
uint64_t granule_saved(uint word) {
    return granule_item.saved[word];
}

// Saves a word for later turns. The host takes it for a sign that the item got on.
void granule_save(uint word, uint64_t value) {
    granule_item.saved[word] = value;
    granule_got_on = true;
}

// Opens a window; false if the device is stopped, and the item must give up its turn.
bool granule_open() {
    for (uint tries = 0u; tries < GRANULE_TRIES; tries++) {
        uint seen = GranuleCount(granule_window).value;
        granule_inside = (seen & GRANULE_SIDE) != 0u ? 0x8000u : 1u;
        uint old = atomicAdd(GranuleCount(granule_window).value, granule_inside);
        if ((old & GRANULE_CLOSED) == 0u && ((old ^ seen) & GRANULE_SIDE) == 0u) {
            memoryBarrierBuffer();
            return true;
        }
        atomicAdd(GranuleCount(granule_window).value, uint(-int(granule_inside)));
    }
    atomicAdd(granule_launch.stopped, 1u);
    return false;
}

// Closes the window: the addresses that were reached in it are void.
void granule_close() {
    memoryBarrierBuffer();
    atomicAdd(GranuleCount(granule_window).value, uint(-int(granule_inside)));
}

// The entry of the page at an address: its target and flags; 0 if there is none.
uint64_t granule_walk(uint64_t table, uint64_t at) {
    if ((at >> 47) != 0ul) {
        return 0ul;
    }
    uint64_t node = table;
    for (int shift = 39; shift > 12; shift -= 9) {
        uint64_t entry = GranuleEntry(node + 8ul * ((at >> shift) & 511ul)).value;
        if ((entry & GRANULE_VALID) == 0ul) {
            return 0ul;
        }
        if ((entry & GRANULE_LEAF) != 0ul) {
            return (entry & ~GRANULE_LEAF) + (at & 0x1ff000ul);
        }
        node = table + (entry & GRANULE_TARGET);
    }
    uint64_t entry = GranuleEntry(node + 8ul * ((at >> 12) & 511ul)).value;
    return (entry & GRANULE_VALID) == 0ul ? 0ul : entry;
}

// Ends the item with an error that the host reports.
void granule_fail(uint64_t at, uint access, uint cause) {
    granule_item.missed = at;
    granule_item.missed_access = access;
    granule_item.cause = cause;
    if (atomicCompSwap(granule_item.state, 0u, 2u) == 0u) {
        atomicAdd(granule_launch.failed, 1u);
    }
}

// Announces a miss: kept in the item, and put into the fault buffer unless another item put it there in this pass.
// What finds no room there is announced in the next pass.
void granule_announce(uint64_t at, uint access) {
    granule_item.missed = at;
    granule_item.missed_access = access;
    granule_item.missed_turn = granule_launch.turn;
    granule_missed = true;
    uint page = uint(at >> 12) ^ (uint(at >> 44) * 0x9e3779b9u);
    uint mixed = (page ^ granule_launch.turn) * 0x85ebca6bu;
    uint place = (mixed ^ (mixed >> 15)) & granule_launch.seen_mask;
    // Zero says nothing: the host clears the places before each pass. The turn varies which pages share a place.
    uint tag = (page << 1 | access) + 1u;
    if (atomicExchange(GranuleCount(granule_launch.seen + 4ul * uint64_t(place)).value, tag) == tag) {
        return;
    }
    uint index = atomicAdd(granule_launch.fault_count, 1u);
    if (index < granule_launch.fault_capacity) {
        GranuleFault fault = GranuleFault(granule_launch.faults + 16ul * uint64_t(index));
        fault.at = at;
        fault.item = granule_number;
        memoryBarrierBuffer();
        // The host may look while the pass runs: the record is whole when this word is not zero.
        fault.access = access | 2u;
    }
}

// Sparse mode: where the byte at a pointer lies if its page may be reached directly; else 0.
uint64_t granule_direct(uint64_t at, uint access) {
    uint64_t directory = granule_control.directory;
    if (directory == 0ul || (at >> 47) != 0ul) {
        return 0ul;
    }
    uint64_t record = GranuleEntry(directory + 8ul * (at >> 29)).value;
    if (record == 0ul) {
        return 0ul;
    }
    uint page = uint(at >> 12) & 0x1ffffu;
    uint64_t bitmap = record + (access == GRANULE_WRITE ? 0x5000ul : 0x1000ul);
    uint word = GranuleCount(bitmap + 4ul * uint64_t(page >> 5)).value;
    return ((word >> (page & 31u)) & 1u) == 0u ? 0ul : GranuleEntry(record).value + (at & 0x1ffffffful);
}

// Inside a window: where the byte at a pointer lies for this device, until the end of its page; 0 if the item must give
// up its turn, after granule_close.
uint64_t granule_reach(uint64_t at, uint access) {
    uint64_t direct = granule_direct(at, access);
    if (direct != 0ul) {
        return direct;
    }
    uint64_t entry = granule_walk(granule_control.table, at);
    if (entry == 0ul || (access == GRANULE_WRITE && (entry & GRANULE_MAY_WRITE) == 0ul)) {
        granule_announce(at, access);
        return 0ul;
    }
    uint64_t offset = at & 0xffful;
    uint64_t target = entry & GRANULE_TARGET;
    if ((entry & GRANULE_SYSTEM) == 0ul) {
        return granule_control.memory + target + offset;
    }
    entry = granule_walk(granule_control.iommu, target);
    if (entry == 0ul || (access == GRANULE_WRITE && (entry & GRANULE_MAY_WRITE) == 0ul)) {
        granule_fail(at, access, GRANULE_IOMMU);
        return 0ul;
    }
    return (entry & GRANULE_TARGET) + offset;
}

// Between two turns of one dispatch: looks a bounded number of times whether the page that was missed has come. Nothing
// relies on its coming; who has looked often enough goes on in the next dispatch.
bool granule_await() {
    if (!granule_missed) {
        return false;
    }
    uint64_t at = granule_item.missed;
    uint access = granule_item.missed_access;
    // The host may end everybody's patience at any time.
    for (uint looks = 0u; looks < granule_launch.patience && granule_item.state == 0u; looks++) {
        uint64_t entry = granule_walk(granule_control.table, at);
        if (entry != 0ul && (access == GRANULE_READ || (entry & GRANULE_MAY_WRITE) != 0ul)) {
            return true;
        }
        // It may have come and gone again between two looks: whoever shares the page wants it, too.
        if ((looks & 0x3ffu) == 0x3ffu) {
            granule_announce(at, access);
        }
    }
    return false;
}

// What main calls: this item's turns.
void granule_run() {
    bool more = granule_begin();
    while (more) {
        granule_missed = false;
        granule_got_on = false;
        granule_turn();
        if (granule_got_on) {
            atomicAdd(granule_launch.advanced, 1u);
        }
        more = granule_item.state == 0u && granule_await();
    }
    if (granule_number < granule_launch.item_count) {
        atomicAdd(granule_launch.ended, 1u);
    }
}

// How many bytes of a page lie at and above an address.
uint64_t granule_to_page_end(uint64_t at) {
    return 0x1000ul - (at & 0xffful);
}

// Loads 8 bytes from a multiple of 8; false: give up the turn.
bool granule_load64(uint64_t at, out uint64_t value) {
    value = 0ul;
    if (!granule_open()) {
        return false;
    }
    uint64_t place = granule_reach(at, GRANULE_READ);
    if (place != 0ul) {
        value = GranuleWord64(place).value;
    }
    granule_close();
    return place != 0ul;
}

// Stores 8 bytes to a multiple of 8; false: nothing was stored, give up the turn.
bool granule_store64(uint64_t at, uint64_t value) {
    if (!granule_open()) {
        return false;
    }
    uint64_t place = granule_reach(at, GRANULE_WRITE);
    if (place != 0ul) {
        GranuleWord64(place).value = value;
    }
    granule_close();
    return place != 0ul;
}

// Loads 4 bytes from a multiple of 4; false: give up the turn.
bool granule_load32(uint64_t at, out uint value) {
    value = 0u;
    if (!granule_open()) {
        return false;
    }
    uint64_t place = granule_reach(at, GRANULE_READ);
    if (place != 0ul) {
        value = GranuleWord32(place).value;
    }
    granule_close();
    return place != 0ul;
}

// Stores 4 bytes to a multiple of 4; false: nothing was stored, give up the turn.
bool granule_store32(uint64_t at, uint value) {
    if (!granule_open()) {
        return false;
    }
    uint64_t place = granule_reach(at, GRANULE_WRITE);
    if (place != 0ul) {
        GranuleWord32(place).value = value;
    }
    granule_close();
    return place != 0ul;
}

// Adds to 4 bytes atomically; false: nothing was added, give up the turn.
bool granule_add32(uint64_t at, uint value, out uint before) {
    before = 0u;
    if (!granule_open()) {
        return false;
    }
    uint64_t place = granule_reach(at, GRANULE_WRITE);
    if (place != 0ul) {
        before = atomicAdd(GranuleWord32(place).value, value);
    }
    granule_close();
    return place != 0ul;
}

#ifdef GRANULE_ATOMIC64
#extension GL_EXT_shader_atomic_int64 : require
// Adds to 8 bytes atomically; false: nothing was added, give up the turn. Define GRANULE_ATOMIC64 before the include;
// the device needs shaderBufferInt64Atomics.
bool granule_add64(uint64_t at, uint64_t value, out uint64_t before) {
    before = 0ul;
    if (!granule_open()) {
        return false;
    }
    uint64_t place = granule_reach(at, GRANULE_WRITE);
    if (place != 0ul) {
        before = atomicAdd(GranuleWord64(place).value, value);
    }
    granule_close();
    return place != 0ul;
}
#endif
#endif
