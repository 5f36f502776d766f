//! A guest goes on where it was, whoever runs it.

use serde_json::json;

use crate::{
    guest::{Counters, gaps},
    vm::{Program, accelerators, has_old_qemu, has_qemu},
};

/// Moves a counting guest, which must go on without a gap and without a repetition.
fn moves(from: (Program, &str), to: (Program, &str), machine: &str, cpus: &str) {
    let place = Counters::new();
    let uri = format!("unix:{}", place.path("migration").display());
    let (mut source, before) = place.start("source", from, machine, cpus, &[]);
    source.wait("the guest counts", |_| before.numbers().len() >= 12);
    let (mut target, after) = place.start("target", to, machine, cpus, &["-incoming", &uri]);
    source.migrate(&uri);
    target.wait("the guest goes on", |_| after.numbers().len() >= 12);
    assert_eq!(target.ask("query-status", json!({}))["status"], "running");
    // A number that was being written when the guest moved has a part in either file, and is in none of the lists.
    let told = [before.numbers(), after.numbers()].concat();
    assert!(gaps(&told) <= 1, "{from:?} to {to:?}: {told:?}");
}

#[test]
fn between_engines_of_lockstep() {
    for &from in accelerators() {
        for &to in accelerators() {
            moves((Program::Lockstep, from), (Program::Lockstep, to), "pc", "1");
        }
    }
}

#[test]
fn to_qemu_and_from_it() {
    if !has_qemu() {
        return;
    }
    for &accelerator in accelerators() {
        let (ours, qemu) = ((Program::Lockstep, accelerator), (Program::Qemu, accelerator));
        for (machine, cpus) in [("pc-i440fx-10.0", "1"), ("pc-i440fx-10.0", "2"), ("pc-i440fx-8.2", "1")] {
            moves(ours, qemu, machine, cpus);
            moves(qemu, ours, machine, cpus);
        }
    }
}

#[test]
fn to_an_older_qemu_and_from_it() {
    if !has_old_qemu() {
        return;
    }
    // On its software CPU the guest gets no interrupts: it does not notice that the local APIC was turned off.
    for &accelerator in accelerators().iter().filter(|&&a| a == "kvm") {
        let (ours, old) = ((Program::Lockstep, accelerator), (Program::OldQemu, accelerator));
        moves(ours, old, "pc-i440fx-7.2", "1");
        moves(old, ours, "pc-i440fx-7.2", "1");
    }
}
