//! COLO pairs of Lockstep and QEMU: the guest counts on both, and the one that is left goes on.

use serde_json::json;

use crate::{
    guest::{Counters, gaps},
    vm::{Program, Vm, accelerators, has_old_qemu, has_qemu},
};

/// A pair makes checkpoints; then one of the two dies, and the other goes on from what both had counted.
fn pair(primary: (Program, &str), secondary: (Program, &str), machine: &str, primary_dies: bool) {
    let place = Counters::new();
    let uri = format!("unix:{}", place.path("migration").display());
    let (mut first, counted) = place.start("primary", primary, machine, "1", &[]);
    first.wait("the guest counts", |_| counted.numbers().len() >= 4);
    let (mut second, shadow) = place.start("secondary", secondary, machine, "1", &["-incoming", "defer"]);
    for vm in [&mut first, &mut second] {
        vm.ask("migrate-set-capabilities", json!({"capabilities": [{"capability": "x-colo", "state": true}]}));
    }
    second.ask("migrate-incoming", json!({"uri": uri}));
    first.ask("migrate-set-parameters", json!({"x-checkpoint-delay": 200}));
    first.ask("migrate", json!({"uri": uri}));
    let mode = |vm: &mut Vm| vm.ask("query-colo-status", json!({}))["mode"].clone();
    first.wait("the pair stands", |vm| mode(vm) == "primary");
    second.wait("the pair stands", |vm| mode(vm) == "secondary");
    let together = counted.numbers().len() + 60;
    first.wait("both count over several checkpoints", |_| counted.numbers().len() >= together);
    // Each checkpoint takes the secondary's guest to where the primary's is.
    let (here, there) = (counted.numbers(), shadow.numbers());
    let apart = here.last().zip(there.last()).map_or(u64::MAX, |(a, b)| a.abs_diff(*b));
    assert!(apart < 25, "{primary:?} {secondary:?}: {here:?} {there:?}");
    let (mut left, numbers) = if primary_dies {
        first.crash();
        (second, shadow)
    } else {
        second.crash();
        (first, counted)
    };
    left.wait("the end of the other is noticed", |vm| {
        vm.try_ask("x-colo-lost-heartbeat", json!({})).is_ok() || mode(vm) == "none"
    });
    let before = numbers.numbers().len();
    left.wait("the guest goes on alone", |_| numbers.numbers().len() >= before + 20);
    assert_eq!(left.ask("query-status", json!({}))["status"], "running");
    let alone = &numbers.numbers()[before..];
    assert!(gaps(alone) <= 1, "{alone:?}");
}

#[test]
fn qemu_is_the_secondary() {
    if has_qemu() {
        for &accelerator in accelerators() {
            for primary_dies in [false, true] {
                pair((Program::Lockstep, accelerator), (Program::Qemu, accelerator), "pc-i440fx-10.0", primary_dies);
            }
        }
    }
}

/// QEMU 7.2 is the last before 10.2 that can be a primary; on its software CPU it locks itself up there.
#[test]
fn qemu_is_either() {
    if !has_old_qemu() || !accelerators().contains(&"kvm") {
        return;
    }
    let (ours, old) = ((Program::Lockstep, "kvm"), (Program::OldQemu, "kvm"));
    for primary_dies in [false, true] {
        pair(old, ours, "pc-i440fx-7.2", primary_dies);
        pair(ours, old, "pc-i440fx-7.2", primary_dies);
    }
}
