//! What the receiver makes of a segment.

#![forbid(unsafe_code)]

/// What the receiver makes of a segment, so that it can receive it in its place. Where a message does not say it, each is
/// [`SegmentType::Memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum SegmentType {
    /// Memory that can be written to.
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
