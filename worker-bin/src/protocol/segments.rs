//! The types of segments.

#![forbid(unsafe_code)]

/// The type of the object that receives a segment. Without types in the message, each is
/// [`SegmentType::Memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum SegmentType {
    /// Writable memory.
    #[default]
    Memory = 0,
    /// A `bytes` object.
    Bytes = 1,
    /// A `bytearray`.
    ByteArray = 2,
}

impl SegmentType {
    pub(super) fn from_number(number: u8) -> Option<Self> {
        [Self::Memory, Self::Bytes, Self::ByteArray].into_iter().find(|kind| *kind as u8 == number)
    }
}
