//! SMART (ATA8-ACS 7.53): a disk that is always well.

use super::{
    ata::{aborted, answer},
    channel::Channel,
};

/// What the commands change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smart {
    pub enabled: bool,
    pub autosave: bool,
    pub self_tests: u8,
    /// 21 entries of 24 bytes.
    pub log: Vec<u8>,
}

impl Default for Smart {
    fn default() -> Self {
        Self { enabled: true, autosave: true, self_tests: 0, log: vec![0; 21 * 24] }
    }
}

/// Id, flags, value, worst, six raw bytes, reserved, threshold.
const ATTRIBUTES: [[u8; 12]; 7] = [
    // raw read error rate
    [0x01, 0x03, 0x00, 0x64, 0x64, 0, 0, 0, 0, 0, 0, 0x06],
    // spin up
    [0x03, 0x03, 0x00, 0x64, 0x64, 0x10, 0, 0, 0, 0, 0, 0],
    // start-stop count
    [0x04, 0x02, 0x00, 0x64, 0x64, 0x64, 0, 0, 0, 0, 0, 0x14],
    // remapped sectors
    [0x05, 0x03, 0x00, 0x64, 0x64, 0, 0, 0, 0, 0, 0, 0x24],
    // power-on hours
    [0x09, 0x03, 0x00, 0x64, 0x64, 0x01, 0, 0, 0, 0, 0, 0],
    // power cycles
    [0x0c, 0x03, 0x00, 0x64, 0x64, 0, 0, 0, 0, 0, 0, 0],
    // airflow temperature
    [0xbe, 0x03, 0x00, 0x45, 0x45, 0x1f, 0x00, 0x1f, 0x1f, 0, 0, 0x32],
];

/// Sets the last byte so that all add up to 0.
fn with_checksum(mut sector: Vec<u8>) -> Vec<u8> {
    let sum = sector[..511].iter().fold(0_u8, |a, b| a.wrapping_add(*b));
    sector[511] = sum.wrapping_neg();
    sector
}

fn values(smart: &Smart) -> Vec<u8> {
    let mut s = vec![0; 512];
    s[0] = 1;
    for (i, a) in ATTRIBUTES.iter().enumerate() {
        s[2 + 12 * i..][..11].copy_from_slice(&a[..11]);
    }
    // Off-line collection was completed; 288 seconds for the next.
    s[362] = if smart.autosave { 0x82 } else { 0x02 };
    s[363] = if smart.self_tests == 0 { 0 } else { smart.log[usize::from(smart.self_tests - 1) * 24 + 1] };
    s[364..366].copy_from_slice(&[0x20, 0x01]);
    // Execute off-line immediate and self-tests; power modes save attributes; error log.
    s[367] = 1 << 4 | 1 << 3 | 1;
    s[368..371].copy_from_slice(&[0x03, 0x00, 0x01]);
    // Minutes of a short, extended and conveyance self-test.
    s[372..375].copy_from_slice(&[0x02, 0x36, 0x01]);
    with_checksum(s)
}

fn thresholds() -> Vec<u8> {
    let mut s = vec![0; 512];
    s[0] = 1;
    for (i, a) in ATTRIBUTES.iter().enumerate() {
        s[2 + 12 * i..][..2].copy_from_slice(&[a[0], a[11]]);
    }
    with_checksum(s)
}

fn self_test_log(smart: &Smart) -> Vec<u8> {
    let mut s = vec![0; 512];
    s[0] = 1;
    if smart.self_tests > 0 {
        s[2..2 + smart.log.len()].copy_from_slice(&smart.log);
        s[508] = smart.self_tests;
    }
    with_checksum(s)
}

pub(super) fn run(channel: &mut Channel, _: u8) -> bool {
    let drive = channel.active();
    let (feature, sector) = (drive.regs.feature, drive.regs.sector);
    let smart = &mut drive.smart;
    let keyed = (drive.regs.hcyl, drive.regs.lcyl) == (0xc2, 0x4f);
    if !keyed || !smart.enabled && feature != 0xd8 {
        return aborted(channel);
    }
    match (feature, sector) {
        // READ DATA, READ THRESHOLDS
        (0xd0, _) => {
            let data = values(smart);
            answer(channel, data)
        }
        (0xd1, _) => answer(channel, thresholds()),
        // ATTRIBUTE AUTOSAVE
        (0xd2, 0x00 | 0xf1) => {
            smart.autosave = sector != 0;
            true
        }
        // EXECUTE OFF-LINE IMMEDIATE: off-line collection, short and extended self-test
        (0xd4, 0..=2) => {
            smart.self_tests = if smart.self_tests >= 21 { 1 } else { smart.self_tests + 1 };
            let at = usize::from(smart.self_tests - 1) * 24;
            // Which test, completed without error, after so many hours.
            smart.log[at..at + 4].copy_from_slice(&[sector, 0x00, 0x34, 0x12]);
            true
        }
        // READ LOG: error log, self-test log
        (0xd5, 0x01) => {
            let mut log = vec![0; 512];
            log[0] = 1;
            answer(channel, with_checksum(log))
        }
        (0xd5, 0x06) => {
            let log = self_test_log(smart);
            answer(channel, log)
        }
        // ENABLE, DISABLE
        (0xd8 | 0xd9, _) => {
            smart.enabled = feature == 0xd8;
            true
        }
        // RETURN STATUS: below all thresholds
        (0xda, _) => true,
        _ => aborted(channel),
    }
}
