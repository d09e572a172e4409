//! The module `_trio_offload_line`: how a job reaches its parent.
//! `trio_offload_worker._requests` uses it; its `line` module describes the functions.
//!
//! Rules:
//! * No Python code runs while a lock of the line is held, and the GIL is released before it is
//!   taken.
//! * What has been written or received is in the caller's list before a signal handler can run.
//! * The parent's end, or bytes that are no frame, end the process as the native thread does.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd as _, AsRawFd as _, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use trio_offload_worker::error::{ReceiveError, SendError};
use trio_offload_worker::os::signals::SignalsHeld;
use trio_offload_worker::os::socket::Carried;
use trio_offload_worker::protocol::message::{Explanation, Message};
use trio_offload_worker::protocol::segments::SegmentType;
use trio_offload_worker::transport::Allocator;
use trio_offload_worker::transport::buffer_pool::BufferPool;
use trio_offload_worker::transport::line::{ForJob, Line, Received};
use trio_offload_worker::transport::socket::Socket;
use trio_offload_worker::{exit, os, sentinel};

use crate::python::pickling::object_of;
use crate::python::raw::buffers::{HeldBytes, NewBytes};

const NAME: &str = "_trio_offload_line";

/// Time after which a thread that a job has left behind notices that. The main thread runs the job.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

pub(crate) static LINE: Line<Socket, NewBytes> = Line::new();

/// Put the module into `sys.modules`. As a builtin module it would show in
/// `sys.builtin_module_names`, which is the same in a worker as in its parent.
pub(crate) fn install(py: Python<'_>) -> PyResult<()> {
    let module = PyModule::new(py, NAME)?;
    // `add_function` would look for `__all__` first, and catch the error. Each start pays for that.
    module.setattr("call", wrap_pyfunction!(call, &module)?)?;
    module.setattr("pid", wrap_pyfunction!(pid, &module)?)?;
    module.setattr("record", wrap_pyfunction!(record, &module)?)?;
    module.setattr("write", wrap_pyfunction!(write, &module)?)?;
    module.setattr("read", wrap_pyfunction!(read, &module)?)?;
    module.setattr("open_carried", wrap_pyfunction!(open_carried, &module)?)?;
    py.import("sys")?.getattr("modules")?.set_item(NAME, module)
}

/// The ID of the running call; 0 between two jobs.
#[pyfunction]
fn call() -> u64 {
    LINE.call()
}

/// The process ID of the worker. A copy that a job has forked has another.
#[pyfunction]
fn pid() -> u32 {
    LINE.pid()
}

/// The record's descriptor; -1 if a job has closed it.
#[pyfunction]
fn record() -> i32 {
    LINE.record()
}

/// Write the parts of a frame and append True to `sent`, or do neither if the call has ended.
#[pyfunction]
fn write(parts: &Bound<'_, PyAny>, call: u64, sent: &Bound<'_, PyList>) -> PyResult<()> {
    refuse_copies()?;
    let held = parts.try_iter()?.map(|part| HeldBytes::hold(&part?)).collect::<PyResult<Vec<_>>>()?;
    let written = parts.py().detach(|| {
        let parts: Vec<&[u8]> = held.iter().map(HeldBytes::bytes).collect();
        LINE.write(&parts, call)
    });
    match written {
        Ok(true) => sent.append(true),
        Ok(false) => Ok(()),
        Err(SendError::Closed) => sentinel::end_now(exit::ORPHANED),
        Err(error) => Err(PyOSError::new_err(error.to_string())),
    }
}

/// Receive the descriptors that come with answers from now on.
#[pyfunction]
fn open_carried(py: Python<'_>) -> PyResult<()> {
    refuse_copies()?;
    py.detach(|| LINE.open_carried());
    Ok(())
}

/// Append the next REPLY or CREDIT of the running call to `inbox`. Nothing is appended if the time
/// is over, a signal came, or the call has ended.
#[pyfunction]
fn read(py: Python<'_>, timeout: f64, inbox: &Bound<'_, PyList>) -> PyResult<()> {
    refuse_copies()?;
    let call = LINE.call();
    if call == 0 {
        return Ok(());
    }
    let since = Instant::now();
    // `None` means that the time has no limit.
    let deadline = Duration::try_from_secs_f64(timeout.max(0.0)).ok().and_then(|timeout| since.checked_add(timeout));
    let Some(_turn) = LINE.take_turn(call) else {
        return Err(PyRuntimeError::new_err("another thread of this job reads from the parent already"));
    };
    let is_main = os::threads::is_main_thread();
    let mut spins = true;
    loop {
        let socket = match py.detach(|| LINE.receive(call, &mut Memory, since, std::mem::take(&mut spins))) {
            Ok(Received::Frame(frame)) => return inbox.append(to_python(py, *frame)?),
            Ok(Received::Nothing(socket)) => socket,
            Ok(Received::Over) => return Ok(()),
            Ok(Received::End) => sentinel::end_now(exit::ORPHANED),
            Err(ReceiveError::System(error)) if error.kind() == std::io::ErrorKind::NotConnected => {
                return Err(PyOSError::new_err("this job has closed the descriptor of its socket, which leads to the parent"));
            }
            Err(error) => abort(&error),
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(());
        }
        let Some(socket) = socket else { return Ok(()) };
        if !is_main {
            let left = left.unwrap_or(LOOK_INTERVAL).min(LOOK_INTERVAL);
            py.detach(|| os::socket::wait_readable(socket.as_fd(), left));
        } else if !wait_in_main_thread(py, &socket, left)? {
            return Ok(());
        }
    }
}

/// Return false after the timeout or a signal. A signal that came before interrupts the wait too.
fn wait_in_main_thread(py: Python<'_>, socket: &UnixStream, timeout: Option<Duration>) -> PyResult<bool> {
    py.check_signals()?;
    let held = SignalsHeld::all()?;
    // A signal may have come between the two lines above; rarely so.
    py.check_signals()?;
    // The signals are let through before this thread waits for the GIL.
    py.detach(move || match os::socket::wait_readable_with(socket.as_fd(), timeout, held) {
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(false),
        ready => Ok(ready?),
    })
}

/// Memory for segments while a job runs. It is not kept for the next.
struct Memory;

impl Allocator for Memory {
    type Buffer = NewBytes;

    fn allocate(&mut self, length: usize, kind: SegmentType) -> Option<NewBytes> {
        Python::attach(|py| NewBytes::allocate(py, length, kind, &BufferPool::default()))
    }
}

/// The tuple `(kind, id, body, segments)`.
fn to_python<'py>(py: Python<'py>, frame: ForJob<NewBytes>) -> PyResult<Bound<'py, PyTuple>> {
    let ForJob { id, message, segments, carried } = frame;
    let kind = message.kind() as u8;
    let body = PyDict::new(py);
    match message {
        Message::Reply(reply) => {
            body.set_item("request", reply.request)?;
            body.set_item("status", reply.status)?;
            if !reply.types.is_empty() {
                let types: Vec<u8> = reply.types.iter().map(|kind| *kind as u8).collect();
                body.set_item("types", PyBytes::new(py, &types))?;
            }
            if reply.descriptors > 0 {
                body.set_item("descriptors", owned_by_python(py, carried)?)?;
            }
            let texts = [("type", reply.type_name), ("message", reply.message), ("traceback", reply.traceback)];
            for (name, text) in texts {
                if let Some(text) = text {
                    body.set_item(name, text)?;
                }
            }
        }
        Message::Credit(credit) => {
            body.set_item("handle", credit.handle)?;
            body.set_item("count", credit.count)?;
        }
        _ => {}
    }
    let segments = segments.into_iter().map(|segment| object_of(py, segment)).collect::<PyResult<Vec<_>>>()?;
    (kind, id, body, PyList::new(py, segments)?).into_pyobject(py)
}

/// A descriptor that came with an answer. It is closed unless the job takes it. Made without Python
/// code, during which a signal handler could run.
#[pyclass(module = "trio_offload_worker._requests.descriptors")]
struct ReceivedDescriptor(Option<OwnedFd>);

#[pymethods]
impl ReceivedDescriptor {
    /// Return the number. -1 means that the descriptor is taken.
    fn fileno(&self) -> RawFd {
        self.0.as_ref().map_or(-1, OwnedFd::as_raw_fd)
    }

    /// Return the number. The caller owns the descriptor from then on. -1 means that it is taken.
    fn take(&mut self) -> RawFd {
        self.0.take().map_or(-1, IntoRawFd::into_raw_fd)
    }
}

fn owned_by_python(py: Python<'_>, carried: Carried) -> PyResult<Bound<'_, PyList>> {
    let owned = carried.descriptors.into_iter().map(|descriptor| Bound::new(py, ReceivedDescriptor(Some(descriptor))));
    PyList::new(py, owned.collect::<PyResult<Vec<_>>>()?)
}

/// A copy of the process that a job forked has no socket.
fn refuse_copies() -> PyResult<()> {
    if os::copies::is_forked_copy() {
        return Err(PyRuntimeError::new_err(
            "this process was forked off a job of trio-offload; only the job itself can talk to its parent",
        ));
    }
    Ok(())
}

/// Report the error to the parent, and end the process with all that the job has started.
fn abort(error: &ReceiveError) -> ! {
    LINE.write_last(Message::Aborted(Explanation::new(error.code(), error.to_string())));
    sentinel::end_now(exit::Ending::Aborted.code())
}
