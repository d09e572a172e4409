//! The worker of trio-offload without Python: protocol, socket, state machine, and the native
//! thread. The executable (`main.rs`) adds the interpreter. See PROTOCOL.md and ARCHITECTURE.md.

pub mod error;
pub mod exit;
pub mod launch;
#[expect(unsafe_code, reason = "the fenced module for what the operating system offers through C only")]
pub mod os;
pub mod process;
pub mod protocol;
pub mod sentinel;
pub mod session;
pub mod transport;
