//! The tables as firmware and an ACPI interpreter find them.

use super::*;
use crate::acpi::tables::fixed::HEADER;

fn config() -> AcpiConfig {
    AcpiConfig {
        apic_ids: vec![0],
        pci_hole: 0x2000_0000,
        pm_base: 0x600,
        hpet: true,
        s3: true,
        s4: true,
        s4_value: 2,
        ports: Ports { i8042: true, floppy: true, parallel: true, serial: [true; 2] },
    }
}

/// Runs the loader's script as firmware does, with the tables at an address. Returns both files.
fn load(files: &Files, base: u32) -> (Vec<u8>, Vec<u8>) {
    let (mut tables, mut rsdp) = (files.tables.clone(), files.rsdp.clone());
    for command in files.loader.chunks(128) {
        let u32_at = |at: usize| u32::from_le_bytes(command[at..at + 4].try_into().unwrap()) as usize;
        let file = if command[4..].starts_with(b"etc/acpi/rsdp\0") { &mut rsdp } else { &mut tables };
        match u32_at(0) {
            0 | 1 => {}
            2 => {
                let at = u32_at(116);
                let offset = u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
                file[at..at + 4].copy_from_slice(&(offset + base).to_le_bytes());
            }
            3 => {
                let (at, start, length) = (u32_at(60), u32_at(64), u32_at(68));
                let sum = file[start..start + length].iter().fold(0u8, |s, b| s.wrapping_add(*b));
                file[at] = file[at].wrapping_sub(sum);
            }
            other => panic!("unknown command {other}"),
        }
    }
    (tables, rsdp)
}

fn dword(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |s, b| s.wrapping_add(*b))
}

#[test]
fn firmware_finds_every_table_with_a_good_checksum() {
    const BASE: u32 = 0x1ffe_0000;
    let (tables, rsdp) = load(&build(&config()), BASE);
    assert_eq!((&rsdp[..8], sum(&rsdp), rsdp.len()), (&b"RSD PTR "[..], 0, 20));
    let table = |pointer: usize| {
        let at = pointer - BASE as usize;
        tables[at..at + dword(&tables, at + 4)].to_vec()
    };
    let rsdt = table(dword(&rsdp, 16));
    let listed: Vec<_> = (HEADER..rsdt.len()).step_by(4).map(|at| table(dword(&rsdt, at))).collect();
    let signatures: Vec<_> = listed.iter().map(|t| String::from_utf8_lossy(&t[..4]).into_owned()).collect();
    assert_eq!(signatures, ["FACP", "APIC", "HPET", "WAET"]);
    let dsdt = table(dword(&listed[0], fixed::FADT_DSDT));
    assert_eq!(&table(dword(&listed[0], fixed::FADT_FACS))[..4], b"FACS");
    assert!(listed.iter().chain([&rsdt, &dsdt]).all(|t| sum(t) == 0));
}

#[test]
fn fixed_tables_are_those_of_the_documented_machine() {
    let fadt = fixed::fadt_body(&config());
    assert_eq!(fadt.len(), 116 - HEADER);
    let at = |offset: usize| dword(&fadt, offset - HEADER);
    assert_eq!([at(56), at(64), at(76), at(80), at(112)], [0x600, 0x604, 0x608, 0xafe0, 0x80a5]);
    assert_eq!(fadt[88 - HEADER..96 - HEADER], [4, 2, 0, 4, 4, 0, 0, 0]);
    assert_eq!(fadt[108 - HEADER], 0x32);
    let madt = fixed::madt_body(&config());
    assert_eq!(madt.len(), 120 - HEADER);
    assert_eq!(madt[8..16], [0, 8, 0, 0, 1, 0, 0, 0]);
    assert_eq!(madt[28..48], [2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 2, 10, 0, 5, 5, 0, 0, 0, 13, 0]);
    assert_eq!(fixed::hpet_body(), [1, 0xa2, 0x86, 0x80, 0, 0, 0, 0, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn lists_of_terms_fill_their_packages() {
    // Every Scope, Device and Method of the first two levels ends where its parent's next term begins.
    fn length(bytes: &[u8]) -> (usize, usize) {
        let extra = usize::from(bytes[0] >> 6);
        let mut n = if extra == 0 { usize::from(bytes[0] & 0x3f) } else { usize::from(bytes[0] & 15) };
        for i in 0..extra {
            n |= usize::from(bytes[1 + i]) << (4 + 8 * i);
        }
        (n, 1 + extra)
    }
    let body = dsdt::body(&config());
    let mut at = 0;
    let mut kinds = vec![];
    while at < body.len() {
        kinds.push(body[at]);
        match body[at] {
            0x10 => at += 1 + length(&body[at + 1..]).0,
            // A name with one segment after a backslash, and a package.
            0x08 => {
                at += 6;
                assert_eq!(body[at], 0x12);
                at += 1 + length(&body[at + 1..]).0;
            }
            other => panic!("unexpected {other:#x} at {at}"),
        }
    }
    assert_eq!(kinds, [0x10, 0x08, 0x08, 0x08, 0x10]);
    assert_eq!(at, body.len());
}
