//! Bytes ↔ messages, sans-IO: what PROTOCOL.md defines.

pub mod frame;
pub mod message;
