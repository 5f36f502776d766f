//! A QMP monitor on a character device.

use std::{rc::Rc, sync::Arc};

use lockstep_chardev::{CharEvent, CharFrontend, CharHandlers};
use lockstep_event::Local;
use lockstep_qapi::Dispatcher;
use lockstep_util::fds;

use crate::{
    qmp::{self, Ctx},
    vm::Vm,
};

/// Bytes that a monitor reads at a time.
const READ_SIZE: usize = 4096;

/// Starts a QMP monitor on a device. It stays for as long as the machine.
pub fn start_qmp(vm: &Rc<Vm>, dispatcher: &Rc<Dispatcher<Ctx>>, frontend: CharFrontend, pretty: bool) {
    let writer = frontend.writer();
    let output = Box::new(move |bytes: Vec<u8>| {
        // A client that does not read loses its connection, not the machine's time.
        let _ = writer.send(&[std::io::IoSlice::new(&bytes)]);
    });
    let writer = frontend.writer();
    let client = fds::Client::new(move || writer.take_passed_fd());
    let monitor = qmp::monitor(vm, dispatcher, pretty, true, output, client);
    let (can_read, reader, listener) = (monitor.clone(), monitor.clone(), monitor.clone());
    let handlers = CharHandlers {
        can_read: Box::new(move || if can_read.can_read() { READ_SIZE } else { 0 }),
        read: Box::new(move |bytes| reader.feed(bytes)),
        event: Box::new(move |event| match event {
            CharEvent::Opened => listener.opened(),
            CharEvent::Closed => listener.closed(),
            CharEvent::Break => {}
        }),
    };
    frontend.start(&vm.monitor_context(), handlers);
    // The monitor is only used by the closures above, which live as long as the frontend.
    let frontend = Arc::new(Local::new(Rc::new(frontend)));
    vm.keep(frontend.get().clone());
    monitor.on_input_wanted(move || frontend.get().accept_input());
}
