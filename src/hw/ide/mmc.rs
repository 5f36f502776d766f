//! The packet commands of a CD-ROM drive, as a table (MMC-6).

use super::{
    atapi::{SectorForm, asc, sense},
    channel::Channel,
    drive::Drive,
};

/// Whether a command answers with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    Never,
    Always,
    /// It depends on the packet.
    Perhaps,
}

/// A packet command.
pub struct Command {
    pub code: u8,
    /// It runs while an attention condition waits.
    pub during_attention: bool,
    pub needs_medium: bool,
    pub has_data: Data,
    pub run: fn(&mut Channel, &[u8; 12]),
}

const fn command(code: u8, needs_medium: bool, has_data: Data, run: fn(&mut Channel, &[u8; 12])) -> Command {
    Command { code, during_attention: false, needs_medium, has_data, run }
}

const fn anytime(code: u8, run: fn(&mut Channel, &[u8; 12])) -> Command {
    Command { code, during_attention: true, needs_medium: false, has_data: Data::Always, run }
}

pub const COMMANDS: &[Command] = &[
    command(0x00, true, Data::Never, done),
    anytime(0x03, request_sense),
    anytime(0x12, inquiry),
    command(0x1b, false, Data::Never, start_stop_unit),
    command(0x1e, false, Data::Never, prevent_removal),
    command(0x25, true, Data::Always, read_capacity),
    command(0x28, true, Data::Always, read_10),
    command(0x2b, true, Data::Never, seek),
    command(0x43, true, Data::Always, read_toc),
    anytime(0x46, get_configuration),
    anytime(0x4a, get_event_status),
    command(0x51, true, Data::Always, read_disc_information),
    command(0x5a, false, Data::Always, mode_sense),
    command(0xa8, true, Data::Always, read_12),
    command(0xad, true, Data::Always, read_dvd_structure),
    command(0xbb, false, Data::Never, done),
    command(0xbd, false, Data::Always, mechanism_status),
    command(0xbe, true, Data::Perhaps, read_cd),
];

fn be16(packet: &[u8; 12], at: usize) -> usize {
    u16::from_be_bytes([packet[at], packet[at + 1]]).into()
}

fn be32(packet: &[u8; 12], at: usize) -> u32 {
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

fn invalid_field(channel: &mut Channel) {
    channel.packet_error(sense::ILLEGAL_REQUEST, asc::INVALID_FIELD);
}

fn done(channel: &mut Channel, _: &[u8; 12]) {
    channel.packet_done();
}

fn request_sense(channel: &mut Channel, packet: &[u8; 12]) {
    let state = &mut channel.active().packet;
    let mut answer = vec![0; 18];
    answer[0] = 0x70 | 0x80;
    answer[2] = state.sense_key;
    answer[7] = 10;
    answer[12] = state.asc;
    if state.sense_key == sense::UNIT_ATTENTION {
        state.sense_key = sense::NONE;
    }
    channel.packet_answer(answer, packet[4].into());
}

/// Text in a field of fixed width, padded with spaces.
fn text(field: &mut [u8], text: &str) {
    field.fill(b' ');
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text.as_bytes()[..n]);
}

const CD_DEVICE: u8 = 0x05;

fn inquiry(channel: &mut Channel, packet: &[u8; 12]) {
    let Some(config) = &channel.active().config else { return channel.packet_done() };
    let vital_product_data = packet[1] & 1 != 0;
    let answer = match (vital_product_data, packet[2]) {
        (false, _) => {
            let mut a = vec![0; 36];
            // Removable; SPC version 0, ATAPI response format; what follows.
            a[..5].copy_from_slice(&[CD_DEVICE, 0x80, 0x00, 0x21, 31]);
            text(&mut a[8..16], "QEMU");
            text(&mut a[16..32], "QEMU DVD-ROM");
            text(&mut a[32..36], &config.version);
            a
        }
        // The pages that there are.
        (true, 0x00) => vec![CD_DEVICE, 0x00, 0x00, 0x02, 0x00, 0x83],
        // Identification: the serial number in ASCII, and the world wide name.
        (true, 0x83) => {
            let mut a = vec![CD_DEVICE, 0x83, 0x00, 0x00, 0x02, 0x00, 0x00, 20];
            a.resize(28, 0);
            text(&mut a[8..28], &config.serial);
            if config.wwn != 0 {
                a.extend([0x01, 0x03, 0x00, 8]);
                a.extend(config.wwn.to_be_bytes());
            }
            a[3] = (a.len() - 4) as u8;
            a
        }
        _ => return invalid_field(channel),
    };
    channel.packet_answer(answer, be16(packet, 3));
}

fn start_stop_unit(channel: &mut Channel, packet: &[u8; 12]) {
    let load_eject = packet[4] & 2 != 0;
    let start = packet[4] & 1 != 0;
    let power_condition = packet[4] >> 4;
    if load_eject && power_condition == 0 {
        let drive = channel.active();
        if !start && !drive.packet.tray_open && drive.packet.tray_locked {
            let key = if drive.sectors() > 0 { sense::NOT_READY } else { sense::ILLEGAL_REQUEST };
            return channel.packet_error(key, asc::REMOVAL_PREVENTED);
        }
        if drive.packet.tray_open == start {
            drive.packet.tray_open = !start;
            channel.tray_moved(!start);
        }
    }
    channel.packet_done();
}

fn prevent_removal(channel: &mut Channel, packet: &[u8; 12]) {
    channel.active().packet.tray_locked = packet[4] & 1 != 0;
    channel.packet_done();
}

fn read_capacity(channel: &mut Channel, _: &[u8; 12]) {
    let last = channel.active().cd_sectors().saturating_sub(1);
    let mut answer = last.to_be_bytes().to_vec();
    answer.extend(2048_u32.to_be_bytes());
    channel.packet_answer(answer, 8);
}

fn read_10(channel: &mut Channel, packet: &[u8; 12]) {
    read_sectors(channel, be32(packet, 2), be16(packet, 7) as u32, SectorForm::Data);
}

fn read_12(channel: &mut Channel, packet: &[u8; 12]) {
    read_sectors(channel, be32(packet, 2), be32(packet, 6), SectorForm::Data);
}

fn read_sectors(channel: &mut Channel, lba: u32, count: u32, form: SectorForm) {
    let all = channel.active().cd_sectors();
    if count == 0 {
        channel.packet_done();
    } else if lba >= all || count > all - lba {
        channel.packet_error(sense::ILLEGAL_REQUEST, asc::LBA_OUT_OF_RANGE);
    } else {
        channel.packet_sectors(lba, count, form);
    }
}

fn read_cd(channel: &mut Channel, packet: &[u8; 12]) {
    let count = u32::from(packet[6]) << 16 | be16(packet, 7) as u32;
    let form = match packet[9] & 0xf8 {
        0x00 => return channel.packet_done(),
        0x10 => SectorForm::Data,
        0xf8 => SectorForm::Raw,
        _ => return invalid_field(channel),
    };
    if count == 0 {
        return channel.packet_done();
    }
    if channel.accepts_data() {
        read_sectors(channel, be32(packet, 2), count, form);
    }
}

fn seek(channel: &mut Channel, packet: &[u8; 12]) {
    if be32(packet, 2) >= channel.active().cd_sectors() {
        channel.packet_error(sense::ILLEGAL_REQUEST, asc::LBA_OUT_OF_RANGE);
    } else {
        channel.packet_done();
    }
}

/// Minute, second, frame of a sector: 75 frames a second, after a lead-in of two seconds.
fn msf(lba: u32) -> [u8; 3] {
    let frames = lba.saturating_add(150);
    [(frames / 75 / 60) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

/// The whole sector as it is on a disc, mode 1; error correction is left zero.
pub fn raw_sector(lba: u32, data: &[u8]) -> Vec<u8> {
    let mut sector = vec![0; 2352];
    sector[1..11].fill(0xff);
    sector[12..15].copy_from_slice(&msf(lba));
    sector[15] = 1;
    sector[16..16 + data.len()].copy_from_slice(data);
    sector
}

/// A table of contents' address: a sector number, or minute, second, frame.
fn toc_address(lba: u32, as_msf: bool) -> [u8; 4] {
    match as_msf {
        false => lba.to_be_bytes(),
        true => {
            let [m, s, f] = msf(lba);
            [0, m, s, f]
        }
    }
}

/// Data track, copying allowed / not; both are recorded uninterrupted.
const TRACK: u8 = 0x14;
const LEAD_OUT_CONTROL: u8 = 0x16;
const LEAD_OUT: u8 = 0xaa;

fn read_toc(channel: &mut Channel, packet: &[u8; 12]) {
    let as_msf = packet[1] & 2 != 0;
    let all = channel.active().cd_sectors();
    let first_track = packet[6];
    let answer = match packet[9] >> 6 {
        // Tracks
        0 => {
            if first_track > 1 && first_track != LEAD_OUT {
                return invalid_field(channel);
            }
            let mut a = vec![0, 0, 1, 1];
            if first_track <= 1 {
                a.extend([0, TRACK, 1, 0]);
                a.extend(toc_address(0, as_msf));
            }
            a.extend([0, LEAD_OUT_CONTROL, LEAD_OUT, 0]);
            a.extend(toc_address(all, as_msf));
            with_length(a)
        }
        // Sessions
        1 => vec![0, 10, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        // Raw
        2 => {
            let mut a = vec![0, 0, 1, 1];
            for (point, value) in [(0xa0, [0, 1, 0, 0]), (0xa1, [0, 1, 0, 0])] {
                a.extend([1, TRACK, 0, point, 0, 0, 0]);
                a.extend(value);
            }
            a.extend([1, TRACK, 0, 0xa2, 0, 0, 0]);
            a.extend(toc_address(all, as_msf));
            a.extend([1, TRACK, 0, 1, 0, 0, 0]);
            a.extend(toc_address(0, as_msf));
            with_length(a)
        }
        _ => return invalid_field(channel),
    };
    channel.packet_answer(answer, be16(packet, 7));
}

/// Sets the first two bytes to the number of bytes after them.
fn with_length(mut answer: Vec<u8>) -> Vec<u8> {
    let n = (answer.len() - 2) as u16;
    answer[..2].copy_from_slice(&n.to_be_bytes());
    answer
}

const PROFILE_NONE: u16 = 0x0000;
const PROFILE_CD_ROM: u16 = 0x0008;
const PROFILE_DVD_ROM: u16 = 0x0010;

/// More than fits on a CD of 80 minutes is taken for a DVD.
fn profile(drive: &Drive) -> u16 {
    const CD_LIMIT: u64 = 80 * 60 * 75 * 4;
    match drive.sectors() {
        _ if !drive.has_medium() => PROFILE_NONE,
        n if n > CD_LIMIT => PROFILE_DVD_ROM,
        _ => PROFILE_CD_ROM,
    }
}

fn get_configuration(channel: &mut Channel, packet: &[u8; 12]) {
    // Only "all features from 0 on" is known.
    if packet[1] & 3 == 2 || packet[1] & 3 == 3 || packet[2] != 0 || packet[3] != 0 {
        return invalid_field(channel);
    }
    let current = profile(channel.active());
    let mut a = vec![0; 8];
    a[3] = 16;
    a[6..8].copy_from_slice(&current.to_be_bytes());
    // Feature 0, the profiles: persistent and current
    a.extend([0, 0, 0x03, 8]);
    for p in [PROFILE_DVD_ROM, PROFILE_CD_ROM] {
        a.extend(p.to_be_bytes());
        a.extend([u8::from(p == current), 0]);
    }
    channel.packet_answer(a, be16(packet, 7));
}

fn get_event_status(channel: &mut Channel, packet: &[u8; 12]) {
    const MEDIA_CLASS: u8 = 1 << 4;
    let polled = packet[1] & 1 != 0;
    if !polled {
        return invalid_field(channel);
    }
    let drive = channel.active();
    let present = drive.sectors() > 0;
    let state = &mut drive.packet;
    let answer = if packet[4] & MEDIA_CLASS == 0 {
        vec![0, 0, 0x80, MEDIA_CLASS]
    } else {
        let event = if std::mem::take(&mut state.new_media) {
            2
        } else if std::mem::take(&mut state.eject_request) {
            1
        } else {
            0
        };
        let media = if state.tray_open {
            1
        } else if present {
            2
        } else {
            0
        };
        vec![0, 4, 4, MEDIA_CLASS, event, media, 0, 0]
    };
    channel.packet_answer(answer, be16(packet, 7));
}

fn read_disc_information(channel: &mut Channel, packet: &[u8; 12]) {
    if packet[1] & 7 != 0 {
        return invalid_field(channel);
    }
    let mut a = vec![0; 34];
    // Complete disc, one session with one track, unrestricted use.
    a[1..8].copy_from_slice(&[32, 0x0e, 1, 1, 1, 1, 0x20]);
    channel.packet_answer(a, be16(packet, 7));
}

fn mode_sense(channel: &mut Channel, packet: &[u8; 12]) {
    const SAVED: u8 = 3;
    match packet[2] >> 6 {
        0 => {}
        SAVED => return channel.packet_error(sense::ILLEGAL_REQUEST, asc::SAVING_NOT_SUPPORTED),
        _ => return invalid_field(channel),
    }
    let locked = u8::from(channel.active().packet.tray_locked);
    let page: &[u8] = match packet[2] & 0x3f {
        // Read error recovery
        0x01 => &[0x01, 6, 0x00, 0x05, 0, 0, 0, 0],
        // Audio control
        0x0e => &[0x0e, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // Capabilities: reads DVD-ROM and CD-R(W), locks, ejects, 706 kB/s, 512 kB buffer
        0x2a => &[
            0x2a,
            20,
            0x3b,
            0x00,
            0x71,
            0x60,
            0x29 | locked << 1,
            0x00,
            0x02,
            0xc0,
            0x00,
            0x02,
            0x02,
            0x00,
            0x02,
            0xc0,
            0,
            0,
            0,
            0,
            0,
            0,
        ],
        _ => return invalid_field(channel),
    };
    let mut a = vec![0, 0, 0x70, 0, 0, 0, 0, 0];
    a.extend(page);
    channel.packet_answer(with_length(a), be16(packet, 7));
}

fn mechanism_status(channel: &mut Channel, packet: &[u8; 12]) {
    channel.packet_answer(vec![0, 0, 0, 0, 0, 1, 0, 0], be16(packet, 8));
}

fn read_dvd_structure(channel: &mut Channel, packet: &[u8; 12]) {
    let media = packet[1];
    let format = packet[7];
    let layer = packet[6];
    let limit = be16(packet, 8);
    if media != 0 {
        return invalid_field(channel);
    }
    const CAPABILITIES: u8 = 0xff;
    let drive = channel.active();
    if format < CAPABILITIES && profile(drive) != PROFILE_DVD_ROM {
        let code = if drive.has_medium() { asc::INCOMPATIBLE_FORMAT } else { asc::INVALID_FIELD };
        return channel.packet_error(sense::ILLEGAL_REQUEST, code);
    }
    let last = drive.cd_sectors().saturating_sub(1);
    let (len, mut a) = match format {
        // Physical format of layer 0
        0x00 => {
            if layer != 0 {
                return invalid_field(channel);
            }
            let mut a = vec![0; 2052];
            // DVD-ROM part 1, 120 mm, minimum rate not specified; one layer, parallel track path; default densities.
            a[4..8].copy_from_slice(&[0x01, 0x0f, 0x01, 0x00]);
            a[12..16].copy_from_slice(&last.to_be_bytes());
            a[16..20].copy_from_slice(&last.to_be_bytes());
            (2050_u16, a)
        }
        // Copyright: no protection, no region management
        0x01 => (6, vec![0; 8]),
        // Manufacturing information
        0x04 => (2050, vec![0; 2052]),
        CAPABILITIES => {
            let mut a = vec![0; 4];
            for (format, size) in [(0x00, 2052_u16), (0x01, 8), (0x03, 192), (0x04, 2052)] {
                a.extend([format, 0x40]);
                a.extend(size.to_be_bytes());
            }
            (18, a)
        }
        _ => return invalid_field(channel),
    };
    a[..2].copy_from_slice(&len.to_be_bytes());
    channel.packet_answer(a, limit);
}
