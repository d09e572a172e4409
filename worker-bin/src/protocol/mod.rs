//! Bytes ↔ messages, sans-IO, as PROTOCOL.md defines them.

mod fields;
pub mod figures;
pub mod frame;
pub mod hello;
pub mod message;
pub mod segments;
