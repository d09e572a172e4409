//! The worker of trio-offload, without its Python: the protocol, the socket, the state machine, and the native thread that
//! watches the parent. The executable (`main.rs`) adds the interpreter. PROTOCOL.md and ARCHITECTURE.md describe both.

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
