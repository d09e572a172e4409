//! Memory use and processor time of a process.

#![forbid(unsafe_code)]

use ciborium::Value;

use crate::protocol::fields::{Fields, list, unsigned};
use crate::protocol::frame::WireError;

/// Memory use and processor time of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Resident memory, in bytes.
    pub rss: u64,
    /// Peak of the resident memory, in bytes.
    pub peak_rss: u64,
    /// The size of the address space, in bytes.
    pub vms: u64,
    /// Processor time of all threads, in microseconds.
    pub cpu_time: u64,
}

impl Figures {
    const PROBLEM: &'static str = "figures are missing or not an array of four unsigned numbers";

    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, WireError> {
        fields.required("figures", Self::PROBLEM, Self::from_value)
    }

    pub(super) fn read_optional(fields: &Fields<'_>) -> Result<Option<Self>, WireError> {
        fields.optional("figures", Self::PROBLEM, Self::from_value)
    }

    fn from_value(value: &Value) -> Option<Self> {
        match *list(value, unsigned)?.as_slice() {
            [rss, peak_rss, vms, cpu_time] => Some(Self { rss, peak_rss, vms, cpu_time }),
            _ => None,
        }
    }

    pub(super) fn write(self) -> (String, Value) {
        let values = [self.rss, self.peak_rss, self.vms, self.cpu_time];
        ("figures".to_owned(), Value::Array(values.into_iter().map(Value::from).collect()))
    }
}
