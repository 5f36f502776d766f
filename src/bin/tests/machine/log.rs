//! The log of the guest (`-d`, `-D`, HMP `log` and `logfile`), against what QEMU 10.0.2's TCG logged of the same guest.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    guest,
    vm::{Program, Vm},
};

const GUEST: &str = include_str!("log_guest.txt");
/// The guest's instructions by address; an empty line; events in order with the registers at each.
const QEMU: &str = include_str!("log.txt");

/// Runs the guest to its end, which is a triple fault.
fn logged(items: &str, engine: &str, more: &[&str]) -> String {
    let folder = TempDir::new().expect("a folder");
    let (firmware, log) = (folder.path().join("guest.bin"), folder.path().join("log"));
    guest::write(&firmware, GUEST);
    let arguments = "-accel tcg -m 64 -display none -vga none -nic none -serial none -monitor none -no-reboot -bios";
    let status = Command::new(env!("CARGO_BIN_EXE_qemu-system-x86_64"))
        .args(arguments.split(' '))
        .arg(&firmware)
        .args(["-d", items, "-D"])
        .arg(&log)
        .args(more)
        .env("LOCKSTEP_CPU", engine)
        .stdin(Stdio::null())
        .status()
        .expect("the program runs");
    assert!(status.success());
    std::fs::read_to_string(log).expect("a log")
}

fn is_event(line: &str) -> bool {
    ["check_exception", "Servicing", "Triple", "ILLOPC", "CR0 update"].iter().any(|w| line.starts_with(w))
        || is_delivery(line)
}

fn is_delivery(line: &str) -> bool {
    line.trim_start().split_once(": v=").is_some_and(|(n, _)| n.parse::<u32>().is_ok())
}

fn is_register(line: &str) -> bool {
    line.as_bytes().get(3) == Some(&b'=') && !line.starts_with("CC")
}

fn instructions(log: &str) -> String {
    let listed: BTreeSet<_> =
        log.lines().filter(|l| l.starts_with("0x") && !l.contains(".byte")).map(str::trim_end).collect();
    listed.into_iter().collect::<Vec<_>>().join("\n")
}

#[test]
fn instructions_events_and_registers_are_those_of_qemus_log() {
    let (code, events) = QEMU.split_once("\n\n").expect("two parts");
    for (engine, items) in
        [("translator", "in_asm,int,cpu_reset,mmu,unimp"), ("translator", "all"), ("interpreter", "all")]
    {
        let log = logged(items, engine, &[]);
        assert_eq!(instructions(&log), instructions(code), "{engine} {items}");
        let mut told = vec![];
        let mut registers = false;
        for line in log.lines() {
            if is_event(line) || registers && is_register(line) {
                // How long something is that is no instruction is a matter of taste.
                told.push(if line.starts_with("ILLOPC") { &line[..31] } else { line });
                registers = !is_event(line) || is_delivery(line);
            } else {
                registers = registers && line.starts_with("CC");
            }
        }
        assert_eq!(told.join("\n"), events.trim_end(), "{engine} {items}");
    }
}

#[test]
fn every_block_is_traced_and_only_where_the_filter_lets() {
    let blocks = |log: &str| -> Vec<u64> {
        log.lines()
            .filter_map(|l| l.strip_prefix("Trace 0: 0x")?.split('/').nth(1))
            .map(|pc| u64::from_str_radix(pc, 16).expect("an address"))
            .collect()
    };
    // The 64-bit loop: `addq; decl; jnz`, a hundred times, the first of them within a longer block.
    let loops = |log: &str| blocks(log).iter().filter(|&&pc| pc == 0xf_0190).count();
    for items in ["exec", "exec,nochain", "exec,cpu,fpu"] {
        let log = logged(items, "translator", &[]);
        assert_eq!(loops(&log), 99, "{items}");
        assert_eq!(blocks(&log)[0], 0xffff_fff0);
        assert_eq!(log.contains("RAX="), items.contains("cpu"), "{items}");
        assert_eq!(log.contains("XMM00="), items.contains("fpu"), "{items}");
    }
    let log = logged("exec,in_asm", "translator", &["-dfilter", "0xf0190+7"]);
    assert_eq!((loops(&log), blocks(&log).len()), (99, 99));
    assert_eq!(log.matches("IN: ").count(), 1);
}

fn hmp(vm: &mut Vm, line: &str) -> String {
    let answer = vm.ask("human-monitor-command", json!({ "command-line": line }));
    answer.as_str().unwrap_or_default().replace('\r', "")
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a log")
}

#[test]
fn the_monitor_turns_the_log_on_and_off() {
    let folder = TempDir::new().expect("a folder");
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let mut vm = Vm::start(Program::Lockstep, &["-M", "pc", "-accel", "tcg", "-m", "64", "-S", "-nodefaults"]);
    assert!(
        hmp(&mut vm, "log nonsense")
            .starts_with("Log items (comma separated):\nnone            remove all logs\nin_asm ")
    );
    assert_eq!(hmp(&mut vm, "log"), "log: string expected\nTry \"help log\" for more information\n");
    assert_eq!(
        hmp(&mut vm, "logfile /nonexistent/x"),
        "Error opening logfile /nonexistent/x: No such file or directory\n"
    );
    assert_eq!(hmp(&mut vm, "logfile a%s"), "Bad logfile template: a%s\n");
    assert_eq!(hmp(&mut vm, &format!("logfile {}", first.display())), "");
    assert_eq!(hmp(&mut vm, "log cpu_reset"), "");
    vm.ask("system_reset", json!({}));
    assert_eq!(hmp(&mut vm, &format!("logfile {}", second.display())), "");
    assert_eq!(hmp(&mut vm, "log none"), "");
    vm.ask("system_reset", json!({}));
    // Another file: what was gathered for this one is written first.
    assert_eq!(hmp(&mut vm, &format!("logfile {}", first.with_extension("third").display())), "");
    assert_eq!(text(&first).matches("CPU Reset (CPU 0)\nEAX=00000000 ").count(), 1);
    assert_eq!(text(&second), "");
}

#[test]
fn interrupts_are_counted_and_local_apics_are_shown() {
    let folder = TempDir::new().expect("a folder");
    let firmware = folder.path().join("guest.bin");
    guest::write(&firmware, GUEST);
    let firmware = firmware.to_str().expect("a path");
    let arguments =
        ["-M", "pc", "-accel", "tcg", "-m", "64", "-smp", "2", "-nodefaults", "-no-shutdown", "-S", "-action"];
    let mut vm = Vm::start(Program::Lockstep, &[&arguments[..], &["reboot=shutdown", "-bios", firmware]].concat());
    vm.ask("cont", json!({}));
    vm.event("SHUTDOWN");
    let counts = hmp(&mut vm, "info irq");
    assert_eq!(counts, "IRQ statistics for ioapic:\n 0: 1\nIRQ statistics for isa-i8259:\n 0: 1\n");
    let apic = hmp(&mut vm, "info lapic");
    assert!(apic.starts_with("dumping local APIC state for CPU 0 \n\nLVT0\t 0x00000700 active-hi edge "), "{apic}");
    assert!(apic.contains("\nSPIV\t 0x000001ff APIC enabled, focus=off, spurious vec 255\n"), "{apic}");
    assert!(hmp(&mut vm, "info lapic 1").contains("APIC disabled"));
    assert_eq!(hmp(&mut vm, "info lapic 2"), "No CPU available\n");
    let wrong = "invalid char 'x' in expression\nTry \"help info lapic\" for more information\n";
    assert_eq!(hmp(&mut vm, "info lapic x"), wrong);
}
