//! Bytes ↔ messages, sans-IO, as PROTOCOL.md defines them.

mod fields;
pub mod figures;
pub mod frame;
pub mod front;
pub mod hello;
mod kind;
pub mod message;
pub mod requests;
pub mod segments;
