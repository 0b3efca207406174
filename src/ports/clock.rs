/// Time, passed in.
pub trait Clock: Sync {
    /// Nanoseconds since some fixed moment; never goes back.
    fn now_ns(&self) -> u64;
}
