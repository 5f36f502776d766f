//! The USB host controller (Intel UHCI Design Guide 1.1) with a tablet (HID 1.11).

use crate::qtest::Qtest;

const FUNCTION: u8 = 3 << 3;
const BASE: u16 = 0xc000;
const COMMAND: u16 = BASE;
const STATUS: u16 = BASE + 2;
const FRAME: u16 = BASE + 6;
const FRAME_LIST: u16 = BASE + 8;
const PORT: u16 = BASE + 0x10;

const LIST: u32 = 0x10_0000;
const QUEUE: u32 = 0x10_2000;
const TRANSFERS: u32 = 0x10_3000;
const BUFFER: u32 = 0x10_4000;

const SETUP: u32 = 0x2d;
const IN: u32 = 0x69;
const OUT: u32 = 0xe1;
const ACTIVE: u32 = 1 << 23;
const STALLED: u32 = 1 << 22;
const COMPLETE: u32 = 1 << 24;

fn rig() -> Qtest {
    let mut q = Qtest::start(&["-device", "piix3-usb-uhci,addr=3", "-device", "usb-tablet"]);
    q.enable_ports(FUNCTION, 0x20, BASE);
    q.outw(COMMAND, 0x0002);
    assert_eq!((q.inw(COMMAND), q.inw(STATUS)), (0, 0x20), "reset, halted");
    // One queue in every frame.
    let list: Vec<u8> = (0..1024).flat_map(|_| (QUEUE | 2).to_le_bytes()).collect();
    q.write(LIST.into(), &list);
    q.outl(FRAME_LIST, LIST);
    assert_eq!(q.inw(PORT) & 0x03, 0x03, "a device was connected");
    q.outw(PORT, 0x0200);
    q.outw(PORT, 0x0000);
    q.outw(PORT, 0x0006);
    assert_eq!(q.inw(PORT) & 0x07, 0x05, "enabled");
    q
}

/// Runs transfers one after the other; returns the control words as they are left.
fn run(q: &mut Qtest, address: u32, endpoint: u32, transfers: &[(u32, u32, u32)]) -> Vec<u32> {
    let mut data = 0;
    for (n, &(pid, buffer, len)) in transfers.iter().enumerate() {
        let at = TRANSFERS + 32 * n as u32;
        let next = if n + 1 == transfers.len() { 1 } else { at + 32 | 4 };
        let last = if n + 1 == transfers.len() { COMPLETE } else { 0 };
        // The status stage of a control transfer has DATA1.
        let toggle = if transfers.len() > 1 && n + 1 == transfers.len() { 1 } else { data };
        data ^= 1;
        let token = (len.wrapping_sub(1) & 0x7ff) << 21 | toggle << 19 | endpoint << 15 | address << 8 | pid;
        for (word, value) in [next, ACTIVE | 3 << 27 | last, token, buffer].into_iter().enumerate() {
            q.writel(u64::from(at) + 4 * word as u64, value);
        }
    }
    q.writel(u64::from(QUEUE), 1);
    q.writel(u64::from(QUEUE) + 4, TRANSFERS);
    q.outw(COMMAND, 0x0081);
    q.step(20_000_000);
    q.outw(COMMAND, 0x0080);
    q.step(2_000_000);
    (0..transfers.len()).map(|n| q.readl(u64::from(TRANSFERS) + 32 * n as u64 + 4)).collect()
}

/// A control read; the bytes.
fn control_read(q: &mut Qtest, address: u32, request: [u8; 8]) -> Vec<u8> {
    let len = u32::from(request[6]) | u32::from(request[7]) << 8;
    q.write(BUFFER.into(), &request);
    let mut transfers = vec![(SETUP, BUFFER, 8)];
    transfers.extend((0..len.div_ceil(8)).map(|n| (IN, BUFFER + 64 + 8 * n, (len - 8 * n).min(8))));
    transfers.push((OUT, BUFFER, 0));
    let left = run(q, address, 0, &transfers);
    assert!(left.iter().all(|s| s & (ACTIVE | STALLED) == 0), "{left:x?}");
    q.read(u64::from(BUFFER) + 64, len as usize)
}

/// A control request without data; false when it stalls.
fn control(q: &mut Qtest, address: u32, request: [u8; 8]) -> bool {
    q.write(BUFFER.into(), &request);
    let left = run(q, address, 0, &[(SETUP, BUFFER, 8), (IN, BUFFER + 64, 0)]);
    left.iter().all(|s| s & (ACTIVE | STALLED) == 0)
}

#[test]
fn it_counts_frames_while_it_runs() {
    let mut q = rig();
    assert_eq!((q.config(FUNCTION, 0), q.config(FUNCTION, 8) >> 8), (0x7020_8086, 0x0c_0300));
    q.writel(u64::from(QUEUE), 1);
    q.writel(u64::from(QUEUE) + 4, 1);
    q.outw(COMMAND, 0x0001);
    assert_eq!(q.inw(STATUS) & 0x20, 0, "it runs");
    let before = q.inw(FRAME);
    q.step(10_000_000);
    assert_eq!(q.inw(FRAME).wrapping_sub(before) & 0x7ff, 10, "a frame is a millisecond");
    q.outw(COMMAND, 0x0000);
    q.step(2_000_000);
    assert_eq!(q.inw(STATUS) & 0x20, 0x20, "halted");
    let stopped = q.inw(FRAME);
    q.step(10_000_000);
    assert_eq!(q.inw(FRAME), stopped);
}

#[test]
fn a_tablet_is_found_and_given_an_address() {
    let mut q = rig();
    let device = control_read(&mut q, 0, [0x80, 6, 0, 1, 0, 0, 18, 0]);
    assert_eq!((device[0], device[1], &device[8..12]), (18, 1, &[0x27, 0x06, 0x01, 0x00][..]), "0627:0001");
    assert!(control(&mut q, 0, [0x00, 5, 7, 0, 0, 0, 0, 0]), "SET_ADDRESS 7");
    let configuration = control_read(&mut q, 7, [0x80, 6, 0, 2, 0, 0, 34, 0]);
    assert_eq!((configuration[0], configuration[2], configuration[14]), (9, 34, 3), "one interface: HID");
    assert!(control(&mut q, 7, [0x00, 9, 1, 0, 0, 0, 0, 0]), "SET_CONFIGURATION 1");
    assert_eq!(control_read(&mut q, 7, [0x80, 8, 0, 0, 0, 0, 1, 0]), [1]);
    let report = control_read(&mut q, 7, [0x81, 6, 0, 0x22, 0, 0, 74, 0]);
    assert_eq!(report[..4], [0x05, 0x01, 0x09, 0x02], "a report descriptor: generic desktop, mouse");
    // GET_REPORT: buttons, X, Y, wheel.
    assert_eq!(control_read(&mut q, 7, [0xa1, 1, 0, 1, 0, 0, 6, 0]).len(), 6);
}

#[test]
fn nonsense_stalls_and_an_idle_endpoint_has_nothing() {
    let mut q = rig();
    assert!(control(&mut q, 0, [0x00, 9, 1, 0, 0, 0, 0, 0]));
    q.outw(STATUS, 0xffff);
    assert!(!control(&mut q, 0, [0x00, 0x55, 0, 0, 0, 0, 0, 0]), "no such request");
    assert_eq!(q.inw(STATUS) & 0x02, 0x02, "an error interrupt");
    q.outw(STATUS, 0x02);
    assert_eq!(q.inw(STATUS) & 0x02, 0);
    let left = run(&mut q, 0, 1, &[(IN, BUFFER + 64, 6)]);
    assert_eq!(left[0] & (ACTIVE | STALLED), ACTIVE, "no movement: NAK, tried again in every frame");
}
