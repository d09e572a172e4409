//! Every file of tests/vectors, through the connection of the real socket: whole, byte by byte, and
//! cut in two at every place. The README beside the files describes them.
#![expect(clippy::unwrap_used, clippy::panic, reason = "outside of the test functions too, what a test did not expect fails it")]

mod fakes;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use ciborium::Value;
use fakes::{Heap, Script};
use trio_offload_worker::error::ReceiveError;
use trio_offload_worker::protocol::frame::{self, Header};
use trio_offload_worker::protocol::message::Message;
use trio_offload_worker::transport::Segment;
use trio_offload_worker::transport::connection::{Connection, Next};

#[derive(Debug, PartialEq)]
struct Frame {
    header: Header,
    message: Message,
    segments: Vec<Vec<u8>>,
}

/// A receiver's result: the frames, and the error's name. `None` means valid so far.
type Outcome = (Vec<Frame>, Option<&'static str>);

struct Vector {
    name: String,
    bytes: Vec<u8>,
    frames: Vec<serde_json::Value>,
    error: Option<String>,
    end: bool,
    canonical: bool,
}

#[test]
fn every_vector_whole_and_cut_at_every_place() {
    let vectors = vectors();
    assert!(vectors.len() > 50, "only {} vectors were found", vectors.len());
    for vector in vectors {
        let length = vector.bytes.len();
        check(&vector, &[]);
        // The outcome must not depend on the cuts. Long files are sampled.
        let stride = 1 + length / 4000;
        for place in (1..length).step_by(stride) {
            check(&vector, &[place]);
        }
        check(&vector, &(1..length).step_by(stride).collect::<Vec<_>>());
    }
}

#[test]
fn canonical_vectors_are_written_byte_by_byte() {
    for vector in vectors().into_iter().filter(|vector| vector.canonical) {
        let (frames, error) = receive(&vector, &[]);
        assert_eq!(error, None, "{}", vector.name);
        let mut written = Vec::new();
        for frame in frames {
            let (kind, id, lengths) = (frame.message.kind(), frame.header.id, frame.header.lengths);
            written.extend(frame::encode(Header { kind, id, lengths, body: frame.message.into_body() }).unwrap());
            written.extend(frame.segments.concat());
        }
        assert!(written == vector.bytes, "{} is written in another way", vector.name);
    }
}

/// Both codecs against each other. `ci/codecs` makes the file, with the results of the parent's
/// codec.
#[test]
#[ignore = "ci/codecs runs it"]
fn damaged_headers_are_judged_as_by_the_parent() {
    let path = env::var_os("TRIO_OFFLOAD_DAMAGED").expect("the variable TRIO_OFFLOAD_DAMAGED names the file; run ci/codecs");
    let vectors: Vec<serde_json::Value> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(vectors.len() >= 100, "only {} vectors were found", vectors.len());
    for vector in vectors.iter().map(Vector::from_json) {
        check(&vector, &[]);
        check(&vector, &(1..vector.bytes.len()).collect::<Vec<_>>());
    }
}

fn check(vector: &Vector, cuts: &[usize]) {
    let (frames, error) = receive(vector, cuts);
    let what = format!("{} cut at {:?}", vector.name, cuts.get(..1));
    assert_eq!(error, vector.error.as_deref(), "{what}");
    assert_eq!(frames.len(), vector.frames.len(), "{what}");
    for (frame, expected) in frames.into_iter().zip(&vector.frames) {
        assert_eq!(u64::from(frame.header.kind as u8), expected["kind"].as_u64().unwrap(), "{what}");
        assert_eq!(frame.header.id, expected["id"].as_u64().unwrap(), "{what}");
        let segments: Vec<Vec<u8>> = expected["segments"].as_array().unwrap().iter().map(hex_value).collect();
        assert!(frame.segments == segments, "{what}: the segments differ");
        let body = frame.message.into_body().into_iter().map(|(key, value)| (Value::Text(key), value)).collect();
        assert!(same(&Value::Map(body), &expected["body"]), "{what}: the bodies differ");
    }
}

fn receive(vector: &Vector, cuts: &[usize]) -> Outcome {
    let mut connection = Connection::new(Script::cut(&vector.bytes, cuts, vector.end));
    let mut frames = Vec::new();
    loop {
        match receive_one(&mut connection) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, None),
            // The script's error at the end of a stream that was not closed.
            Err(ReceiveError::System(_)) => return (frames, None),
            Err(error) => return (frames, Some(error.code())),
        }
    }
}

fn receive_one(connection: &mut Connection<Script>) -> Result<Option<Frame>, ReceiveError> {
    let header = match connection.next_header()? {
        Next::Header(header) => header,
        Next::End => return Ok(None),
        other => panic!("{other:?} without a time-out"),
    };
    let message = Message::from_header(&header)?;
    let segments = connection.receive_segments(&header.lengths, &[], &mut Heap)?;
    let segments = segments.into_iter().map(|segment| match segment {
        Segment::Shared(bytes) => bytes.to_vec(),
        Segment::Owned(buffer) => buffer.into_bytes(),
    });
    Ok(Some(Frame { segments: segments.collect(), header, message }))
}

/// Maps without their order, which JSON lacks.
fn same(value: &Value, expected: &serde_json::Value) -> bool {
    match (value, expected) {
        (Value::Null, serde_json::Value::Null) => true,
        (Value::Bool(value), serde_json::Value::Bool(expected)) => value == expected,
        (Value::Text(value), serde_json::Value::String(expected)) => value == expected,
        (Value::Integer(value), serde_json::Value::Number(expected)) => {
            expected.as_i128().is_some_and(|expected| i128::from(*value) == expected)
        }
        (Value::Bytes(value), serde_json::Value::Object(expected)) => {
            expected.len() == 1 && expected.get("$bytes").is_some_and(|expected| *value == hex_value(expected))
        }
        (Value::Array(value), serde_json::Value::Array(expected)) => {
            value.len() == expected.len() && value.iter().zip(expected).all(|(value, expected)| same(value, expected))
        }
        (Value::Map(value), serde_json::Value::Object(expected)) => {
            value.len() == expected.len()
                && value.iter().all(|(key, value)| {
                    let expected = key.as_text().and_then(|key| expected.get(key));
                    expected.is_some_and(|expected| same(value, expected))
                })
        }
        _ => false,
    }
}

fn vectors() -> Vec<Vector> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect();
    files.sort();
    files.iter().map(|path| read_vector(path)).collect()
}

fn read_vector(path: &Path) -> Vector {
    let text = fs::read_to_string(path).unwrap();
    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Vector::from_json(&json)
}

impl Vector {
    fn from_json(json: &serde_json::Value) -> Self {
        let flag = |key: &str| json.get(key).and_then(serde_json::Value::as_bool).unwrap_or(false);
        Self {
            name: json["name"].as_str().unwrap().to_owned(),
            bytes: hex_value(&json["bytes"]),
            frames: json.get("frames").and_then(serde_json::Value::as_array).cloned().unwrap_or_default(),
            error: json.get("error").map(|error| error.as_str().unwrap().to_owned()),
            end: flag("end"),
            canonical: flag("canonical"),
        }
    }
}

fn hex_value(value: &serde_json::Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes();
    let digit = |digit: u8| u8::try_from(char::from(digit).to_digit(16).unwrap()).unwrap();
    digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}
