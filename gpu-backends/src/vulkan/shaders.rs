//! Compute shaders that come with this package, compiled. Their sources stand in `shaders/`, and a test compiles them
//! again.

/// One access: what (0 load, 1 store, 2 add), where, which value. Leaves the value that was read in its third argument.
/// Needs 64-bit atomics.
pub const ACCESS: &[u8] = include_bytes!("../../shaders/access.spv");

/// The sum of an array of 64-bit words in parts: data, words, sums, parts. One item per page of the array. Needs 64-bit
/// atomics.
pub const SUM: &[u8] = include_bytes!("../../shaders/sum.spv");

/// y = a * x + y over 32-bit floats: x, y, count, the bits of a. One item per 1024 elements.
pub const SAXPY: &[u8] = include_bytes!("../../shaders/saxpy.spv");

/// How often each byte occurs in an array of 64-bit words: data, words, 256 bins. One item per 64 KiB of the array,
/// with 258 words to save. Needs 64-bit atomics.
pub const HISTOGRAM: &[u8] = include_bytes!("../../shaders/histogram.spv");

/// Walks linked lists of four-word nodes: sums, then the first node of each list. One item per list.
pub const LIST: &[u8] = include_bytes!("../../shaders/list.spv");

/// One level of a breadth-first search: rows, edges, distances, vertices, level, where to count what was found. One item
/// per 64 vertices. Needs 64-bit atomics.
pub const BFS: &[u8] = include_bytes!("../../shaders/bfs.spv");

/// Makes each word of an array a function of itself: data, words. One item per page of the array.
pub const PING_PONG: &[u8] = include_bytes!("../../shaders/ping_pong.spv");

/// Adds one to the first word of each page: data, pages, how often. One item per page and party. Needs 64-bit atomics.
pub const COUNT: &[u8] = include_bytes!("../../shaders/count.spv");

/// Adds one to a word many times inside of one window, and that many times over: word, rounds, additions per window. For
/// tests: windows that take so long that whoever does not wait for them is noticed. Needs 64-bit atomics.
#[doc(hidden)]
pub const HAMMER: &[u8] = include_bytes!("../../shaders/hammer.spv");
