//! A debugger's wishes in the kernel's form (`KVM_SET_GUEST_DEBUG`): breakpoints and watchpoints are the processor's debug registers
//! (Intel SDM volume 3, 18.2), the software's are INT3 in the guest's memory, which the debugger has written.

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP, kvm_debug_exit_arch, kvm_guest_debug,
};
use lockstep_util::{Result, bail};

use crate::{DebugControl, DebugStop, WatchKind};

/// `KVM_CAP_SET_GUEST_DEBUG2`, whose value are the flags that the host has.
pub(super) const CAP_SET_GUEST_DEBUG2: libc::c_ulong = 195;
/// The vectors that the kernel shows.
pub(super) const DB: u32 = 1;
const BP: u32 = 3;
/// DR6: a single step.
const BS: u64 = 1 << 14;

/// What the four registers are used for, in order.
fn registers(control: &DebugControl) -> impl Iterator<Item = (u64, u64, u64, DebugStop)> {
    let code = control.hardware.iter().map(|&address| (address, 0, 1, DebugStop::Breakpoint));
    let data = control.watchpoints.iter().map(|w| {
        let kind = if w.kind == WatchKind::Write { 1 } else { 3 };
        (w.address, kind, w.len, DebugStop::Watchpoint(*w))
    });
    code.chain(data)
}

/// Whether the processor has a register for memory of this place and length.
pub(super) fn fits(address: u64, len: u64) -> bool {
    matches!(len, 1 | 2 | 4 | 8) && address.is_multiple_of(len)
}

/// The argument of the request.
///
/// # Errors
/// When the debug registers do not suffice.
pub(super) fn request(control: &DebugControl, flags: u32) -> Result<kvm_guest_debug> {
    let mut request = kvm_guest_debug::default();
    if *control == DebugControl::default() {
        return Ok(request);
    }
    request.control = KVM_GUESTDBG_ENABLE;
    if control.step {
        request.control |= KVM_GUESTDBG_SINGLESTEP | flags & KVM_GUESTDBG_BLOCKIRQ;
    }
    if !control.software.is_empty() {
        request.control |= KVM_GUESTDBG_USE_SW_BP;
    }
    let mut dr7 = 0x600;
    for (n, (address, kind, len, _)) in registers(control).enumerate() {
        if n >= 4 || !fits(address, len) {
            bail!("No space left on device");
        }
        let len = [0, 0, 1, 0, 3, 0, 0, 0, 2][len as usize];
        request.arch.debugreg[n] = address;
        dr7 |= 2 << (2 * n) | kind << (16 + 4 * n) | len << (18 + 4 * n);
        request.control |= KVM_GUESTDBG_USE_HW_BP;
    }
    request.arch.debugreg[7] = dr7;
    Ok(request)
}

/// What a debug exit means for the debugger. Nothing: it is the guest's own exception.
pub(super) fn stop(control: &DebugControl, exit: &kvm_debug_exit_arch) -> Option<DebugStop> {
    match exit.exception {
        DB if exit.dr6 & BS != 0 && control.step => Some(DebugStop::Step),
        DB => registers(control).take(4).enumerate().find(|(n, _)| exit.dr6 >> n & 1 != 0).map(|(_, r)| r.3),
        BP => control.software.contains(&exit.pc).then_some(DebugStop::Breakpoint),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Watchpoint;

    #[test]
    fn four_registers_are_laid_out_as_the_processor_has_them() {
        let watch = |address, len, kind| Watchpoint { address, len, kind };
        let mut control = DebugControl {
            hardware: vec![0x1000],
            watchpoints: vec![watch(0x2000, 8, WatchKind::Write), watch(0x3002, 2, WatchKind::Access)],
            ..DebugControl::default()
        };
        let made = request(&control, 0).unwrap();
        assert_eq!(made.control, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);
        assert_eq!(made.arch.debugreg[..3], [0x1000, 0x2000, 0x3002]);
        assert_eq!(made.arch.debugreg[7], 0x600 | 0b10_1010 | 9 << 20 | 7 << 24);
        let exit = |exception, dr6, pc| kvm_debug_exit_arch { exception, dr6, pc, ..Default::default() };
        assert_eq!(stop(&control, &exit(1, 2, 0)), Some(DebugStop::Watchpoint(control.watchpoints[0])));
        assert_eq!(stop(&control, &exit(1, 1, 0)), Some(DebugStop::Breakpoint));
        assert_eq!(stop(&control, &exit(1, BS, 0)), None, "the guest steps itself");
        assert_eq!(stop(&control, &exit(3, 0, 0x1000)), None, "an INT3 of the guest's");
        control.hardware.extend([1, 2]);
        assert!(request(&control, 0).is_err());
    }
}
