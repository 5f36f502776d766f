//! What firmware reads of the machine through fw_cfg.

use lockstep_util::Result;

use super::{BootConfig, PcConfig, e820};
use crate::fw_cfg::{FwCfg, key};

/// A device to boot from, by its place in the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootEntry {
    /// `bootindex`.
    pub index: i32,
    /// The device's path in firmware's words (`/pci@i0cf8/ide@1,1/drive@0/disk@0`).
    pub path: String,
}

/// How long a system with nothing bootable waits, for `etc/boot-fail-wait`.
fn fail_wait(boot: &BootConfig) -> u32 {
    boot.reboot_timeout.clamp(-1, 0xffff) as u32
}

/// Sets what is known when the machine is built.
///
/// # Errors
/// When a file does not fit in the directory.
pub(super) fn fill(fw_cfg: &FwCfg, config: &PcConfig) -> Result<()> {
    fw_cfg.set(key::UUID, config.uuid.unwrap_or([0; 16]));
    fw_cfg.set(key::RAM_SIZE, config.ram_size.to_le_bytes());
    fw_cfg.set_u16(key::NOGRAPHIC, (!config.graphics).into());
    fw_cfg.set_u16(key::CPU_COUNT, config.cpus.len() as u16);
    fw_cfg.set_u16(key::MAX_CPUS, config.apic_id_limit() as u16);
    fw_cfg.set_u16(key::BOOT_MENU, config.boot.menu.into());
    fw_cfg.set_u32(key::IRQ0_OVERRIDE, 1);
    // No NUMA nodes; a zero for each CPU.
    fw_cfg.set(key::NUMA, vec![0; 8 * (1 + config.apic_id_limit() as usize)]);
    fw_cfg.set_file("etc/e820", e820::encode(&e820::entries(config)))?;
    fw_cfg.set_file("etc/boot-fail-wait", fail_wait(&config.boot).to_le_bytes())?;
    if let Some(time) = config.boot.splash_time {
        fw_cfg.set_file("etc/boot-menu-wait", time.to_le_bytes())?;
    }
    for (name, data) in &config.files {
        fw_cfg.set_file(name, data.clone())?;
    }
    Ok(())
}

/// The file `bootorder`: paths, each on a line, the last line ended by a zero.
pub(super) fn order(entries: &[BootEntry], strict: bool) -> Vec<u8> {
    let mut sorted: Vec<_> = entries.iter().collect();
    sorted.sort_by_key(|e| e.index);
    let mut lines: Vec<&str> = sorted.iter().map(|e| e.path.as_str()).collect();
    if strict && !lines.is_empty() {
        lines.push("HALT");
    }
    let mut bytes = lines.join("\n").into_bytes();
    if !bytes.is_empty() {
        bytes.push(0);
    }
    bytes
}
