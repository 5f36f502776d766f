//! The human monitor on a character device: a prompt, a line at a time.

use std::rc::Rc;

use lockstep_chardev::{CharFrontend, StreamEvent};
use lockstep_util::fds;

use super::hmp;
use crate::{version_text, vm::Vm};

const PROMPT: &str = "(qemu) ";
/// The longest line, in bytes.
const LONGEST_LINE: usize = 4096;

/// Starts a human monitor on a device. It stays for as long as the machine.
pub fn start(vm: &Rc<Vm>, frontend: CharFrontend) {
    let vm = vm.clone();
    tokio::task::spawn_local(async move {
        let mut stream = frontend.into_stream();
        let writer = stream.writer();
        let write = |text: &str| {
            let _ = writer.send(&[std::io::IoSlice::new(text.as_bytes())]);
        };
        let passed = stream.writer();
        let client = fds::Client::new(move || passed.take_passed_fd());
        let mut line = Vec::new();
        loop {
            match stream.event(true).await {
                StreamEvent::Opened => {
                    line.clear();
                    let version = version_text();
                    let version = version.trim_start_matches("QEMU emulator version ");
                    write(&format!("QEMU {version} monitor - type 'help' for more information\r\n{PROMPT}"));
                }
                StreamEvent::Closed => line.clear(),
                StreamEvent::Break => {}
                StreamEvent::Detached => return,
                StreamEvent::Readable => {
                    let mut buf = [0; 256];
                    let Ok(n) = stream.try_read(&mut buf) else { continue };
                    for &byte in &buf[..n] {
                        match byte {
                            b'\r' | b'\n' => {
                                write("\r\n");
                                let text = String::from_utf8_lossy(&line).into_owned();
                                line.clear();
                                let answer = client.during(hmp::run_line(&vm, &text)).await;
                                write(&format!("{answer}{PROMPT}"));
                            }
                            // Backspace and delete take the last character back.
                            0x08 | 0x7f => {
                                if line.pop().is_some() {
                                    write("\x08 \x08");
                                }
                            }
                            // C-u forgets the line.
                            0x15 => {
                                write(&"\x08 \x08".repeat(line.len()));
                                line.clear();
                            }
                            0x20..=0x7e | 0x80.. if line.len() < LONGEST_LINE => {
                                line.push(byte);
                                let _ = writer.send(&[std::io::IoSlice::new(&[byte])]);
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
    });
}
