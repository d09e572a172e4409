//! The fields of a body: reading, with one problem text for each, and writing.

#![forbid(unsafe_code)]

use ciborium::Value;

use crate::protocol::frame::{Body, Kind, WireError};
use crate::protocol::segments::SegmentType;

/// The fields of a received body.
pub(super) struct Fields<'a> {
    pub(super) kind: Kind,
    pub(super) body: &'a Body,
}

impl Fields<'_> {
    pub(super) fn required<T>(
        &self,
        key: &str,
        problem: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, WireError> {
        self.find(key).and_then(read).ok_or_else(|| self.problem(problem))
    }

    pub(super) fn optional<T>(
        &self,
        key: &str,
        problem: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, WireError> {
        self.find(key).map(|value| read(value).ok_or_else(|| self.problem(problem))).transpose()
    }

    /// One type for each segment, or none.
    pub(super) fn types(&self, segments: usize) -> Result<Vec<SegmentType>, WireError> {
        let types = self.optional("types", "types is not a byte string of the numbers 0, 1 and 2", |value| {
            value.as_bytes()?.iter().map(|number| SegmentType::from_number(*number)).collect::<Option<Vec<_>>>()
        })?;
        match types {
            Some(types) if types.len() != segments => Err(self.problem("types has another length than there are segments")),
            types => Ok(types.unwrap_or_default()),
        }
    }

    // RFC 8949 calls a repeated key invalid and leaves it to the application. Like most decoders
    // this takes the last one.
    fn find(&self, key: &str) -> Option<&Value> {
        self.body.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    pub(super) fn problem(&self, problem: &'static str) -> WireError {
        WireError::MalformedBody { kind: self.kind, problem }
    }
}

pub(super) fn write_types(types: &[SegmentType]) -> Option<(String, Value)> {
    let numbers = types.iter().map(|kind| *kind as u8).collect();
    (!types.is_empty()).then(|| ("types".to_owned(), Value::Bytes(numbers)))
}

pub(super) fn unsigned(value: &Value) -> Option<u64> {
    value.as_integer().and_then(|integer| u64::try_from(integer).ok())
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_text().map(str::to_owned)
}

pub(super) fn bytes(value: &Value) -> Option<Vec<u8>> {
    value.as_bytes().cloned()
}

/// Return `None` if the value is neither null nor readable.
pub(super) fn nullable<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Option<T>> {
    if value.is_null() { Some(None) } else { read(value).map(Some) }
}

pub(super) fn list<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(read).collect()
}

/// Ascending numbers below three.
pub(super) fn streams(value: &Value) -> Option<Vec<u64>> {
    let streams = list(value, unsigned)?;
    (streams.iter().all(|stream| *stream < 3) && streams.is_sorted_by(|one, next| one < next)).then_some(streams)
}

pub(super) fn byte_strings(value: &Value) -> Option<Vec<Vec<u8>>> {
    list(value, bytes)
}

pub(super) fn byte_array(items: Vec<Vec<u8>>) -> Value {
    Value::Array(items.into_iter().map(Value::Bytes).collect())
}

pub(super) fn body<const N: usize>(pairs: [(&str, Value); N]) -> Body {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
