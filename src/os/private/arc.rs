#![allow(unsafe_code, reason = "a reference count of our own")]

use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering, fence};

use super::PrivateError;
use super::reservation::{Carve, Mapping, carve, release};
use crate::units::PAGE_BYTES;

/// A shared value in a private mapping of its own: the `Arc` of whoever may not touch the heap. Costs at least a
/// page. In a child after fork, clone and drop do nothing and the value must not be touched.
pub struct PrivateArc<T: ?Sized> {
    header: NonNull<Header>,
    value: NonNull<T>,
    pid: i32,
}

struct Header {
    count: AtomicU64,
    mapping: Mapping,
    drop_value: unsafe fn(*mut u8),
    value: *mut u8,
}

// SAFETY: `new` asks that the concrete value is `Send` and `Sync`, so it may be dropped by any thread; what a
// handle shows is shared by reference only, for which `Sync` is enough.
unsafe impl<T: ?Sized + Sync> Send for PrivateArc<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Sync> Sync for PrivateArc<T> {}

impl<T: Send + Sync> PrivateArc<T> {
    /// Moves a value into a private mapping. What the value itself points to is the caller's business.
    ///
    /// # Errors
    /// [`PrivateError`] if addresses or mappings have run out; the value is dropped then.
    pub fn new(value: T) -> Result<Self, PrivateError> {
        const { assert!(align_of::<T>() as u64 <= PAGE_BYTES) };
        let offset = size_of::<Header>().next_multiple_of(align_of::<T>());
        let mapping = carve(Carve::zeroed((offset + size_of::<T>()) as u64))?;
        let (base, pid) = (mapping.start as *mut u8, super::reservation::pid());
        // SAFETY: the mapping is page aligned, writable, and long enough for the header and, behind it at
        // `offset`, the value; nobody else knows it yet.
        unsafe {
            let at = base.add(offset).cast::<T>();
            at.write(value);
            let header = base.cast::<Header>();
            let drop_value = |value: *mut u8| value.cast::<T>().drop_in_place();
            header.write(Header { count: AtomicU64::new(1), mapping, drop_value, value: at.cast() });
            Ok(Self { header: NonNull::new_unchecked(header), value: NonNull::new_unchecked(at), pid })
        }
    }
}

impl<T: ?Sized> PrivateArc<T> {
    /// The same value seen as something else: a trait object (`PrivateArc::map(arc, |device| device as &dyn
    /// Device)`) or a part of it. The whole value lives as long as any handle.
    pub fn map<U: ?Sized>(this: Self, view: impl FnOnce(&T) -> &U) -> PrivateArc<U> {
        let value = NonNull::from(view(&this));
        let (header, pid) = (this.header, this.pid);
        core::mem::forget(this);
        PrivateArc { header, value, pid }
    }

    fn is_inherited(&self) -> bool {
        self.pid != super::reservation::pid()
    }
}

impl<T: ?Sized> Clone for PrivateArc<T> {
    fn clone(&self) -> Self {
        if !self.is_inherited() {
            // SAFETY: the header lives while the count is above zero, and `self` counts.
            let before = unsafe { self.header.as_ref() }.count.fetch_add(1, Ordering::Relaxed);
            assert!(before < u64::MAX / 2, "a reference count overflows");
        }
        Self { header: self.header, value: self.value, pid: self.pid }
    }
}

impl<T: ?Sized> Deref for PrivateArc<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the value lives while the count is above zero, and `self` counts.
        unsafe { self.value.as_ref() }
    }
}

impl<T: ?Sized> Drop for PrivateArc<T> {
    fn drop(&mut self) {
        if self.is_inherited() {
            return;
        }
        // SAFETY: `self` counted until now, so the header lives.
        let header = unsafe { self.header.as_ref() };
        // Release orders this holder's uses before the drop; pairs with the fence below.
        if header.count.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // SAFETY: this was the last handle: the value is dropped once, then the header is moved out of the
        // mapping, then the mapping goes, to which nobody refers any more.
        unsafe {
            (header.drop_value)(header.value);
            let header = self.header.read();
            release(&header.mapping);
        }
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for PrivateArc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ports::Clock;
    use crate::units::{VirtAddr, VirtRange};

    struct Tells(Arc<()>);
    impl Clock for Tells {
        fn now_ns(&self) -> u64 {
            Arc::strong_count(&self.0) as u64
        }
    }

    #[test]
    fn the_value_is_private_and_dropped_with_the_last_handle() {
        let told = Arc::new(());
        let one = PrivateArc::new(Tells(told.clone())).expect("a page");
        let page = VirtRange::covering(VirtAddr(&raw const *one as u64), 8).expect("a page");
        assert!(super::super::contains(page));
        let two: PrivateArc<dyn Clock> = PrivateArc::map(one.clone(), |clock| clock as &dyn Clock);
        drop(one);
        assert_eq!(two.now_ns(), 2);
        std::thread::spawn(move || drop(two)).join().expect("the thread ends");
        assert_eq!(Arc::strong_count(&told), 1);
    }
}
