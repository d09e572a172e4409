//! Whole frames ↔ the parent's socket, and the memory for large ones.

pub mod buffer_pool;
pub mod connection;
