//! The keyboard controller (IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller") with keyboard and mouse, and
//! the ports around it.

use crate::qtest::Qtest;

/// Gives the controller a command, and its argument.
fn command(q: &mut Qtest, command: u8, argument: Option<u8>) {
    q.outb(0x64, command);
    argument.into_iter().for_each(|a| q.outb(0x60, a));
}

/// All bytes that wait.
fn output(q: &mut Qtest) -> Vec<u8> {
    let mut bytes = vec![];
    while q.inb(0x64) & 1 != 0 && bytes.len() < 32 {
        bytes.push(q.inb(0x60));
    }
    bytes
}

#[test]
fn the_controller_tests_itself_and_keeps_its_command_byte() {
    let mut q = Qtest::start(&[]);
    command(&mut q, 0xaa, None);
    assert_eq!(output(&mut q), [0x55], "self-test passed");
    command(&mut q, 0xab, None);
    assert_eq!(output(&mut q), [0x00], "the keyboard's lines are good");
    command(&mut q, 0x60, Some(0x47));
    command(&mut q, 0x20, None);
    assert_eq!(output(&mut q), [0x47]);
}

#[test]
fn the_keyboard_answers_its_commands() {
    let mut q = Qtest::start(&[]);
    command(&mut q, 0x60, Some(0x00));
    let mut ask = |byte: u8| {
        q.outb(0x60, byte);
        output(&mut q)
    };
    assert_eq!(ask(0xee), [0xee], "echo");
    assert_eq!(ask(0xf2), [0xfa, 0xab, 0x83], "its id");
    assert_eq!(ask(0xff), [0xfa, 0xaa], "reset, and its test passed");
    assert_eq!((ask(0xed), ask(0x07)), (vec![0xfa], vec![0xfa]), "lamps");
    assert_eq!((ask(0xf0), ask(0x00)), (vec![0xfa], vec![0xfa, 0x02]), "the second set of codes");
}

#[test]
fn the_mouse_answers_behind_the_controllers_prefix() {
    let mut q = Qtest::start(&[]);
    q.intercept_interrupts();
    command(&mut q, 0x60, Some(0x03));
    let mut ask = |byte: u8| {
        command(&mut q, 0xd4, Some(byte));
        let mouse = q.inb(0x64) & 0x20 != 0;
        (mouse, output(&mut q))
    };
    assert_eq!(ask(0xff), (true, vec![0xfa, 0xaa, 0x00]), "reset, passed, a plain mouse");
    assert_eq!(ask(0xf2), (true, vec![0xfa, 0x00]));
    // Sample rates 200, 100, 80 make it one with a wheel.
    for rate in [200, 100, 80] {
        ask(0xf3);
        ask(rate);
    }
    assert_eq!(ask(0xf2), (true, vec![0xfa, 0x03]));
    assert!(q.interrupts().contains(&(12, true)));
}

#[test]
fn bytes_interrupt_as_the_command_byte_says() {
    let mut q = Qtest::start(&[]);
    q.intercept_interrupts();
    command(&mut q, 0x60, Some(0x00));
    command(&mut q, 0xd2, Some(0x1e));
    assert_eq!(q.interrupts(), []);
    output(&mut q);
    command(&mut q, 0x60, Some(0x03));
    command(&mut q, 0xd2, Some(0x1e));
    assert_eq!(q.interrupts(), [(1, true)]);
    output(&mut q);
    assert_eq!(q.interrupts(), [(1, false)]);
    command(&mut q, 0xd3, Some(0x08));
    assert_eq!(q.interrupts(), [(12, true)]);
}

#[test]
fn the_output_port_shows_a20_and_system_control_port_a_drives_it() {
    let mut q = Qtest::start(&[]);
    let a20 = |q: &mut Qtest| {
        command(q, 0xd0, None);
        output(q)[0] & 2 != 0
    };
    command(&mut q, 0xd1, Some(0xdf));
    assert!(a20(&mut q));
    command(&mut q, 0xd1, Some(0xdd));
    assert!(!a20(&mut q));
    q.outb(0x92, 0x02);
    assert_eq!(q.inb(0x92) & 0x02, 0x02);
}
