//! `info tlb`, `info mem`: what the first vCPU's page tables map.

use std::{fmt::Write, rc::Rc};

use lockstep_accel::{
    CpuState,
    walk::{self, Page},
};
use lockstep_util::{Result, err};

use super::{Args, HmpCommand};
use crate::{objects::LocalFuture, vm::Vm};

/// The most lines that are printed: a guest can map more than a monitor can tell.
const MOST_LINES: usize = 100_000;
/// Bits of an entry.
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;

pub(super) static INFO: &[HmpCommand] = &[
    HmpCommand { names: "mem", params: &[], usage: "", help: "show the active virtual memory mappings", run: info_mem },
    HmpCommand {
        names: "tlb",
        params: &[],
        usage: "",
        help: "show virtual to physical memory mappings",
        run: info_tlb,
    },
];

/// Has `show` look at the tables while the guest stands.
fn tables(vm: &Vm, out: &mut String, show: impl FnOnce(&CpuState, &mut String)) -> Result<()> {
    let Some(vcpus) = vm.vcpus().filter(|v| !v.is_empty()) else { return Err(err!("No CPU available")) };
    vm.while_paused(|| {
        let state = vcpus.cpu(0).lock().save()?;
        if state.cr0 >> 31 == 0 {
            out.push_str("PG disabled\n");
        } else {
            show(&state, out);
        }
        Ok(())
    })
}

fn info_tlb<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        tables(vm, out, |state, out| {
            let mut lines = 0;
            walk::pages(state, &vm.board.memory_space, &mut |page| {
                lines += 1;
                let flags: String =
                    [(63, 'X'), (8, 'G'), (7, 'P'), (6, 'D'), (5, 'A'), (4, 'C'), (3, 'T'), (2, 'U'), (1, 'W')]
                        .map(|(bit, name)| if page.entry >> bit & 1 != 0 { name } else { '-' })
                        .iter()
                        .collect();
                let _ = writeln!(out, "{:016x}: {:016x} {flags}", page.address, page.physical());
                lines < MOST_LINES
            });
        })
    })
}

fn info_mem<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        tables(vm, out, |state, out| {
            let mut areas = Areas { out, open: None, lines: 0 };
            walk::pages(state, &vm.board.memory_space, &mut |page| areas.add(&page));
            areas.close();
        })
    })
}

/// Pages side by side with the same rights are one line.
struct Areas<'a> {
    out: &'a mut String,
    /// First address, address behind the last, rights.
    open: Option<(u64, u64, u64)>,
    lines: usize,
}

/// The 48 bits of an address that are its own.
const OWN_BITS: u64 = (1 << 48) - 1;

impl Areas<'_> {
    fn add(&mut self, page: &Page) -> bool {
        let (start, rights) = (page.address & OWN_BITS, page.rights & (WRITABLE | USER));
        match &mut self.open {
            Some((_, end, same)) if *end == start && *same == rights => *end += page.size,
            _ => {
                self.close();
                self.open = Some((start, start + page.size, rights));
            }
        }
        self.lines < MOST_LINES
    }

    fn close(&mut self) {
        let Some((start, end, rights)) = self.open.take() else { return };
        self.lines += 1;
        let whole = |address: u64| ((address << 16) as i64 >> 16) as u64;
        let right = |bit: u64, name: char| if rights & bit != 0 { name } else { '-' };
        let (user, write) = (right(USER, 'u'), right(WRITABLE, 'w'));
        let _ =
            writeln!(self.out, "{:016x}-{:016x} {:016x} {user}r{write}", whole(start), whole(end), whole(end - start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_side_by_side_are_one_area() {
        let mut out = String::new();
        let mut areas = Areas { out: &mut out, open: None, lines: 0 };
        let page = |address, size, rights| Page { address, size, entry: 1, rights };
        areas.add(&page(0, 0x1000, 7));
        areas.add(&page(0x1000, 0x1000, 7));
        areas.add(&page(0x2000, 0x1000, 5));
        areas.add(&page(0xffff_8000_0000_0000, 0x20_0000, 3));
        areas.close();
        let wanted = "0000000000000000-0000000000002000 0000000000002000 urw\n\
                      0000000000002000-0000000000003000 0000000000001000 ur-\n\
                      ffff800000000000-ffff800000200000 0000000000200000 -rw\n";
        assert_eq!(out, wanted);
    }
}
