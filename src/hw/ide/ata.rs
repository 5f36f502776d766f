//! Commands of disks (ATA8-ACS clause 7), as a table.

use super::{
    channel::{Channel, DmaCommand},
    drive::{Drive, Then},
    regs::{MAX_MULTIPLE, SECTOR, status},
};

/// What a command does. Returns whether it is over.
type Handler = fn(&mut Channel, u8) -> bool;

const DISK: u8 = 1;
const CD: u8 = 2;
const ALL: u8 = DISK | CD;

struct Command {
    codes: &'static [u8],
    kinds: u8,
    /// "Seek complete" is shown when it ends well.
    seek: bool,
    run: Handler,
}

const fn command(codes: &'static [u8], kinds: u8, seek: bool, run: Handler) -> Command {
    Command { codes, kinds, seek, run }
}

const COMMANDS: &[Command] = &[
    // DATA SET MANAGEMENT, DEVICE RESET
    command(&[0x06], DISK, false, data_set_management),
    command(&[0x08], CD, false, device_reset),
    // RECALIBRATE, SEEK, and the retired CFA WEAR LEVEL
    command(&[0x10, 0x70], DISK, true, nothing),
    command(&[0xf5], DISK, true, clear_count),
    // READ SECTORS (EXT), READ DMA (EXT), READ MULTIPLE (EXT)
    command(&[0x20], ALL, false, read_pio),
    command(&[0x21, 0x24], DISK, false, read_pio),
    command(&[0x25, 0xc8, 0xc9], DISK, false, read_dma),
    command(&[0x29, 0xc4], DISK, false, read_multiple),
    // READ NATIVE MAX ADDRESS (EXT)
    command(&[0x27, 0xf8], DISK, true, read_native_max),
    // WRITE SECTORS (EXT), WRITE VERIFY, WRITE DMA (EXT), WRITE MULTIPLE (EXT)
    command(&[0x30, 0x31, 0x34, 0x3c], DISK, false, write_pio),
    command(&[0x35, 0xca, 0xcb], DISK, false, write_dma),
    command(&[0x39, 0xc5], DISK, false, write_multiple),
    // READ VERIFY SECTORS (EXT)
    command(&[0x40, 0x41, 0x42], DISK, true, verify),
    // EXECUTE DEVICE DIAGNOSTIC, INITIALIZE DEVICE PARAMETERS
    command(&[0x90], ALL, false, diagnostic),
    command(&[0x91], DISK, true, initialize_parameters),
    // STANDBY IMMEDIATE, IDLE IMMEDIATE, STANDBY, IDLE, SLEEP, each with its older code
    command(&[0x94, 0x95, 0x96, 0x97, 0x99, 0xe0, 0xe1, 0xe2, 0xe3, 0xe6], DISK, false, nothing),
    // CHECK POWER MODE
    command(&[0x98, 0xe5], DISK, true, check_power_mode),
    // PACKET, IDENTIFY PACKET DEVICE
    command(&[0xa0], CD, false, packet),
    command(&[0xa1], CD, false, identify_packet),
    // SMART
    command(&[0xb0], DISK, true, super::smart::run),
    // SET MULTIPLE MODE
    command(&[0xc6], DISK, true, set_multiple),
    // FLUSH CACHE (EXT)
    command(&[0xe7], ALL, false, flush),
    command(&[0xea], DISK, false, flush),
    // IDENTIFY DEVICE, SET FEATURES
    command(&[0xec], ALL, false, identify),
    command(&[0xef], ALL, true, set_features),
];

/// The table by code: an index into [`COMMANDS`] plus one.
const BY_CODE: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < COMMANDS.len() {
        let mut j = 0;
        while j < COMMANDS[i].codes.len() {
            table[COMMANDS[i].codes[j] as usize] = i as u8 + 1;
            j += 1;
        }
        i += 1;
    }
    table
};

const DEVICE_RESET: u8 = 0x08;

impl Channel {
    /// The command register was written.
    pub(super) fn execute(&mut self, code: u8) {
        let unit = self.unit;
        let drive = self.active();
        if unit == 1 && !drive.is_present() {
            return;
        }
        let kind = if drive.is_disk() { DISK } else { CD };
        if drive.regs.status & (status::BUSY | status::DRQ) != 0 && (code != DEVICE_RESET || kind != CD) {
            return;
        }
        let found = BY_CODE[usize::from(code)].checked_sub(1).map(|i| &COMMANDS[usize::from(i)]);
        let Some(command) = found.filter(|c| c.kinds & kind != 0) else {
            drive.abort();
            return self.raise();
        };
        drive.regs.status = status::READY | status::BUSY;
        drive.regs.error = 0;
        if (command.run)(self, code) {
            let regs = &mut self.active().regs;
            regs.status &= !status::BUSY;
            if command.seek && regs.error == 0 {
                regs.status |= status::SEEK;
            }
            self.raise();
        }
    }
}

pub(super) fn aborted(channel: &mut Channel) -> bool {
    channel.active().abort();
    true
}

/// Offers a sector of answer at the data port.
pub(super) fn answer(channel: &mut Channel, sector: Vec<u8>) -> bool {
    let drive = channel.active();
    drive.regs.status = status::READY | status::SEEK;
    drive.start_transfer(sector, Then::Stop);
    channel.raise();
    false
}

/// The disk, if there is one, with its sector count completed.
fn disk(channel: &mut Channel, lba48: bool) -> Option<&mut Drive> {
    let drive = channel.active();
    if !drive.is_present() || !drive.is_disk() {
        return None;
    }
    drive.take_count(lba48);
    Some(drive)
}

fn nothing(_: &mut Channel, _: u8) -> bool {
    true
}

fn clear_count(channel: &mut Channel, _: u8) -> bool {
    channel.active().regs.nsector = 0;
    true
}

fn device_reset(channel: &mut Channel, _: u8) -> bool {
    channel.reset_device();
    false
}

fn read_pio(channel: &mut Channel, code: u8) -> bool {
    if !channel.active().is_disk() {
        // A packet device shows what it is, and refuses (ATA8-ACS 7.1.3).
        channel.active().set_signature();
        return aborted(channel);
    }
    let Some(drive) = disk(channel, code == 0x24) else { return aborted(channel) };
    drive.block = 1;
    channel.read_sectors();
    false
}

fn read_multiple(channel: &mut Channel, code: u8) -> bool {
    let multiple = channel.active().multiple;
    let Some(drive) = disk(channel, code == 0x29).filter(|_| multiple > 0) else { return aborted(channel) };
    drive.block = multiple.into();
    channel.read_sectors();
    false
}

fn start_write(channel: &mut Channel, lba48: bool, block: u8) -> bool {
    let Some(drive) = disk(channel, lba48).filter(|_| block > 0) else { return aborted(channel) };
    drive.block = block.into();
    drive.regs.status = status::READY | status::SEEK;
    let len = drive.regs.nsector.min(drive.block) as usize * SECTOR as usize;
    drive.start_transfer(vec![0; len], Then::WriteSectors);
    false
}

fn write_pio(channel: &mut Channel, code: u8) -> bool {
    start_write(channel, code == 0x34, 1)
}

fn write_multiple(channel: &mut Channel, code: u8) -> bool {
    let multiple = channel.active().multiple;
    start_write(channel, code == 0x39, multiple)
}

fn start_dma(channel: &mut Channel, lba48: bool, command: DmaCommand) -> bool {
    let Some(drive) = disk(channel, lba48) else { return aborted(channel) };
    drive.regs.status = status::READY | status::SEEK | status::DRQ;
    drive.stop_transfer();
    channel.start_dma(command);
    false
}

fn read_dma(channel: &mut Channel, code: u8) -> bool {
    start_dma(channel, code == 0x25, DmaCommand::Read)
}

fn write_dma(channel: &mut Channel, code: u8) -> bool {
    start_dma(channel, code == 0x35, DmaCommand::Write)
}

fn data_set_management(channel: &mut Channel, _: u8) -> bool {
    const TRIM: u8 = 1;
    let drive = channel.active();
    if drive.regs.feature != TRIM || !drive.is_present() {
        return aborted(channel);
    }
    drive.regs.status = status::READY | status::SEEK | status::DRQ;
    drive.stop_transfer();
    channel.start_dma(DmaCommand::Trim);
    false
}

fn read_native_max(channel: &mut Channel, code: u8) -> bool {
    let drive = channel.active();
    let sectors = drive.sectors();
    let Some(geometry) = drive.config.as_ref().map(|c| c.geometry).filter(|_| sectors > 0) else {
        return aborted(channel);
    };
    drive.take_count(code == 0x27);
    // The native address is in the disk's own geometry, whatever the host set.
    let set = std::mem::replace(&mut drive.heads, geometry.heads);
    let track = std::mem::replace(&mut drive.track, geometry.sectors);
    drive.set_sector(sectors - 1);
    (drive.heads, drive.track) = (set, track);
    true
}

fn verify(channel: &mut Channel, code: u8) -> bool {
    channel.active().take_count(code == 0x42);
    true
}

fn diagnostic(channel: &mut Channel, _: u8) -> bool {
    channel.diagnose(channel.unit);
    false
}

fn initialize_parameters(channel: &mut Channel, _: u8) -> bool {
    let drive = channel.active();
    // Tracks without sectors are no geometry.
    if !drive.is_present() || drive.regs.nsector & 0xff == 0 {
        return aborted(channel);
    }
    drive.heads = u32::from(drive.regs.select & 0x0f) + 1;
    drive.track = drive.regs.nsector & 0xff;
    true
}

fn check_power_mode(channel: &mut Channel, _: u8) -> bool {
    const ACTIVE_OR_IDLE: u32 = 0xff;
    channel.active().regs.nsector = ACTIVE_OR_IDLE;
    true
}

fn packet(channel: &mut Channel, _: u8) -> bool {
    const DMA: u8 = 1;
    const OVERLAPPED: u8 = 2;
    let drive = channel.active();
    if drive.regs.feature & OVERLAPPED != 0 {
        return aborted(channel);
    }
    drive.regs.status = status::READY | status::SEEK;
    drive.packet.dma = drive.regs.feature & DMA != 0;
    drive.regs.nsector = super::regs::reason::COMMAND;
    drive.start_transfer(vec![0; 12], Then::PacketCommand);
    false
}

fn identify(channel: &mut Channel, _: u8) -> bool {
    let drive = channel.active();
    if !drive.is_present() || !drive.is_disk() {
        if drive.is_present() {
            drive.set_signature();
        }
        return aborted(channel);
    }
    let data = drive.identify();
    answer(channel, data)
}

fn identify_packet(channel: &mut Channel, _: u8) -> bool {
    let data = channel.active().identify();
    answer(channel, data)
}

fn set_multiple(channel: &mut Channel, _: u8) -> bool {
    let drive = channel.active();
    let count = drive.regs.nsector as u8;
    if count > MAX_MULTIPLE || count != 0 && !count.is_power_of_two() {
        return aborted(channel);
    }
    drive.multiple = count;
    true
}

fn flush(channel: &mut Channel, _: u8) -> bool {
    channel.flush();
    false
}

fn set_features(channel: &mut Channel, _: u8) -> bool {
    let unit = channel.unit;
    let drive = channel.active();
    if !drive.is_present() {
        return aborted(channel);
    }
    match drive.regs.feature {
        // Write cache on and off.
        0x02 => {
            drive.set_write_cache(true);
            channel.write_cache[unit] = Some(true);
        }
        0x82 => {
            drive.set_write_cache(false);
            channel.write_cache[unit] = Some(false);
            channel.flush();
            return false;
        }
        // Keep, or do not keep, settings over a software reset.
        0xcc => drive.reset_reverts = true,
        0x66 => drive.reset_reverts = false,
        0x03 => {
            let mode = drive.regs.nsector as u8;
            if !drive.set_transfer_mode(mode) {
                return aborted(channel);
            }
        }
        // Look-ahead, power management, acoustic management and the like: nothing to do for a disk without moving parts.
        0x05 | 0x42 | 0x55 | 0x67 | 0x69 | 0x85 | 0x96 | 0x9a | 0xaa | 0xc2 => {}
        _ => return aborted(channel),
    }
    true
}
