//! The worker executable of trio-offload: parse, start, serve, exit.

mod python;

use std::io::Write as _;
use std::process::ExitCode;

use serde::Serialize;
use trio_offload_worker::protocol::message::PROTOCOL_VERSION;
use trio_offload_worker::sentinel::activity::ActivityCell;
use trio_offload_worker::{exit, launch, os, session};

use crate::python::executor::Worker;
use crate::python::line::LINE;
use crate::python::{interpreter, raw};

static ACTIVITY: ActivityCell = ActivityCell::new();

fn main() -> ExitCode {
    match launch::Plan::from_arguments(std::env::args_os().skip(1)) {
        launch::Plan::Serve { socket, record } => serve(socket, record),
        launch::Plan::ShowInfo => print_line(&info()),
        launch::Plan::ShowVersion => print_line(concat!("trio-offload-worker ", env!("CARGO_PKG_VERSION"))),
        launch::Plan::Explain => print_line(
            "This is the worker of trio-offload: a process that runs Python functions for a Trio program. \
                 The trio_offload package starts it when it is needed.",
        ),
        launch::Plan::Wrong => {
            print_error("unknown arguments: expected --info or --version. trio-offload itself passes `serve 3 4`")
        }
    }
}

fn serve(socket: i32, record: i32) -> ExitCode {
    let (mut connection, process_setup) = match launch::prepare(socket, record) {
        Ok(prepared) => prepared,
        Err(error) => return print_error(&error.to_string()),
    };
    let mut worker = Worker::new(process_setup, &ACTIVITY);
    let mut ending = session::run(&mut connection, &mut worker, &ACTIVITY, &LINE);
    let forked_connection = worker.take_forked();
    let is_forked = forked_connection.is_some();
    if let Some(forked_connection) = forked_connection {
        // A template has forked this process. The template's descriptor number belongs to the
        // worker's socket now.
        let templates = std::mem::replace(&mut connection, forked_connection);
        if let Some(socket) = connection.reuse_memory_of(templates) {
            socket.leave_open();
        }
        worker.warm_up();
        ending = session::run(&mut connection, &mut worker, &ACTIVITY, &LINE);
    }
    let code = worker.finish(ending);
    if is_forked {
        os::process::exit_now(code);
    }
    // The end of the process closes the socket: to the parent, an end of the stream means that the
    // worker is gone.
    std::mem::forget(connection);
    exit_code(code)
}

/// The output of `--info`: one JSON object.
#[derive(Serialize)]
struct Info {
    worker: &'static str,
    protocol: u64,
    python: PythonInfo,
}

#[derive(Serialize)]
struct PythonInfo {
    version: String,
    build: String,
    compiler: String,
    libpython: String,
    free_threaded: bool,
}

fn info() -> String {
    let info = Info {
        worker: env!("CARGO_PKG_VERSION"),
        protocol: PROTOCOL_VERSION,
        python: PythonInfo {
            version: raw::version::version(),
            build: raw::version::build(),
            compiler: raw::version::compiler(),
            libpython: interpreter::loaded_library().to_string_lossy().into_owned(),
            free_threaded: raw::version::FREE_THREADED,
        },
    };
    serde_json::to_string_pretty(&info).unwrap_or_default()
}

/// Print a line. `println!` panics if the pipe is closed.
fn print_line(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn print_error(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "trio-offload-worker: {text}");
    exit_code(exit::WRONG_ARGUMENTS)
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
