//! The messages of a job that talks: REQUEST, POST, REPLY and CREDIT.

#![forbid(unsafe_code)]

use ciborium::Value;

use crate::protocol::fields::{Fields, body, text, unsigned, write_types};
use crate::protocol::frame::{Body, WireError};
use crate::protocol::segments::SegmentType;

/// Most descriptors in one frame.
const MAX_DESCRIPTORS: u8 = 16;

/// The parent's one answer to a REQUEST.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    pub request: u64,
    /// What became of the request: `value`, `raised`, `cancelled` and others.
    pub status: String,
    pub types: Vec<SegmentType>,
    /// The text form of an exception.
    pub type_name: Option<String>,
    pub message: Option<String>,
    pub traceback: Option<String>,
    /// Number of descriptors that came with the frame.
    pub descriptors: u8,
}

/// Places that the parent has reserved for a sender in a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credit {
    pub handle: u64,
    pub count: u64,
}

/// The body of a REQUEST or a POST.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Said {
    /// The number of a REQUEST. A POST has none.
    pub request: Option<u64>,
    pub op: String,
    /// `None` means that it concerns no handle.
    pub handle: Option<u64>,
    /// The native ID of the job's thread.
    pub thread: u64,
    pub count: Option<u64>,
    /// The index of the item in a chunk.
    pub item: Option<u64>,
    /// True if a cancellation does not answer the request. A POST has no answer.
    pub shield: bool,
    pub types: Vec<SegmentType>,
}

fn descriptors(value: &Value) -> Option<u8> {
    unsigned(value).and_then(|count| u8::try_from(count).ok()).filter(|count| *count <= MAX_DESCRIPTORS)
}

/// The number of the request that a message names.
pub(super) fn read_request(fields: &Fields<'_>) -> Result<u64, WireError> {
    fields.required("request", "request is missing or not an unsigned number", unsigned)
}

impl Reply {
    pub(super) fn read(fields: &Fields<'_>, segments: usize) -> Result<Self, WireError> {
        Ok(Self {
            request: read_request(fields)?,
            status: fields.required("status", "status is missing or not text", text)?,
            types: fields.types(segments)?,
            type_name: fields.optional("type", "type is not text", text)?,
            message: fields.optional("message", "message is not text", text)?,
            traceback: fields.optional("traceback", "traceback is not text", text)?,
            descriptors: fields.optional("descriptors", "descriptors is not a number up to 16", descriptors)?.unwrap_or_default(),
        })
    }

    pub(super) fn write(self) -> Body {
        let texts = [("type", self.type_name), ("message", self.message), ("traceback", self.traceback)];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::Text(text?))));
        let mut body = body([("request", Value::from(self.request)), ("status", Value::Text(self.status))]);
        body.extend(write_types(&self.types).into_iter().chain(texts));
        if self.descriptors > 0 {
            body.push(("descriptors".to_owned(), Value::from(self.descriptors)));
        }
        body
    }
}

impl Credit {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, WireError> {
        Ok(Self {
            handle: fields.required("handle", "handle is missing or not an unsigned number", unsigned)?,
            count: fields.required("count", "count is missing or not an unsigned number", unsigned)?,
        })
    }

    pub(super) fn write(self) -> Body {
        body([("handle", Value::from(self.handle)), ("count", Value::from(self.count))])
    }
}

impl Said {
    pub(super) fn read_request(fields: &Fields<'_>, segments: usize) -> Result<Self, WireError> {
        Ok(Self {
            request: Some(read_request(fields)?),
            shield: fields.optional("shield", "shield is not a truth value", Value::as_bool)?.unwrap_or_default(),
            ..Self::read_post(fields, segments)?
        })
    }

    pub(super) fn read_post(fields: &Fields<'_>, segments: usize) -> Result<Self, WireError> {
        Ok(Self {
            request: None,
            op: fields.required("op", "op is missing or not text", text)?,
            handle: fields.optional("handle", "handle is not an unsigned number", unsigned)?,
            thread: fields.required("thread", "thread is missing or not an unsigned number", unsigned)?,
            count: fields.optional("count", "count is not an unsigned number", unsigned)?,
            item: fields.optional("item", "item is not an unsigned number", unsigned)?,
            shield: false,
            types: fields.types(segments)?,
        })
    }

    pub(super) fn write(self) -> Body {
        let number = |name: &str, value: Option<u64>| value.map(|value| (name.to_owned(), Value::from(value)));
        let fields = [
            number("request", self.request),
            Some(("op".to_owned(), Value::Text(self.op))),
            number("handle", self.handle),
            number("thread", Some(self.thread)),
            number("count", self.count),
            number("item", self.item),
            self.shield.then(|| ("shield".to_owned(), Value::from(true))),
            write_types(&self.types),
        ];
        fields.into_iter().flatten().collect()
    }
}
