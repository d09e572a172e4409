//! Bytes ↔ messages, sans-IO: what PROTOCOL.md defines.

mod fields;
pub mod figures;
pub mod frame;
pub mod hello;
pub mod message;
pub mod segments;
