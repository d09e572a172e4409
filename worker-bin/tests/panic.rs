//! A real panic of this program, in a second process of this test.

use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use trio_offload_worker::process::record::{self, Record};

/// Names the file to which the second process writes its record.
const COPY: &str = "TRIO_OFFLOAD_TEST_PANIC";

#[test]
fn a_panic_in_any_thread_is_written_down_and_ends_the_process() {
    if let Some(path) = std::env::var_os(COPY) {
        let file: OwnedFd = std::fs::File::create(path).unwrap().into();
        record::report_panics(Box::leak(Box::new(Record::new(file))));
        std::thread::spawn(|| panic!("on purpose")).join().unwrap_err();
        panic!("it has not ended");
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let ended = Command::new(std::env::current_exe().unwrap())
        .args(["a_panic_in_any_thread", "--nocapture"])
        .env(COPY, file.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(ended.status.signal(), Some(6), "{ended:?}");
    let mut written = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut written).unwrap();
    assert!(written.starts_with("trio-offload-worker panicked, which is an error in trio-offload: "), "{written}");
    assert!(written.contains("on purpose"), "{written}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains(&written));
}
