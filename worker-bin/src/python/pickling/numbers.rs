//! Pickles of None, truth values and numbers, written directly.

#![forbid(unsafe_code)]

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt};

/// Opcodes (Lib/pickletools.py).
const PROTO: [u8; 2] = [0x80, 5];

const STOP: u8 = b'.';
const NONE: u8 = b'N';
const NEWTRUE: u8 = 0x88;
const NEWFALSE: u8 = 0x89;

/// Four bytes, little-endian.
const BININT: u8 = b'J';

/// A length byte, then the number, little-endian.
const LONG1: u8 = 0x8a;

/// Eight bytes, big-endian.
const BINFLOAT: u8 = b'G';

/// Pickle None, a truth value or a small number. The pickler's setup and cleanup would be a fifth
/// of the worker's time for a small call.
pub(super) fn pickle_of_number(object: &Bound<'_, PyAny>) -> Option<Vec<u8>> {
    let mut pickle = PROTO.to_vec();
    if object.is_none() {
        pickle.push(NONE);
    } else if let Ok(truth) = object.cast_exact::<PyBool>() {
        pickle.push(if truth.is_true() { NEWTRUE } else { NEWFALSE });
    } else if let Ok(number) = object.cast_exact::<PyInt>() {
        let number = number.extract::<i64>().ok()?;
        match i32::try_from(number) {
            Ok(small) => {
                pickle.push(BININT);
                pickle.extend(small.to_le_bytes());
            }
            Err(_) => {
                pickle.extend([LONG1, 8]);
                pickle.extend(number.to_le_bytes());
            }
        }
    } else if let Ok(number) = object.cast_exact::<PyFloat>() {
        pickle.push(BINFLOAT);
        pickle.extend(number.value().to_be_bytes());
    } else {
        return None;
    }
    pickle.push(STOP);
    Some(pickle)
}
