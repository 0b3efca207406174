/// What a device or a thread wants to do, or may do, with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Access {
    /// Reading only.
    #[default]
    Read,
    /// Reading and writing.
    Write,
}

impl Access {
    /// Whether a permission of this kind covers a wish of the other kind.
    pub const fn covers(self, wish: Access) -> bool {
        matches!((self, wish), (Access::Write, _) | (Access::Read, Access::Read))
    }
}
