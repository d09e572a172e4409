//! The codec: bytes ↔ frames, as PROTOCOL.md lays them out, without I/O and without Python.
//!
//! Rules:
//! * Every length is checked against its bound before memory is allocated for it.
//! * The checks have the order of PROTOCOL.md, so both ends report the same error for the same
//!   bytes.
//! * Any input is handled without a panic.

#![forbid(unsafe_code)]

use ciborium::Value;
use thiserror::Error;

pub use crate::protocol::kind::Kind;

/// Length of the prefix, in bytes: magic, framing version, and two lengths.
pub const PREFIX_LENGTH: usize = 16;

pub const HEADER_LIMIT: usize = 1 << 24;

/// The bound of headers that a worker writes: four texts of 1 MiB, and the lengths and types of
/// segments.
pub const WORKER_HEADER_LIMIT: usize = 5 << 20;

pub const PAYLOAD_LIMIT: u64 = 1 << 40;
pub const SEGMENT_LIMIT: usize = 65_536;

/// Most lengths in an array. More of them are a byte string, which Python reads much faster.
pub const ARRAY_LIMIT: usize = 1024;

/// Most CBOR items in a body, itself included. HELLO and TEMPLATE are bounded by the header's
/// length only.
pub const ITEM_LIMIT: usize = 1024;

/// Deepest nesting of a body.
pub const DEPTH_LIMIT: usize = 32;

const MAGIC: [u8; 3] = *b"tro";
const FRAMING_VERSION: u8 = 1;

/// The major types of CBOR that are read here (RFC 8949, section 3.1).
const UNSIGNED: u8 = 0;
const BYTES: u8 = 2 << 5;
const TEXT: u8 = 3 << 5;
const ARRAY: u8 = 4 << 5;
const MAP: u8 = 5 << 5;
const TAG: u8 = 6 << 5;

/// The bits of the first byte that contain the major type.
const MAJOR: u8 = 7 << 5;

const INDEFINITE: u8 = 31;
const BREAK: u8 = 0xff;

/// The body of a message: a CBOR map with text keys, in the order in which it is written.
pub type Body = Vec<(String, Value)>;

#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    pub kind: Kind,
    /// The call that the frame belongs to; 0 means none.
    pub id: u64,
    /// The length of each segment, in bytes. The payload is their sum.
    pub lengths: Vec<u64>,
    pub body: Body,
}

/// The result of parsing an incomplete or complete header.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// Valid so far. Parse again with this many bytes of the frame.
    Need(usize),
    /// The header is complete. The payload begins after `consumed` bytes.
    Ready { header: Header, consumed: usize },
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("the bytes on the socket are no frame of trio-offload")]
    BadMagic,
    #[error(
        "the frame has version {0} of the framing, and this program reads version {FRAMING_VERSION}. Install the same release of trio-offload on both sides"
    )]
    UnsupportedFraming(u8),
    #[error("the header has {0} bytes, and 1 to {HEADER_LIMIT} are allowed")]
    HeaderTooLarge(u32),
    #[error("the payload has {0} bytes, and {PAYLOAD_LIMIT} are the most that a frame may carry")]
    PayloadTooLarge(u64),
    #[error("the header is malformed: {0}")]
    MalformedHeader(&'static str),
    #[error("a message of kind {0} is not known to protocol version 2")]
    UnknownKind(u64),
    #[error("the segments of the frame do not add up to its payload of {0} bytes")]
    SegmentMismatch(u64),
    #[error("the {kind:?} message is malformed: {problem}")]
    MalformedBody { kind: Kind, problem: &'static str },
    #[error("the stream ended inside a frame")]
    TornFrame,
}

impl WireError {
    /// The error's name in PROTOCOL.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadMagic => "bad_magic",
            Self::UnsupportedFraming(_) => "unsupported_framing",
            Self::HeaderTooLarge(_) => "header_too_large",
            Self::PayloadTooLarge(_) => "payload_too_large",
            Self::MalformedHeader(_) => "malformed_header",
            Self::UnknownKind(_) => "unknown_kind",
            Self::SegmentMismatch(_) => "segment_mismatch",
            Self::MalformedBody { .. } => "malformed_body",
            Self::TornFrame => "torn_frame",
        }
    }
}

/// Read the prefix and the header at the front of `bytes`, as far as they have arrived.
#[inline(always)]
pub fn parse(bytes: &[u8]) -> Result<Progress, WireError> {
    if bytes.iter().zip(MAGIC).any(|(found, expected)| *found != expected) {
        return Err(WireError::BadMagic);
    }
    if let Some(&version) = bytes.get(MAGIC.len())
        && version != FRAMING_VERSION
    {
        return Err(WireError::UnsupportedFraming(version));
    }
    let Some(header_length) = bytes.get(4..8).and_then(|field| field.try_into().ok()).map(u32::from_be_bytes) else {
        return Ok(Progress::Need(PREFIX_LENGTH));
    };
    if header_length == 0 || header_length as usize > HEADER_LIMIT {
        return Err(WireError::HeaderTooLarge(header_length));
    }
    let Some(payload_length) = bytes.get(8..16).and_then(|field| field.try_into().ok()).map(u64::from_be_bytes) else {
        return Ok(Progress::Need(PREFIX_LENGTH));
    };
    if payload_length > PAYLOAD_LIMIT {
        return Err(WireError::PayloadTooLarge(payload_length));
    }
    let consumed = PREFIX_LENGTH + header_length as usize;
    match bytes.get(PREFIX_LENGTH..consumed) {
        None => Ok(Progress::Need(consumed)),
        Some(encoded) => {
            let header = Header::decode(encoded, payload_length)?;
            Ok(Progress::Ready { header, consumed })
        }
    }
}

/// Write the prefix and the header of a frame; the payload follows them.
pub fn encode(header: Header) -> Result<Vec<u8>, WireError> {
    let payload_length = sum(&header.lengths).filter(|total| *total <= PAYLOAD_LIMIT);
    let payload_length = payload_length.ok_or(WireError::PayloadTooLarge(u64::MAX))?;
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&MAGIC);
    bytes.push(FRAMING_VERSION);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&payload_length.to_be_bytes());
    write_head(&mut bytes, ARRAY, if header.body.is_empty() { 3 } else { 4 });
    write_head(&mut bytes, UNSIGNED, header.kind as u64);
    write_head(&mut bytes, UNSIGNED, header.id);
    write_lengths(&mut bytes, &header.lengths);
    if !header.body.is_empty() {
        let pairs = header.body.into_iter().map(|(key, value)| (Value::Text(key), value));
        ciborium::into_writer(&Value::Map(pairs.collect()), &mut bytes)
            .map_err(|_| WireError::MalformedHeader("it cannot be written as CBOR"))?;
    }
    let header_length = u32::try_from(bytes.len() - PREFIX_LENGTH).unwrap_or(u32::MAX);
    let limit = if header.kind.is_of_worker() { WORKER_HEADER_LIMIT } else { HEADER_LIMIT };
    if header_length as usize > limit {
        return Err(WireError::HeaderTooLarge(header_length));
    }
    if let Some(field) = bytes.get_mut(4..8) {
        field.copy_from_slice(&header_length.to_be_bytes());
    }
    Ok(bytes)
}

fn write_lengths(bytes: &mut Vec<u8>, lengths: &[u64]) {
    if lengths.len() > ARRAY_LIMIT {
        write_head(bytes, BYTES, size_of_val(lengths) as u64);
        lengths.iter().for_each(|length| bytes.extend(length.to_be_bytes()));
    } else {
        write_head(bytes, ARRAY, lengths.len() as u64);
        lengths.iter().for_each(|length| write_head(bytes, UNSIGNED, *length));
    }
}

/// Write the head of a CBOR item in the shortest form (RFC 8949, section 3).
fn write_head(bytes: &mut Vec<u8>, major: u8, argument: u64) {
    match (u8::try_from(argument), u16::try_from(argument), u32::try_from(argument)) {
        (Ok(small), _, _) if small < 24 => bytes.push(major | small),
        (Ok(byte), _, _) => bytes.extend([major | 24, byte]),
        (_, Ok(short), _) => {
            bytes.push(major | 25);
            bytes.extend(short.to_be_bytes());
        }
        (_, _, Ok(word)) => {
            bytes.push(major | 26);
            bytes.extend(word.to_be_bytes());
        }
        _ => {
            bytes.push(major | 27);
            bytes.extend(argument.to_be_bytes());
        }
    }
}

/// Read the head of an item of this major type, in any length. Return `None` for another type.
fn read_head(bytes: &mut &[u8], major: u8) -> Option<u64> {
    let (&initial, rest) = bytes.split_first()?;
    let additional = initial ^ major;
    let size = match additional {
        0..=23 => {
            *bytes = rest;
            return Some(additional.into());
        }
        24..=27 => 1_usize << (additional - 24),
        _ => return None,
    };
    let (argument, rest) = rest.split_at_checked(size)?;
    *bytes = rest;
    Some(argument.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

impl Header {
    /// Decode the three items before a body directly, in the one form that PROTOCOL.md allows. The
    /// CBOR library also accepts indefinite arrays and tagged integers there, and its tree of
    /// values adds 10 % to a call without a body.
    fn decode(encoded: &[u8], payload_length: u64) -> Result<Self, WireError> {
        use WireError::MalformedHeader;
        let mut rest = encoded;
        let items = read_head(&mut rest, ARRAY).ok_or(MalformedHeader("it is not an array of definite length"))?;
        if !(3..=4).contains(&items) {
            return Err(MalformedHeader("it has neither three nor four items"));
        }
        let kind = read_head(&mut rest, UNSIGNED).ok_or(MalformedHeader("the kind is not an unsigned integer"))?;
        let id = read_head(&mut rest, UNSIGNED).ok_or(MalformedHeader("the id is not an unsigned integer"))?;
        let lengths = read_lengths(&mut rest)?;
        let body = if items == 4 { read_body(&mut rest, max_items(kind))? } else { Body::new() };
        if !rest.is_empty() {
            return Err(MalformedHeader("bytes are left over after it"));
        }
        let kind = Kind::from_number(kind).ok_or(WireError::UnknownKind(kind))?;
        if sum(&lengths) != Some(payload_length) {
            return Err(WireError::SegmentMismatch(payload_length));
        }
        Ok(Self { kind, id, lengths, body })
    }
}

/// Read an array of unsigned integers, or a byte string with eight bytes for each.
fn read_lengths(bytes: &mut &[u8]) -> Result<Vec<u64>, WireError> {
    use WireError::MalformedHeader;
    const SIZE: usize = size_of::<u64>();
    if let Some(size) = read_head(bytes, BYTES) {
        let size = usize::try_from(size).ok().filter(|size| *size <= SEGMENT_LIMIT * SIZE);
        let size = size.ok_or(MalformedHeader("it has more than 65,536 segments"))?;
        let (encoded, rest) = bytes.split_at_checked(size).ok_or(MalformedHeader("it ends inside the lengths"))?;
        let (lengths, odd) = encoded.as_chunks::<SIZE>();
        if !odd.is_empty() {
            return Err(MalformedHeader("the lengths do not have eight bytes each"));
        }
        *bytes = rest;
        return Ok(lengths.iter().map(|length| u64::from_be_bytes(*length)).collect());
    }
    let count = read_head(bytes, ARRAY).ok_or(MalformedHeader("the lengths are not of definite length"))?;
    let count = usize::try_from(count).ok().filter(|count| *count <= ARRAY_LIMIT);
    let count = count.ok_or(MalformedHeader("it has an array of more than 1,024 lengths"))?;
    let mut lengths = Vec::with_capacity(count);
    for _ in 0..count {
        lengths.push(read_head(bytes, UNSIGNED).ok_or(MalformedHeader("a length is not an unsigned integer"))?);
    }
    Ok(lengths)
}

/// Messages with lists from the parent are bounded by the header's length only.
fn max_items(kind: u64) -> usize {
    if kind == Kind::Hello as u64 || kind == Kind::Template as u64 { HEADER_LIMIT } else { ITEM_LIMIT }
}

/// Check the number of items and their depth before the CBOR library builds its tree of values,
/// which is many times as large as the encoding. The library reports all other errors.
fn check_body(bytes: &[u8], most: usize) -> Result<(), WireError> {
    let mut rest = bytes;
    let mut left = most;
    // The number of missing items at each level. `None` means an indefinite length.
    let mut missing = vec![Some(1_u64)];
    while let Some(level) = missing.last_mut() {
        if *level == Some(0) {
            missing.pop();
            continue;
        }
        let Some((&initial, after)) = rest.split_first() else { return Ok(()) };
        if initial == BREAK && level.is_none() {
            rest = after;
            missing.pop();
            continue;
        }
        if let Some(count) = level {
            *count -= 1;
        }
        left = left.checked_sub(1).ok_or(WireError::MalformedHeader("its body has more items than are allowed"))?;
        let major = initial & MAJOR;
        let argument = if initial & !MAJOR == INDEFINITE {
            rest = after;
            None
        } else {
            let Some(argument) = read_head(&mut rest, major) else { return Ok(()) };
            Some(argument)
        };
        let deeper = match (major, argument) {
            (BYTES | TEXT, Some(length)) => {
                let Some(after) = usize::try_from(length).ok().and_then(|length| rest.get(length..)) else { return Ok(()) };
                rest = after;
                continue;
            }
            (BYTES | TEXT | ARRAY, argument) => argument,
            (MAP, argument) => argument.map(|pairs| pairs.saturating_mul(2)),
            (TAG, _) => Some(1),
            _ => continue,
        };
        missing.push(deeper);
        if missing.len() > DEPTH_LIMIT + 1 {
            return Err(WireError::MalformedHeader("its body is deeper than is allowed"));
        }
    }
    Ok(())
}

/// Read a body from the front.
fn read_body(bytes: &mut &[u8], most: usize) -> Result<Body, WireError> {
    check_body(bytes, most)?;
    let body: Value =
        ciborium::from_reader(bytes).map_err(|_| WireError::MalformedHeader("the body is not one well-formed CBOR item"))?;
    let Value::Map(pairs) = body else {
        return Err(WireError::MalformedHeader("the body is not a map"));
    };
    let text_keys = pairs.into_iter().map(|(key, value)| Some((key.into_text().ok()?, value))).collect::<Option<Body>>();
    text_keys.ok_or(WireError::MalformedHeader("a key of the body is not text"))
}

fn sum(lengths: &[u64]) -> Option<u64> {
    lengths.iter().try_fold(0_u64, |total, length| total.checked_add(*length))
}
