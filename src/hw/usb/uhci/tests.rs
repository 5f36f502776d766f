//! The controller driven as a driver does: frame list, queue and descriptors in memory, time by the frame.

use lockstep_vmstate::{Encoder, SaveState, check_roundtrip};

use super::*;
use crate::{
    core::{Axis, InputEvent, Key, MouseButton, PropertyInput, QomParent, create_device},
    testing::{Random, Rig},
    usb::hid::{USB_KBD, USB_MOUSE, USB_TABLET},
};

const PORT: u64 = 0xc100;
const LIST: u64 = 0x1_0000;
const QUEUE: u64 = 0x2_0000;
const DESCRIPTORS: u64 = 0x2_1000;
const BUFFERS: u64 = 0x3_0000;

const IN: u32 = 0x69;
const OUT: u32 = 0xe1;
const SETUP: u32 = 0x2d;
const ACTIVE: u32 = 1 << 23;

struct Host {
    rig: Rig,
    uhci: Arc<Uhci>,
    now: i64,
}

/// One transfer: packet id, device address, endpoint, data or how much is wanted.
struct Transfer(u32, u32, u32, Vec<u8>);

fn host(device: &'static DeviceType) -> Host {
    let rig = Rig::new();
    let place = PciPlace { bus: rig.bus.clone(), devfn: Some(0x18), multifunction: false };
    let uhci = Uhci::new(&rig.board, &place, 1280, 128).unwrap();
    rig.bus.plug(uhci.clone(), None);
    let root = rig.board.tree.root();
    crate::core::plug_device(
        &rig.board,
        &PIIX3_UHCI,
        None,
        "/machine/uhci".into(),
        &root,
        uhci.clone(),
        Default::default(),
        false,
    );
    create_device(&rig.board, device, Some("hid"), None, &[], QomParent::User).unwrap();
    rig.enable(uhci.function(), &[(4, 0xc101)]);
    let mut host = Host { rig, uhci, now: 0 };
    host.start();
    host
}

impl Host {
    fn start(&mut self) {
        self.idle_list();
        self.rig.outw(PORT + 8, LIST as u16);
        self.rig.outw(PORT + 10, (LIST >> 16) as u16);
        self.rig.outw(PORT + 0x10, 0x200);
        self.rig.outw(PORT + 0x10, 0);
        self.rig.outw(PORT + 0x10, 4);
        self.rig.outw(PORT + 4, 0x0f);
        self.rig.outw(PORT, 0x41);
    }

    fn idle_list(&self) {
        self.rig.write(LIST, &1_u32.to_le_bytes().repeat(1024));
    }

    fn run(&mut self, frames: i64) {
        self.now += frames * FRAME_NS;
        self.rig.board.clocks.advance_virtual_to(self.now);
    }

    fn word(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.rig.read(at))
    }

    /// Puts transfers in a queue, runs some frames, and gives each one's control word and what was read.
    fn transfer(&mut self, transfers: &[Transfer], flags: u32) -> Vec<(u32, Vec<u8>)> {
        for (i, Transfer(pid, address, endpoint, data)) in transfers.iter().enumerate() {
            let (at, buffer) = (DESCRIPTORS + 32 * i as u64, BUFFERS + 0x1000 * i as u64);
            let next = if i + 1 == transfers.len() { 1 } else { (at as u32 + 32) | 4 };
            let token = pid | address << 8 | endpoint << 15 | (data.len() as u32).wrapping_sub(1) << 21;
            self.rig.write(buffer, data);
            let words = [next, ACTIVE | 3 << 27 | 0x7ff | flags, token, buffer as u32];
            self.rig.write(at, &words.map(u32::to_le_bytes).concat());
        }
        self.rig.write(QUEUE, &[1, DESCRIPTORS as u32].map(u32::to_le_bytes).concat());
        self.rig.write(LIST, &(QUEUE as u32 | 2).to_le_bytes().repeat(1024));
        self.run(10);
        self.idle_list();
        let done = transfers.iter().enumerate().map(|(i, Transfer(pid, ..))| {
            let control = self.word(DESCRIPTORS + 32 * i as u64 + 4);
            let len = (control + 1 & 0x7ff) as usize;
            let mut data = vec![0; if *pid == IN && control & ACTIVE == 0 { len } else { 0 }];
            let _ = self.rig.board.memory_space.read(BUFFERS + 0x1000 * i as u64, &mut data);
            (control, data)
        });
        done.collect()
    }

    /// A control transfer: the data of the answer, or `None` when it was refused.
    fn control(&mut self, address: u32, setup: [u8; 8], data: &[u8]) -> Option<Vec<u8>> {
        let wanted = usize::from(setup[6]) | usize::from(setup[7]) << 8;
        let mut transfers = vec![Transfer(SETUP, address, 0, setup.to_vec())];
        if setup[0] & 0x80 != 0 {
            transfers.push(Transfer(IN, address, 0, vec![0; wanted]));
            transfers.push(Transfer(OUT, address, 0, vec![]));
        } else {
            if wanted > 0 {
                transfers.push(Transfer(OUT, address, 0, data.to_vec()));
            }
            transfers.push(Transfer(IN, address, 0, vec![]));
        }
        let done = self.transfer(&transfers, 0);
        done.iter().all(|(control, _)| control & (ACTIVE | 1 << 22) == 0).then(|| done[1].1.clone())
    }

    fn descriptor(&mut self, address: u32, kind: u8, index: u8) -> Option<Vec<u8>> {
        self.control(address, [0x80, 6, index, kind, 9, 4, 255, 0], &[])
    }

    /// Address 1, configured.
    fn configure(&mut self) {
        assert!(self.control(0, [0, 5, 1, 0, 0, 0, 0, 0], &[]).is_some());
        assert!(self.control(1, [0, 9, 1, 0, 0, 0, 0, 0], &[]).is_some());
    }

    fn report(&mut self) -> Option<Vec<u8>> {
        let (control, data) = self.transfer(&[Transfer(IN, 1, 1, vec![0; 8])], 0).remove(0);
        (control & ACTIVE == 0).then_some(data)
    }

    fn input(&self, events: &[InputEvent]) {
        events.iter().for_each(|e| _ = self.rig.board.input.send(e));
        self.rig.board.input.sync();
    }
}

fn hex(text: &str) -> Vec<u8> {
    crate::testing::unhex(text)
}

#[test]
fn registers_are_as_after_power_on() {
    let h = host(&USB_TABLET);
    h.rig.outw(PORT, 2);
    let words: Vec<_> = (0..16).map(|i| h.rig.inw(PORT + 2 * i)).collect();
    assert_eq!(words[..8], [0, 0x20, 0, 0, 0, 0, 0x40, 0xff7f]);
    assert_eq!(words[8..], [0x83, 0x80, 0xff7f, 0xff7f, 0xff7f, 0xff7f, 0xff7f, 0xff7f]);
    let config = h.uhci.function().config_bytes();
    assert_eq!((config[0x60], config[0x6a], config[0x3d]), (0x10, 1, 4));
}

#[test]
fn a_tablet_says_what_it_is() {
    let mut h = host(&USB_TABLET);
    let device = hex("120100020000000827060100000001030a01");
    assert_eq!(h.descriptor(0, 1, 0), Some(device));
    h.configure();
    let configuration = "09022200010107a032090400000103000000092101000001224a000705810308000a";
    assert_eq!(h.descriptor(1, 2, 0), Some(hex(configuration)));
    assert_eq!(h.descriptor(1, 3, 0), Some(hex("04030904")));
    assert_eq!(h.descriptor(1, 3, 3).unwrap()[2..8], hex("510045004d00"));
    assert_eq!(
        String::from_utf8_lossy(&h.descriptor(1, 3, 10).unwrap()).replace('\0', "")[2..],
        *"28754-0000:00:03.0-1"
    );
    assert_eq!(h.descriptor(1, 3, 12), None);
    assert_eq!(h.descriptor(1, 3, 0xee), Some(hex("12034d005300460054003100300030005100")));
    assert_eq!(h.descriptor(1, 6, 0), Some(hex("0a060002000000400100")));
    assert_eq!(h.descriptor(1, 15, 0), Some(hex("050f0c000107100202000000")));
    let report = h.control(1, [0x81, 6, 0, 0x22, 0, 0, 255, 0], &[]).unwrap();
    assert_eq!((report.len(), &report[16..24]), (74, &hex("1500250195037501")[..]));
    assert_eq!(h.control(1, [0xc0, 0x51, 0, 0, 4, 0, 255, 0], &[]).unwrap().len(), 40);
    assert_eq!(h.control(1, [0xc1, 0x51, 0, 0, 5, 0, 255, 0], &[]).unwrap()[14..18], hex("04000000"));
    assert_eq!(h.control(1, [0x81, 6, 0, 0x21, 0, 0, 255, 0], &[]), None);
}

#[test]
fn the_other_devices_say_what_they_are() {
    let mut mouse = host(&USB_MOUSE);
    assert_eq!(
        mouse.descriptor(0, 2, 0),
        Some(hex("09022200010106a0320904000001030102000921010000012234000705810304000a"))
    );
    let report =
        "05010902a1010901a1000509190129051500250195057501810295017503810105010930093109381581257f750895038106c0c0";
    assert_eq!(mouse.control(0, [0x81, 6, 0, 0x22, 0, 0, 255, 0], &[]), Some(hex(report)));
    let mut keyboard = host(&USB_KBD);
    assert_eq!(
        keyboard.descriptor(0, 2, 0),
        Some(hex("09022200010108a032090400000103010100092111010001223f000705810308000a"))
    );
    let report = "05010906a10175019508050719e029e7150025018102950175088101950575010508190129059102950175039101950675081500\
                  25ff0507190029ff8100c0";
    assert_eq!(keyboard.control(0, [0x81, 6, 0, 0x22, 0, 0, 255, 0], &[]), Some(hex(report)));
}

#[test]
fn standard_and_class_requests() {
    let mut h = host(&USB_MOUSE);
    h.configure();
    let mut get = |setup: [u8; 8]| h.control(1, setup, &[]);
    assert_eq!(get([0x80, 8, 0, 0, 0, 0, 1, 0]), Some(vec![1]));
    assert_eq!(get([0x80, 0, 0, 0, 0, 0, 2, 0]), Some(vec![0, 0]));
    assert!(get([0x00, 3, 1, 0, 0, 0, 0, 0]).is_some());
    assert_eq!(get([0x80, 0, 0, 0, 0, 0, 2, 0]), Some(vec![2, 0]));
    assert_eq!(get([0x81, 10, 0, 0, 0, 0, 1, 0]), Some(vec![0]));
    assert!(get([0x21, 10, 0, 7, 0, 0, 0, 0]).is_some());
    assert_eq!(get([0xa1, 2, 0, 0, 0, 0, 1, 0]), Some(vec![7]));
    assert_eq!(get([0xa1, 3, 0, 0, 0, 0, 1, 0]), Some(vec![1]));
    assert!(get([0x21, 11, 0, 0, 0, 0, 0, 0]).is_some());
    assert_eq!(get([0xa1, 3, 0, 0, 0, 0, 1, 0]), Some(vec![0]));
    assert_eq!(get([0x82, 0, 0, 0, 0x81, 0, 2, 0]), None);
    assert_eq!(h.control(1, [0x21, 9, 0, 2, 0, 0, 1, 0], &[2]), None);
}

#[test]
fn a_tablet_reports_positions_buttons_and_the_wheel() {
    let mut h = host(&USB_TABLET);
    h.configure();
    assert_eq!(h.report(), None);
    assert!(h.rig.board.input.pointer_is_absolute(), "it gets events once the host asks for them");
    h.input(&[InputEvent::Absolute(Axis::X, 0x1234), InputEvent::Absolute(Axis::Y, 0x7fff)]);
    assert_eq!(h.report(), Some(vec![0, 0x34, 0x12, 0xff, 0x7f, 0]));
    h.input(&[InputEvent::Button(MouseButton::Left, true)]);
    h.input(&[InputEvent::Button(MouseButton::WheelUp, true)]);
    assert_eq!(h.report(), Some(vec![1, 0x34, 0x12, 0xff, 0x7f, 1]));
    assert_eq!(h.report(), None);
}

#[test]
fn a_mouse_reports_long_ways_in_steps() {
    let mut h = host(&USB_MOUSE);
    h.configure();
    assert_eq!(h.report(), None);
    h.input(&[InputEvent::Relative(Axis::X, 100), InputEvent::Relative(Axis::Y, 200)]);
    assert_eq!(h.report(), Some(vec![0, 100, 127, 0]));
    assert_eq!(h.report(), Some(vec![0, 0, 73, 0]));
    assert_eq!(h.report(), None);
}

#[test]
fn a_keyboard_reports_keys_and_takes_lamps() {
    let mut h = host(&USB_KBD);
    h.configure();
    const KEY_A: Key = Key(30);
    const RIGHT_CTRL: Key = Key(97);
    h.input(&[InputEvent::Key(RIGHT_CTRL, true), InputEvent::Key(KEY_A, true), InputEvent::Key(KEY_A, false)]);
    let reports: Vec<_> = std::iter::from_fn(|| h.report()).collect();
    assert_eq!(reports[1], [0x10, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(reports[2], [0x10, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(reports[3], [0x10, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(reports.len(), 4);
    assert!(h.control(1, [0x21, 9, 0, 2, 0, 0, 1, 0], &[5]).is_some());
}

#[test]
fn an_idle_rate_repeats_reports() {
    let mut h = host(&USB_TABLET);
    h.configure();
    assert!(h.control(1, [0x21, 10, 0, 5, 0, 0, 0, 0], &[]).is_some());
    h.run(5);
    assert!(h.report().is_some(), "after 20 ms");
}

#[test]
fn errors_and_interrupts_show_in_the_registers() {
    let mut h = host(&USB_TABLET);
    h.configure();
    let pending = |h: &Host| h.uhci.config_read(6, 1) & 8 != 0;
    h.rig.outw(PORT + 2, 0x3f);
    assert!(!pending(&h));
    // Nobody at the address; no such endpoint.
    let (control, _) = h.transfer(&[Transfer(IN, 5, 1, vec![0; 8])], 0).remove(0);
    assert_eq!(control, 0x0004_07ff);
    assert_eq!((h.rig.inw(PORT + 2), pending(&h)), (2, true));
    h.rig.outw(PORT + 2, 2);
    let (control, _) = h.transfer(&[Transfer(IN, 1, 2, vec![0; 8])], 0).remove(0);
    assert_eq!(control, 0x1840_07ff);
    // On completion, and on a short packet.
    h.rig.outw(PORT + 2, 0x3f);
    h.input(&[InputEvent::Button(MouseButton::Left, true)]);
    h.report();
    h.input(&[InputEvent::Button(MouseButton::Left, false)]);
    h.transfer(&[Transfer(IN, 1, 1, vec![0; 8])], 1 << 29);
    assert_eq!((h.rig.inw(PORT + 2), pending(&h)), (1, true));
    h.rig.outw(PORT + 2, 1);
    assert!(!pending(&h));
    // A packet id that does not exist halts.
    h.transfer(&[Transfer(0x55, 1, 1, vec![0; 8])], 0);
    assert_eq!((h.rig.inw(PORT + 2), h.rig.inw(PORT), pending(&h)), (0x30, 0x40, true));
}

#[test]
fn frames_are_counted_only_while_it_runs() {
    let mut h = host(&USB_TABLET);
    h.run(50);
    assert_eq!(h.rig.inw(PORT + 6), 50);
    h.rig.outw(PORT, 0);
    h.run(50);
    assert_eq!((h.rig.inw(PORT + 6), h.rig.inw(PORT + 2)), (50, 0x20));
    assert_eq!(h.rig.board.clocks.next_virtual_deadline(), None, "nothing wakes while it stands");
}

#[test]
fn a_schedule_in_circles_ends() {
    let mut h = host(&USB_TABLET);
    h.rig.write(LIST, &(QUEUE as u32 | 2).to_le_bytes().repeat(1024));
    for words in [[QUEUE as u32 | 2, 1], [QUEUE as u32 | 2, QUEUE as u32 | 2], [1, QUEUE as u32]] {
        h.rig.write(QUEUE, &words.map(u32::to_le_bytes).concat());
        h.run(20);
    }
}

#[test]
fn a_device_can_be_taken_out_and_put_back() {
    let mut h = host(&USB_TABLET);
    h.configure();
    h.rig.outw(PORT + 0x10, 0x0e);
    h.rig.board.tree.find("hid").unwrap().unplug(&h.rig.board).unwrap();
    assert_eq!(h.rig.inw(PORT + 0x10), 0x8a);
    create_device(&h.rig.board, &USB_TABLET, Some("hid"), None, &[], QomParent::User).unwrap();
    assert_eq!(h.rig.inw(PORT + 0x10) & 3, 3);
    for n in 2.. {
        let port = [("port".to_owned(), PropertyInput::from(if n == 2 { "2" } else { "" }))];
        match create_device(&h.rig.board, &USB_MOUSE, None, None, &port, QomParent::User) {
            Ok(_) => assert_eq!(n, 2),
            Err(e) => {
                assert_eq!((n, e.message().ends_with("to a bus with no free ports")), (3, true));
                break;
            }
        }
    }
}

#[test]
fn state_survives_a_migration() {
    let mut h = host(&USB_TABLET);
    h.configure();
    h.report();
    h.input(&[InputEvent::Absolute(Axis::X, 5), InputEvent::Button(MouseButton::Left, true)]);
    h.input(&[InputEvent::Button(MouseButton::Left, false)]);
    let fresh = host(&USB_TABLET);
    fresh.rig.board.clocks.set_virtual_ns(h.now);
    check_roundtrip(&h.uhci, &fresh.uhci).unwrap();
    let mut out = Encoder::new();
    h.uhci.save(&mut out).unwrap();
    assert_eq!(out.len(), 315);
    let states = |h: &Host| h.rig.board.states.entries();
    let entry = states(&h).into_iter().find(|e| &*e.name == "0000:00:03.0/1/usb-ptr").unwrap();
    let mut out = Encoder::new();
    h.rig.board.states.save(&entry, &mut out).unwrap();
    assert_eq!(out.len(), 298);
    let mut input = lockstep_vmstate::Decoder::new(out.bytes());
    fresh.rig.board.states.prepare(&entry.name, 0, 1, &mut input).unwrap().commit();
    let mut fresh = Host { now: h.now, ..fresh };
    assert_eq!(fresh.report(), Some(vec![1, 5, 0, 0, 0, 0]));
    assert_eq!(fresh.report(), Some(vec![0, 5, 0, 0, 0, 0]));
    let mut wire = h.uhci.snapshot();
    wire.num_ports_vmstate = 3;
    assert!(h.uhci.validate(&wire).is_err());
}

#[test]
fn random_schedules_and_registers_are_survived() {
    let mut h = host(&USB_KBD);
    let mut random = Random(17);
    for round in 0..3_000 {
        let memory: Vec<_> = (0..512)
            .flat_map(|_| {
                let pid = [IN, OUT, SETUP, 0][random.below(4) as usize];
                let link = QUEUE as u32 + (random.below(128) as u32) * 16 + random.below(8) as u32;
                let word = [link, random.next() as u32 | ACTIVE, pid | (random.next() as u32 & 0xffe0_8100), link];
                word[random.below(4) as usize].to_le_bytes()
            })
            .collect();
        h.rig.write(QUEUE, &memory);
        h.rig.write(LIST, &(QUEUE as u32 | round % 4).to_le_bytes().repeat(1024));
        h.rig.outw(PORT + 2 * random.below(16), random.next() as u16 & 0xf3ff);
        h.rig.outw(PORT + 8, LIST as u16);
        h.rig.outw(PORT + 10, 1);
        h.rig.outw(PORT + 0x10, 4);
        h.rig.outw(PORT, 1);
        h.run(2);
        h.input(&[InputEvent::Key(Key(random.below(200) as u16), random.below(2) == 0)]);
    }
    let wire = h.uhci.snapshot();
    h.uhci.validate(&wire).unwrap();
}
