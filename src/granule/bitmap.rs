use crate::sync::{LockedU64, Ordering};
use crate::units::{MASK_WORDS, PageMask};

/// One bit per page of a block. The words are atomics only so that safe code may share them: all access is
/// relaxed and under the block's lock, whose acquire and release order it.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Bitmap([LockedU64; MASK_WORDS]);

impl Bitmap {
    /// The set as plain data.
    #[inline]
    pub fn load(&self) -> PageMask {
        PageMask::from_words(core::array::from_fn(|word| self.0[word].load(Ordering::Relaxed)))
    }

    /// The words, page 0 being bit 0 of the first.
    #[inline]
    pub fn words(&self) -> &[LockedU64] {
        &self.0
    }

    /// Replaces the set, writing only the words that differ.
    #[inline]
    pub fn store(&self, pages: &PageMask) {
        for (word, new) in self.0.iter().zip(pages.words()) {
            if word.load(Ordering::Relaxed) != *new {
                word.store(*new, Ordering::Relaxed);
            }
        }
    }

    /// Adds pages.
    #[inline]
    pub fn insert(&self, pages: &PageMask) {
        for (word, add) in self.0.iter().zip(pages.words()) {
            if *add != 0 {
                word.store(word.load(Ordering::Relaxed) | add, Ordering::Relaxed);
            }
        }
    }

    /// Removes pages.
    #[inline]
    pub fn remove(&self, pages: &PageMask) {
        for (word, sub) in self.0.iter().zip(pages.words()) {
            if *sub != 0 {
                word.store(word.load(Ordering::Relaxed) & !sub, Ordering::Relaxed);
            }
        }
    }
}
