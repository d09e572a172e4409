//! The worker as a process: its memory use, its descendants, and the record that outlives it.

pub mod family;
pub mod meter;
pub mod record;
